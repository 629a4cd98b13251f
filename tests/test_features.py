"""The studio's stand-ins for published networks: what they learn, what they measure, and that degradation shows."""

import numpy as np
import pytest
import torch

from rainlab import runs
from rainlab.data.studio import body
from rainlab.measure import features
from rainlab.measure.degrade import DEGRADATIONS, degraded
from rainlab.measure.metrics import frechet

SMALL = features.CONFIG | {"characters": 40, "steps": 3}


@pytest.fixture(scope="module")
def clips():
    """16 held-out characters: 32 frames each, in one motion and in another."""
    seeds = body.split_seeds("test", 32)
    who = seeds[:16].repeat(2)
    frames = body.render(who, seeds, 32, features.SIZE).frames.numpy()
    return frames[:16], frames[16:]


def test_training_lowers_each_part_of_the_loss_and_is_deterministic():
    (one, curve), (again, _) = features.train(SMALL), features.train(SMALL)
    assert len(curve) == 3 and curve[-1] < curve[0]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    assert sum(p.numel() for p in one.parameters()) < 2e6


def test_shaken_frames_move_with_their_points():
    draw = torch.Generator().manual_seed(0)
    frames, points = torch.zeros(4, 6, 3, 64, 48), torch.tensor([20.0, 30.0]).expand(4, 6, 18, 2)
    frames[..., 30, 20] = 1
    moved, places = features.shaken(frames, points, 5.0, draw)
    assert not torch.equal(moved, frames)
    for i in range(4):
        for j in range(6):
            x, y = places[i, j, 0].long().tolist()
            assert moved[i, j, 0, y, x] == 1 and moved[i, j].sum() == 3


def test_the_shipped_networks_know_held_out_characters_and_their_motion(clips):
    net, (here, there) = features.load(), clips
    with torch.no_grad():
        one, other = (
            torch.stack([net.eye.identity(clip).mean(0) for clip in features._prepared(v)]) for v in (here, there)
        )
    right = ((one @ other.T).argmax(1) == torch.arange(16)).float().mean()
    assert right > 0.6  # by chance 1/16
    run = features.trained()
    losses = [row["value"] for row in run.metrics()]
    assert run.path.parent == runs.published() and losses[-1] < losses[0] / 3
    own, wrong = features.identity(here, here), features.identity(here, np.roll(here, 1, 0))
    assert own == pytest.approx(np.ones(16), abs=1e-5) and (wrong < 0.8).mean() > 0.8


@pytest.mark.parametrize(
    ("measure", "hows"),
    [
        ("perceptual", ("blur", "jitter", "frame drop", "colour drift", "identity swap")),
        ("identity", ("blur", "colour drift", "identity swap")),
        ("fvd", ("jitter", "frame drop")),
    ],
)
def test_more_degradation_is_worse(measure, hows, clips):
    truth = clips[0]
    for how in hows:
        if measure == "fvd":
            found = [features.fvd(degraded(truth, how, amount), truth, stride=4) for amount in DEGRADATIONS[how][1]]
        else:
            each = getattr(features, measure)
            found = [each(degraded(truth, how, amount), truth).mean() for amount in DEGRADATIONS[how][1]]
        found = [1 - value for value in found] if measure == "identity" else found
        assert found == sorted(found) and found[0] < 0.9 * found[-1], how


def test_damage_is_what_it_says(clips):
    truth = clips[0][:3]
    assert np.array_equal(degraded(truth, "frame drop", 4)[:, 4:8], truth[:, [4] * 4])
    swapped = degraded(truth, "identity swap", 0.25)
    assert np.array_equal(swapped[:, :24], truth[:, :24]) and np.array_equal(swapped[1, 24:], truth[0, 24:])
    drift = degraded(truth, "colour drift", 60).astype(int) - truth
    assert np.array_equal(drift[:, 0], 0 * drift[:, 0]) and (drift[..., 0] >= 0).all() and (drift[..., 2] <= 0).all()
    assert drift[:, -1, ..., 0].max() == 60 and not drift[..., 1].any()
    assert np.array_equal(degraded(truth, "jitter", 2), degraded(truth, "jitter", 2))
    with pytest.raises(ValueError, match="degradation: got 'rain', expected one of .'blur'"):
        degraded(truth, "rain", 1)


def test_windows_of_a_clip(clips):
    assert features.windows(clips[0][:3]).shape == (6, 64) and features.windows(clips[0][:3], 4).shape == (15, 64)
    assert features.fvd(clips[0], clips[0]) == pytest.approx(0, abs=1e-6)
    same = frechet(features.windows(clips[0], 4), features.windows(clips[1], 4))
    assert features.fvd(clips[0], clips[1], 4) == pytest.approx(same)
    with pytest.raises(ValueError, match="videos: got 15 frames, expected at least 16"):
        features.windows(clips[0][:, :15])
