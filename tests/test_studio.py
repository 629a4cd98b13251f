"""The studio: its ground truth is checked against its own pictures, and its bytes against themselves."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainlab.data.studio import body
from rainlab.data.studio.body import pauses, render, split_seeds
from rainlab.data.studio.motion import movement
from rainlab.data.studio.people import Lots
from rainlab.data.studio.raster import GEOMETRY, NOTHING, cover, flow, place, shapes, surface, winner

SEEDS = split_seeds("test", 6)


def same(a, b):
    return all(torch.equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))


def warped_back(frames, motion):
    """Frames 1 … of (b, f, h, w, 3), each seen through the flow that leads to it: the picture before."""
    b, f, h, w, _ = frames.shape
    i, j = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    where = torch.stack([(j + motion[..., 0]) / (w - 1), (i + motion[..., 1]) / (h - 1)], -1) * 2 - 1
    later = frames[:, 1:].flatten(0, 1).permute(0, 3, 1, 2).float()
    back = torch.nn.functional.grid_sample(later, where.flatten(0, 1), padding_mode="border", align_corners=True)
    return back.permute(0, 2, 3, 1).view(b, f - 1, h, w, 3)


@pytest.fixture(scope="module")
def clips():
    return render(SEEDS, SEEDS + 300, frames=12)


@pytest.fixture(scope="module")
def large():
    """Pictures so large that interpolation is no longer what limits a comparison."""
    return render(SEEDS, SEEDS, frames=3, size=(256, 192))


def test_shapes_types_and_ranges(clips):
    b, f, h, w = len(SEEDS), 12, 64, 48
    expected = {
        "frames": ((b, f, h, w, 3), torch.uint8),
        "keypoints": ((b, f, 18, 3), torch.float32),
        "mask": ((b, f, h, w), torch.bool),
        "depth": ((b, f, h, w), torch.float32),
        "flow": ((b, f - 1, h, w, 2), torch.float32),
        "visible": ((b, f - 1, h, w), torch.bool),
    }
    assert {k: (tuple(v.shape), v.dtype) for k, v in vars(clips).items()} == expected
    assert torch.equal(clips.depth > 0, clips.mask)
    assert clips.depth.max() <= 1
    assert set(clips.keypoints[..., 2].unique().tolist()) == {0.0, 1.0}
    assert render(SEEDS[:1], SEEDS[:1], frames=1).flow.shape == (1, 0, h, w, 2)


def test_bytes_do_not_depend_on_batch_chunks_or_start(clips, monkeypatch):
    assert same(clips, render(SEEDS, SEEDS + 300, frames=12))
    alone = render(SEEDS[2:3], SEEDS[2:3] + 300, frames=12)
    monkeypatch.setattr(body, "CHUNK", 5 * 64 * 48)
    assert same(clips, render(SEEDS, SEEDS + 300, frames=12))
    later = render(SEEDS[2:3], SEEDS[2:3] + 300, frames=5, start=7)
    for name, value in vars(alone).items():
        assert torch.equal(value, getattr(clips, name)[2:3]), name
        assert torch.equal(value[:, 7:], getattr(later, name)), name


def test_seeds_make_the_difference():
    people, moves = render([1, 2, 3], [5, 5, 5], frames=1), render([1, 1, 1], [5, 6, 7], frames=1)
    for clips in (people, moves):
        first, second, third = clips.frames
        assert min((a.float() - b.float()).abs().mean() for a, b in ((first, second), (second, third))) > 2
    colour = people.frames[:, 0, 0, 0].float()  # a corner of the backdrop belongs to the character's identity
    assert (colour[0] - colour[1]).abs().max() > 3
    assert torch.equal(moves.frames[0, 0, 0, 0], moves.frames[1, 0, 0, 0])


def test_splits_are_disjoint():
    seeds = {split: set(split_seeds(split, 50, start=10).tolist()) for split in body.SPLITS}
    assert all(len(s) == 50 for s in seeds.values())
    assert len(set.union(*seeds.values())) == 150
    assert set(split_seeds("val", 20).tolist()) & seeds["val"] == set(split_seeds("val", 10, start=10).tolist())
    with pytest.raises(ValueError, match="expected one of train, val, test"):
        split_seeds("valid", 3)


def test_flow_leads_from_each_frame_to_the_next(large):
    seen = large.mask[:, :-1] & large.visible
    now = large.frames[:, :-1].float()
    error, unmoved = (
        (warped_back(large.frames, m) - now).abs().mean(-1)[seen] for m in (large.flow, torch.zeros_like(large.flow))
    )
    assert error.mean() < 4  # grey levels: light stays where it is while the body turns under it
    assert error.median() < 1.5
    assert unmoved.mean() > 2.5 * error.mean()
    assert torch.equal(large.flow[~large.mask[:, :-1]].unique(), torch.zeros(1))


def test_visible_tells_what_the_flow_cannot_show(large):
    figure = large.mask[:, :-1]
    error = (warped_back(large.frames, large.flow) - large.frames[:, :-1]).abs().mean(-1)
    assert 0.8 < large.visible[figure].float().mean() < 0.995
    assert error[figure & ~large.visible].mean() > 3 * error[figure & large.visible].mean()
    uncovered = ~figure & ~large.mask[:, 1:]
    assert large.visible[uncovered].all()
    assert not large.visible[~figure & large.mask[:, 1:]].any()


def test_still_holds_the_pose():
    clips = render(SEEDS, SEEDS, frames=3, start=40, still=True)
    assert torch.equal(clips.frames, clips.frames[:, :1].expand_as(clips.frames))
    assert torch.equal(clips.frames[:, 0], render(SEEDS, SEEDS, frames=1, start=40).frames[:, 0])
    assert clips.flow.abs().max() < 1e-4
    assert clips.visible.all()


def test_facing_motions_begin_in_front_and_mostly_stay_there():
    seeds, time = split_seeds("train", 400), torch.arange(72).double() / 12
    yaw = movement(seeds, time, facing=True)["yaw"].rad2deg()
    assert yaw[:, 0].abs().max() < 40 and yaw[:, 0].abs().max() > 30
    within = yaw.abs().amax(1) < 80
    assert 0.7 < within.double().mean() < 0.8
    long = movement(seeds[~within], torch.arange(600).double() / 12, facing=True)["yaw"]
    assert (long.amax(1) - long.amin(1) > 2 * torch.pi).double().mean() > 0.9  # all the way round
    shoulders = render(seeds[:20], seeds[:20], frames=1, facing=True).keypoints[:, 0, :, 0]
    assert (shoulders[:, 5] > shoulders[:, 2]).all()


def test_a_pause_leaves_out_what_follows_the_first_frame():
    clips = render(SEEDS[:2], SEEDS[:2], frames=4, facing=True, pause=[5, 20])
    whole = render(SEEDS[:2], SEEDS[:2], frames=24, facing=True)
    for i, pause in enumerate((5, 20)):
        assert torch.equal(clips.frames[i], whole.frames[i, [0, *range(1 + pause, 4 + pause)]])
    drawn = pauses(torch.arange(500), 8, 56)
    assert (drawn.min(), drawn.max()) == (8, 56)


def test_keypoints_lie_on_the_body(clips):
    x, y, confidence = clips.keypoints.unbind(-1)
    assert ((x[confidence > 0] > -0.5) & (x[confidence > 0] < 47.5)).all()
    b, f, point = (confidence > 0).nonzero(as_tuple=True)
    on_body = clips.mask[b, f, y[b, f, point].round().long(), x[b, f, point].round().long()]
    assert on_body.all()


def test_front_and_back_are_told_apart():
    clips = render(split_seeds("train", 40), split_seeds("train", 40), frames=24, fps=2)
    x, _, confidence = clips.keypoints.unbind(-1)
    width = x[..., 5] - x[..., 2]  # left less right shoulder: positive when the character faces the viewer
    front, back = width > 0.9 * width.max(), width < 0.9 * width.min()
    assert front.sum() > 20 and back.sum() > 20
    assert confidence[front][:, 0].mean() > 0.99  # the nose
    assert confidence[back][:, [0, 14, 15]].max() == 0  # nose and eyes
    assert (x[..., 14] < x[..., 15])[front].all()


def test_near_things_are_near():
    clips = render(split_seeds("train", 40), split_seeds("train", 40), frames=12, fps=2)
    x, y, confidence = clips.keypoints.unbind(-1)
    depth = []
    for shoulder in (2, 5):
        at = y[..., shoulder].round().long().clamp(0, 63) * 48 + x[..., shoulder].round().long().clamp(0, 47)
        depth.append(clips.depth.flatten(2).gather(2, at[..., None])[..., 0])
    right_side = (confidence[..., 16] > 0) & (confidence[..., 17] == 0)  # only the right ear is seen
    nearer = (depth[0] - depth[1])[right_side]
    assert len(nearer) > 20
    assert (nearer > 0).float().mean() > 0.8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1]), "2 identity and 1 motion"),
        (([], []), "at least one"),
        (([1], [1], 0), "0 frames"),
        (([1], [1], 2, (8, 6)), r"size \(8, 6\)"),
        (([1], [1], 2, (64, 48), 0), "fps 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        render(*arguments)


def test_lots_are_uniform_and_independent():
    seeds = torch.arange(4000)
    a, b = Lots(seeds)("a"), Lots(seeds)("b")
    for lots in (a, b):
        assert torch.histc(lots, 10, 0, 1).sub(400).abs().max() < 100
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.06
    assert abs(torch.corrcoef(torch.stack([a[1:], a[:-1]]))[0, 1]) < 0.06
    assert torch.equal(Lots(seeds[7:8])("a"), a[7:8])
    share = Lots(seeds).pick("c", (1, 3)).double().mean()
    assert 0.71 < share < 0.79


def capsules(*frames):
    """Shapes of frames, each a list of (start, end, radius, roll) in pixels."""
    start, end, radius, roll = (
        torch.tensor([[capsule[i] for capsule in frame] for frame in frames], dtype=torch.float64) for i in range(4)
    )
    one = torch.ones_like(roll)
    return shapes(start, end, torch.stack([radius, radius], -1), one, 0 * one, one, roll)


def test_cover_measures_area_and_order():
    ball = ((20, 20, 0), (20, 20, 0), 8.0, 0.0)
    nearer = ((26, 20, 12), (26, 20, 12), 5.0, 0.0)
    front, back = cover(capsules([ball]), 40, 40)
    assert front["a"].sum().item() == pytest.approx(math.pi * 64, rel=0.01)
    assert back["a"].max() == 0
    both = [winner(*cover(capsules(order), 40, 40))[0].view(40, 40) for order in ([ball, nearer], [nearer, ball])]
    assert both[0][20, 26] == 1 and both[0][20, 14] == 0 and both[0][2, 2] == NOTHING
    assert torch.equal(both[0] == 1, both[1] == 0)


def test_flow_of_shifts_turns_and_cover():
    def run(before, after):
        figure = capsules(before, after)
        owner = winner(*cover(figure, 40, 40))[0]
        motion, seen = flow(figure, owner, torch.tensor([0]), torch.tensor([1]), 40, 40)
        return motion.view(40, 40, 2), seen.view(40, 40)

    bar, far = ((20, 8, 0), (20, 30, 0), 6.0, 0.0), ((35, 20, 9), (35, 20, 9), 3.0, 0.0)
    motion, seen = run([bar, far], [((23, 6, 0), (23, 28, 0), 6.0, 0.0), far])
    assert torch.allclose(motion[10:28, 16:25], torch.tensor([3.0, -2.0]), atol=1e-3)
    assert seen[10:28, 16:25].all()
    motion, seen = run([bar, far], [((20, 8, 0), (20, 30, 0), 6.0, math.pi / 4), far])
    assert torch.allclose(motion[20, 20], torch.tensor([6 * math.sin(math.pi / 4), 0]), atol=1e-2)
    assert not seen[20, 25] and seen[20, 15]  # turned away to the right
    motion, seen = run([bar, far], [bar, ((20, 20, 9), (20, 20, 9), 3.0, 0.0)])
    assert not seen[20, 20] and seen[12, 20] and seen[20, 35]  # the ball now hides the bar, and has come along
    motion, seen = run([bar, far], [bar, ((41, 20, 9), (41, 20, 9), 3.0, 0.0)])
    assert not seen[20, 35]  # it left the picture


@given(
    st.lists(st.floats(-20, 60), min_size=4, max_size=4),
    st.floats(2, 9),
    st.floats(2, 9),
    st.floats(1, 4),
    st.floats(-0.9, 0.9),
    st.floats(0.05, 0.95),
)
def test_place_inverts_surface(ends, r1, r2, blunt, off_axis, along):
    x1, y1, x2, y2 = ends
    number = torch.tensor(1.0, dtype=torch.float64)
    figure = shapes(
        torch.tensor([[[x1, y1, 0.0]]], dtype=torch.float64),
        torch.tensor([[[x2, y2 + 3, 5.0]]], dtype=torch.float64),
        torch.tensor([[[r1, r2]]], dtype=torch.float64),
        *(v.expand(1, 1) for v in (number, 0 * number, blunt * number, 0.3 * number)),
    )
    g = dict(zip(GEOMETRY, figure.geometry[:, 0], strict=True))
    length = g["length"] + (r1 + r2) / blunt
    a = along * length - r1 / blunt
    t = (a / g["length"]).clamp(0, 1)
    r = g["r"] + t * g["dr"]
    e = (a - t * g["length"]) * blunt / r
    across = off_axis * r * (1 - e * e).clamp(min=0).sqrt()
    x, y = g["x"] + a * g["dx"] + across * g["dy"], g["y"] + a * g["dy"] - across * g["dx"]
    back = place(g, *surface(g, x, y)[:3])
    assert torch.allclose(torch.stack(back), torch.stack([x, y]), atol=2e-2)
