"""A stream of many frames: compared frame by frame with its truth, and slopes that tell drift from noise."""

import micro
import numpy as np
import pytest

from rainlab.measure import endless, metrics
from rainlab.method.stream import Stream
from rainlab.training import stages

CONFIG = micro.micro()


def test_an_endless_stream_is_compared_with_its_truth(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(endless, "STRETCH", 16)
    micro.write_weights(CONFIG)
    with pytest.raises(FileNotFoundError):
        endless.long_run(CONFIG, 48)
    with pytest.raises(ValueError, match="frames: got 50, expected a multiple of 16, .* two at least"):
        endless.long_run(CONFIG, 50)
    run = endless.long_run(CONFIG, 48, record=True)
    rows = [row for row in run.metrics() if row["metric"] == "psnr_fg"]
    assert [row["frame"] for row in rows] == [0, 16, 32]
    assert sum(row["n"] for row in rows) == 48  # every frame once, those still in the window with the last stretch
    driven = list(endless.stretches(CONFIG, 0, 48))
    stream = Stream(stages.trained(CONFIG, "distill3d"), 8, 4)
    stream.reference(driven[0].frames[0])
    frames = [frame for stretch in driven for frame in stream.push(list(stretch.condition))] + stream.flush()
    truth, mask, another = (np.concatenate([parts[i] for parts in driven]) for i in (0, 2, 3))
    start = 0
    for row in rows:
        cut = slice(start, start := start + row["n"])
        expected = metrics.psnr(np.stack(frames[cut])[None], truth[None, cut], mask[None, cut])
        assert row["value"] == pytest.approx(expected.item(), rel=1e-4)
        nearer = expected - metrics.psnr(np.stack(frames[cut])[None], another[None, cut], mask[None, cut])
        assert run.value("identity", frame=row["frame"])["value"] == pytest.approx(nearer.item(), abs=1e-3)
    moving = metrics.temporal_difference_error(np.stack(frames[cut])[None], truth[None, cut])
    assert run.value("tde", frame=32)["value"] == pytest.approx(moving.item(), rel=1e-4)
    held = [row["value"] for row in run.metrics() if row["metric"] == "memory"]
    assert run.value("memory_drift")["value"] == pytest.approx(np.polyfit([0, 0.1, 0.2], held, 1)[0], rel=1e-4)
    strip = np.load(run.path / "strip.npy")
    assert strip.shape[:2] == (3, 2) and np.array_equal(strip[-1], [frames[-1], truth[-1]])
    assert endless.long_run(CONFIG, 48).id == run.id


def test_fed_back_the_reference_is_the_last_frame_that_came_out(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(endless, "STRETCH", 16)
    micro.write_weights(CONFIG)
    plain, back = (endless.long_run(CONFIG, 32, fed_back=fed_back, record=True) for fed_back in (False, True))
    driven = list(endless.stretches(CONFIG, 0, 32))
    stream = Stream(stages.trained(CONFIG, "distill3d"), 8, 4)
    stream.reference(driven[0].frames[0])
    first = stream.push(list(driven[0].condition))
    stream.reference(first[-1])
    second = stream.push(list(driven[1].condition)) + stream.flush()
    strips = [np.load(run.path / "strip.npy") for run in (plain, back)]
    assert np.array_equal(strips[1][:, 0], [first[-1], second[-1]])
    assert np.array_equal(strips[0][0], strips[1][0]) and not np.array_equal(strips[0][1], strips[1][1])


def test_every_stretch_has_a_motion_of_its_own_and_one_character():
    (first, poses, _, who), (second, other, *_) = endless.stretches(micro.micro(), 0, 2 * endless.STRETCH)
    assert who.shape == first.shape and not np.array_equal(who, first)
    assert not np.array_equal(poses, other) and first.shape == second.shape == (100, 32, 24, 3)
    assert np.array_equal(first[0, 0, 0], second[0, 0, 0])  # the same backdrop


def test_drift_is_told_from_noise():
    noise = np.tile([-1.0, 1.0], 25)
    steady, fading = endless.drift(20 + noise), endless.drift(20 + noise - 0.1 * np.arange(50))
    assert steady.ci_low < 0 < steady.ci_high and steady.n == 50
    assert fading.value == pytest.approx(steady.value - 1.0) and fading.ci_high < 0
