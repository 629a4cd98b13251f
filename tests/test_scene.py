"""Streets with exact depth, in many styles: their ground truth is checked against their own pictures."""

import numpy as np
import pytest
import torch
from test_studio import warped_back

from rainlab.config import DataConfig
from rainlab.data import dataset
from rainlab.data.scenes import StudioScenes
from rainlab.data.studio import body, scene

SEEDS = body.split_seeds("test", 4)
FIELDS = ("frames", "depth", "mask", "flow", "visible")


@pytest.fixture(scope="module")
def passing():
    """Large plain pictures from a moving camera."""
    return scene.render(SEEDS, 4, (160, 160), moving=True, styles="plain")


def test_shapes_types_and_ranges(passing):
    assert passing.frames.shape == (4, 4, 160, 160, 3) and passing.frames.dtype == torch.uint8
    assert passing.depth.shape == passing.mask.shape == (4, 4, 160, 160)
    assert passing.flow.shape == (4, 3, 160, 160, 2) and passing.visible.shape == (4, 3, 160, 160)
    assert 0.05 < passing.mask.float().mean() < 0.6 and passing.frames.float().std() > 30
    assert passing.depth.min() == 0 and 0.6 < passing.depth.max() <= 1


def test_near_things_cover_far_ones(passing):
    """The ground is nearer the lower it is seen; what stands on it is as near as its foot, so nearer than the wall."""
    ground = torch.where(passing.mask, torch.nan, passing.depth)
    column = ground.nanmedian(-1).values[:, :, 80:]  # row by row, below the horizon
    steps = column.diff(dim=-1)
    assert (steps[~steps.isnan()] >= 0).all() and column[:, :, -1].nanmean() > 0.5
    assert passing.depth[passing.mask].mean() > 2 * ground[:, :, :80].nanmean()


def test_flow_leads_from_each_frame_to_the_next(passing):
    now = passing.frames[:, :-1].float()
    for part in (passing.mask[:, :-1], ~passing.mask[:, :-1]):
        seen = part & passing.visible
        error, unmoved = (
            (warped_back(passing.frames, m) - now).abs().mean(-1)[seen]
            for m in (passing.flow, torch.zeros_like(passing.flow))
        )
        assert error.median() < 1.5 and error.mean() < 0.5 * unmoved.mean()


def test_a_camera_that_stands_sees_a_ground_that_stands():
    still, moving = (scene.render(SEEDS, 3, moving=moves, styles="plain") for moves in (False, True))
    bare = ~still.mask[:, :-1]
    assert still.flow[bare].abs().max() < 1e-3 and still.flow[~bare].abs().max() > 0.5
    assert moving.flow[~moving.mask[:, :-1]].abs().mean() > 0.2
    mixed = scene.render(SEEDS, 3, moving=torch.tensor([True, False, True, False]), styles="plain")
    for i, other in enumerate((moving, still, moving, still)):
        assert torch.equal(mixed.frames[i], other.frames[i])


def test_near_things_move_more_than_far_ones(passing):
    speed = passing.flow[..., 0].abs()
    bare = ~passing.mask[:, :-1]
    near, far = (bare & passing.visible & part for part in (passing.depth[:, :-1] > 0.4, passing.depth[:, :-1] < 0.1))
    assert speed[near].mean() > 2 * speed[far].mean() > 0


def test_bytes_do_not_depend_on_batch_chunks_or_start(monkeypatch):
    together = scene.render(SEEDS, 6, moving=True)
    monkeypatch.setattr(scene, "CHUNK", 64 * 64 * 2)
    alone = scene.render(SEEDS[1:2], 4, start=2, moving=True)
    for name in FIELDS:
        assert torch.equal(getattr(alone, name)[0], getattr(together, name)[1, 2:])
    paused = scene.render(SEEDS[1:2], 3, moving=True, pause=[3])
    assert torch.equal(paused.frames[0], together.frames[1, [0, 4, 5]])


def test_styles_change_the_picture_and_nothing_else():
    made = {name: scene.render(SEEDS, 2, (96, 96), styles=name) for name in scene.STYLES}
    for name, other in made.items():
        for field in FIELDS[1:]:
            assert torch.equal(getattr(other, field), getattr(made["plain"], field))
        assert name == "plain" or (other.frames != made["plain"].frames).float().mean() > 0.3
    colours = {name: [len(clip.view(-1, 3).unique(dim=0)) for clip in other.frames] for name, other in made.items()}
    assert max(colours["duotone"]) <= 4  # as many as it has levels
    edges = made["comic"].frames.float().mean(-1) < 25
    crossing = made["comic"].mask[..., 1:] != made["comic"].mask[..., :-1]
    assert edges[..., :-1][crossing].float().mean() > 0.95  # an outline where things end


def test_seeds_draw_styles_of_their_own():
    look = scene.style(body.split_seeds("train", 400), 400)
    for name in ("palette", "levels", "outline", "hatching"):
        assert len(look[name].unique()) > 1 and 0.05 < (look[name] > 0).float().mean() < 0.95
    one, other = (scene.render(SEEDS[:1], 1, styles=seeds).frames for seeds in ([5], [6]))
    assert (one != other).any()


def test_clips_are_driven_by_depth():
    clips = StudioScenes("train", 2, 4, (48, 48), facing=True, pause=True)
    clip = clips[1]
    assert clip.frames.shape == clip.condition.shape == (4, 48, 48, 3) and clip.flow.shape == (3, 48, 48, 2)
    assert (clip.condition == clip.condition[..., :1]).all() and len(np.unique(clip.condition)) > 20
    np.testing.assert_array_equal(clips[0:2][1].condition, clip.condition)
    found = dataset.clips_of(DataConfig(source="scenes", height=48, width=48, clips=3), "train")
    assert isinstance(found, StudioScenes) and len(found) == 3
    prints = [StudioScenes("train", 2, moving=moving, styles=name).fingerprint()
              for moving in (None, False, True) for name in (None, "comic")]  # fmt: skip
    assert len({str(each) for each in prints}) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "got 0 seeds"),
        ({"size": (8, 64)}, r"size \(8, 64\)"),
        ({"frames": 0}, "0 frames"),
        ({"fps": 0}, "fps 0"),
        ({"styles": "oil"}, "expected one of plain, comic, duotone, etching"),
        ({"styles": [1]}, "got 1 seeds, expected 2"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scene.render(**({"seeds": [1, 2]} | arguments))
