"""AnimateAnyone: windows cover a clip, one window is plain DDIM, limbs take the character's lengths."""

import micro
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainlab.baselines import animate_anyone
from rainlab.config import override
from rainlab.data import pose
from rainlab.data.studio import body
from rainlab.method import sampling
from rainlab.training import losses, stages

MODEL = micro.model(guidance=False)


@given(st.integers(1, 60), st.integers(2, 16), st.data())
def test_windows_cover_every_frame_and_overlap(frames, length, data):
    overlap = data.draw(st.integers(0, length - 1))
    parts = animate_anyone.windows(frames, length, overlap)
    covered = [set(range(frames)[part]) for part in parts]
    assert set().union(*covered) == set(range(frames))
    assert all(len(part) == min(length, frames) for part in covered)
    assert all(len(a & b) >= overlap for a, b in zip(covered, covered[1:], strict=False))
    assert len(parts) == 1 + max(0, -(-(frames - length) // (length - overlap)))


def test_one_window_is_plain_ddim():
    reference, condition = micro.pictures(2), micro.pictures(2, 8)
    for guidance in (None, 2.0):
        got = animate_anyone.animate(MODEL, reference, condition, 8, steps=3, guidance=guidance, seed=1)
        assert np.array_equal(got, sampling.sample(MODEL, reference, condition, 3, guidance, seed=1))


def test_predictions_are_averaged_by_count(monkeypatch):
    """A network that answers with the number of its call: frames in two windows get the mean."""
    calls, asked = [], []

    def numbered(latents, *given):
        calls.append(latents.shape[1])
        return torch.full_like(latents, float(len(calls)))

    def ddim(predict, noise, steps):
        asked.append(predict(noise, torch.zeros(noise.shape[:2], dtype=torch.long)))
        return noise

    monkeypatch.setattr(MODEL.denoising_unet, "forward", numbered)
    monkeypatch.setattr(animate_anyone.schedule, "ddim", ddim)
    animate_anyone.animate(MODEL, micro.pictures(1), micro.pictures(1, 14), 8, overlap=4, guidance=None)
    assert calls == [8, 8, 8]
    assert asked[0][0, :, 0, 0, 0].tolist() == [1] * 4 + [1.5] * 2 + [2.0] * 2 + [2.5] * 4 + [3] * 2


def test_an_overlap_that_leaves_no_way_forward_is_refused():
    with pytest.raises(ValueError, match="overlap: got 8, expected at least 0 and less than the window's 8 frames"):
        animate_anyone.windows(20, 8, 8)


def test_stage_2_with_one_level_for_all_frames():
    draw = stages.dataset.Draw(0, 0, range(5))
    times = losses.window_times(draw, 8, None)
    assert times.shape == (5, 8) and (times == times[:, :1]).all() and times[:, 0].unique().numel() > 1
    config = micro.micro()
    other = override(config, {"stage2.times": "uniform"})
    ids = {stage: stages.run_id(other, stage) == stages.run_id(config, stage) for stage in stages.STAGES}
    assert ids == {"autoencoder": True, "stage1": True, "stage2": False, "distill2d": True, "distill3d": False}
    with pytest.raises(ValueError, match="stage2.times: got 'stairs', expected one of staircase, uniform"):
        micro.write_weights(config)
        stages.Training(override(config, {"stage2.times": "stairs"}), "stage2").start()


def test_limbs_take_the_characters_lengths():
    seeds = body.split_seeds("test", 2)
    points = body.render(seeds, seeds, frames=6, size=(128, 96), facing=True).keypoints
    driver, character = points[0], points[1, 0]
    assert torch.allclose(animate_anyone.retarget(driver, driver[0]), driver, atol=1e-3)
    moved = animate_anyone.retarget(driver, character)
    neck = pose.POINTS.index("neck")
    assert torch.equal(moved[0, neck, :2], character[neck, :2]) and torch.equal(moved[..., 2], driver[..., 2])
    for a, b in pose.LIMBS:
        if min(driver[0, [a, b], 2].min(), character[[a, b], 2].min()) >= pose.CONFIDENT:
            lengths = [(p[b, :2] - p[a, :2]).norm() for p in (moved[0], character)]
            assert lengths[0] == pytest.approx(float(lengths[1]), rel=1e-4, abs=1e-3)
    unit = lambda p, a, b: torch.nn.functional.normalize(p[:, b, :2] - p[:, a, :2], dim=-1)  # noqa: E731
    assert all(torch.allclose(unit(moved, a, b), unit(driver, a, b), atol=1e-3) for a, b in pose.LIMBS)
    hidden = character.clone()
    hidden[pose.POINTS.index("neck"), 2] = 0
    with pytest.raises(ValueError, match="reference: got no neck or hips"):
        animate_anyone.retarget(driver, hidden)
