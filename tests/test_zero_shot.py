"""PoseAnimate's ablation: who drives whom, what is aligned, and that every number is that of the frames."""

import json

import micro
import numpy as np
import pytest

from rainlab.data import pose
from rainlab.measure import metrics, zero_shot
from rainlab.training import stages

CONFIG = micro.micro(data__height=64, data__width=48)


def test_somebody_smaller_drives_from_aside():
    one = zero_shot.scene(CONFIG, 2)
    assert one.frames.shape == (16, 64, 48, 3) and one.driver.shape == (17, 18, 3) and one.mask.shape == (16, 64, 48)
    seen = (one.driver[..., 2] >= pose.CONFIDENT)[0] & (one.points[:, 2] >= pose.CONFIDENT)
    heights = [float(np.ptp(x[seen, 1].numpy())) for x in (one.driver[0], one.points)]
    assert heights[0] < 0.95 * heights[1]
    assert (one.driver[0, seen, 0] - one.points[seen, 0]).mean() > 2
    own, aligned = zero_shot.conditions(one)
    _, as_it_is = zero_shot.conditions(one, pata=False)
    assert np.array_equal(own, pose.draw(one.points, (64, 48)))
    truth = pose.draw(zero_shot.pose_animate.transition(one.points, one.points[None], 0)[0], (64, 48)).numpy()
    assert np.array_equal(truth, own) and aligned.shape == as_it_is.shape == (16, 64, 48, 3)
    overlap = [float(((x.max(-1) > 0) & one.mask).sum() / (x.max(-1) > 0).sum()) for x in (aligned, as_it_is)]
    assert overlap[0] > overlap[1] + 0.1  # aligned limbs lie on the character


@pytest.mark.parametrize("method", [*zero_shot.VARIANTS, *zero_shot.BESIDE])
def test_a_method_is_measured_on_its_frames(method, monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(zero_shot, "CLIPS", 2)
    monkeypatch.setattr(zero_shot, "FRAMES", 8)
    monkeypatch.setattr(zero_shot, "OPTIONS", {"steps": 2, "inner": 1})
    micro.write_weights(CONFIG)
    run = zero_shot.measure(CONFIG, method, record=True)
    stage = zero_shot.BESIDE.get(method, "stage1")
    frames, masks = zero_shot.made(CONFIG, method, 1, stages.trained(CONFIG, stage) if stage else None)
    truth = zero_shot.scene(CONFIG, 1).frames
    row = run.value("psnr", method=method)
    values = json.loads((run.path / "values.json").read_text("utf-8"))["psnr"]
    assert values[1] == pytest.approx(metrics.psnr(frames[None], truth[None]).item())
    assert row["n"] == 2 and row["value"] == pytest.approx(np.mean(values))
    if masks is not None:
        here = zero_shot.scene(CONFIG, 1).mask
        there = here.reshape(8, masks.shape[1], 64 // masks.shape[1], masks.shape[2], -1).mean((2, 4)) >= 0.5
        iou = json.loads((run.path / "values.json").read_text("utf-8"))["mask_iou"][1]
        assert iou == pytest.approx((masks & there).sum() / (masks | there).sum())
    assert (masks is not None) == any(row["metric"] == "mask_iou" for row in run.metrics())
    assert (masks is None) == (method in ("without DCAM", "without MGDM", *zero_shot.BESIDE))
    assert zero_shot.measure(CONFIG, method).id == run.id


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method: got 'PoseAnimator', expected one of PoseAnimate, without PACM"):
        zero_shot.measure(CONFIG, "PoseAnimator")
