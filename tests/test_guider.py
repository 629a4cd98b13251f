"""The pose guider is the published one."""

import pytest
import torch
from golden.fill_rule import image
from goldens import BOUNDS, filled, golden, guider, keys, worst

from rainlab.method.guider import PoseGuider


def test_published_features():
    c = golden("c_pose")
    picture = torch.from_numpy(image("in/pose", (20, 128, 192, 3)))
    assert torch.equal(picture[:4], c["in/pose_u8"])
    pose = picture.permute(0, 3, 1, 2)[None].float() / 255
    assert worst(guider()(pose[:, :4]), c["out/fea32_first4"]) < BOUNDS["c_pose"]
    large = filled(PoseGuider(320), "pose_guider_320")
    crop = large(pose[:, :2, :, :64, :96])
    assert worst(crop, c["out/fea320_crop"]) < BOUNDS["c_pose"]


def test_keys_and_zero_start():
    fresh = PoseGuider()
    assert {k: list(v.shape) for k, v in fresh.state_dict().items()} == keys("rain_keys")["pose_guider"]["keys"]
    assert fresh(torch.rand(1, 1, 3, 16, 16)).abs().max() == 0


def test_wrong_size_is_named():
    with pytest.raises(ValueError, match="multiples of 8"):
        guider()(torch.zeros(1, 1, 3, 60, 64))
