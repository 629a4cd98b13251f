"""Presets hold the paper's numbers, and no override is ever ignored."""

import pytest

from rainlab.config import PAPER_TASKS, PRESETS, UNetConfig, identity, make_preset


def test_paper_numbers():
    paper = make_preset("paper")
    assert (paper.stage1.batch, paper.stage2.batch, paper.distill2d.batch, paper.distill3d.batch) == (32, 8, 8, 8)
    assert {s.learning_rate for s in (paper.stage1, paper.stage2, paper.distill2d, paper.distill3d)} == {1e-5}
    assert (paper.stream.window, paper.stream.groups, paper.stream.steps_per_group) == (16, 4, 1)
    assert (paper.data.frames, paper.data.size, paper.loss.huber_c) == (16, (768, 512), 0.001)
    steps = {task: (v["stage1.steps"], v["stage2.steps"], v["stream.guidance"]) for task, v in PAPER_TASKS.items()}
    assert steps == {"fashion": (30_000, 20_000, 2.0), "face": (60_000, 30_000, 2.5), "style": (60_000, 40_000, 3.5)}
    for overrides in PAPER_TASKS.values():
        assert make_preset("paper", overrides).distill3d.steps == 1200


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_networks(name):
    p = PRESETS[name]
    p.model.unet(p.autoencoder.latent_channels, motion=True, guidance=True)
    assert p.name == name and p.stream.window <= min(p.model.motion_length, p.data.frames - p.data.facing)
    assert 2 ** (len(p.model.guider_widths) - 1) == p.autoencoder.factor  # guider and autoencoder must meet


def test_fields_added_later_change_no_identity():
    old = identity(make_preset("tiny").distill2d)
    assert not {"optimizer", "matrix_rate", "momentum", "bf16"} & old.keys() and old["steps"] == 100
    changed = identity(make_preset("tiny", {"distill2d.optimizer": "muon"}).distill2d)
    assert changed == old | {"optimizer": "muon"}


def test_overrides():
    p = make_preset("tiny", {"stage1.steps": 7, "model.channels": [32, 64], "stage1.learning_rate": 1})
    assert (p.stage1.steps, p.model.channels, p.stage1.learning_rate) == (7, (32, 64), 1.0)
    assert make_preset("tiny").stage1.steps != 7


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"stage1.step": 7}, ValueError, "'step' is unknown"),
        ({"stage9.steps": 7}, ValueError, "'stage9' is unknown"),
        ({"stage1": 7}, ValueError, "single value"),
        ({"stage1.steps": "7"}, TypeError, "expected a int"),
        ({"stream.causal": 1}, TypeError, "expected a bool"),
        ({"stream.sink": True, "stream.causal": True}, ValueError, "sink: got it with a mask"),
        ({"stream.sink": True, "stream.cross_level": False}, ValueError, "sink: got it with a mask"),
    ],
)
def test_wrong_overrides_are_errors(overrides, error, message):
    with pytest.raises(error, match=message):
        make_preset("tiny", overrides)


def test_impossible_geometry_is_refused():
    with pytest.raises(ValueError, match="multiple of norm_groups=32"):
        UNetConfig(channels=(48, 96))
    with pytest.raises(ValueError, match="multiples of 32"):
        UNetConfig(channels=(48, 96), norm_groups=8, motion=True)
    with pytest.raises(ValueError, match="preset: got 'huge'"):
        make_preset("huge")
