"""Procedural faces: their ground truth is checked against their own pictures, their bytes against themselves."""

import json

import numpy as np
import pytest
import torch
from goldens import FOLDER
from test_studio import same, warped_back

from rainlab.data import landmarks
from rainlab.data.studio import body, face, features
from rainlab.data.studio.expression import POSE, VOWELS, expressions, pose_of

SEEDS = body.split_seeds("test", 4)
LIDS = {"right": ((37, 41), (38, 40)), "left": ((43, 47), (44, 46))}


@pytest.fixture(scope="module")
def clips():
    return face.render(SEEDS, SEEDS, frames=10)


@pytest.fixture(scope="module")
def large():
    return face.render(SEEDS, SEEDS, frames=4, size=(192, 192))


def posed(*poses, size=(128, 128), seed=3, **options):
    """One character in several poses, each a dict of THA4's names."""
    pose = torch.cat([pose_of(each) for each in poses])[None]
    return face.render([int(body.split_seeds("train", 1, seed)[0])], pose=pose, size=size, **options)


def opening(clip, pairs):
    """Mean distance between pairs of landmarks, frame by frame."""
    points = clip.landmarks[0]
    return torch.stack([(points[:, a] - points[:, b]).norm(dim=-1) for a, b in pairs]).mean(0)


def test_the_pose_is_tha4_s():
    published = json.loads((FOLDER / "tha4_pose.json").read_text("utf-8"))
    assert [each["name"] for each in published] == list(POSE)
    pose = expressions(body.split_seeds("val", 40), torch.arange(1000, dtype=torch.float64) / 12)
    low, high = (torch.tensor([each["range"][i] for each in published]) for i in (0, 1))
    assert (pose.amin((0, 1)) >= low).all() and (pose.amax((0, 1)) <= high).all()
    assert (pose.amax((0, 1)) - pose.amin((0, 1)) > 0.5).all()  # every number is used
    assert pose[..., [POSE.index(name) for name in VOWELS]].sum(-1).max() <= 1


def test_a_face_moves_as_far_as_one_frame_to_the_next_can_tell():
    pose = expressions(SEEDS, torch.arange(3000, dtype=torch.float64) / 120)
    assert (pose[:, 1:] - pose[:, :-1]).abs().max() < 0.25  # a hundredth of a second


def test_shapes_types_and_ranges(clips):
    assert clips.frames.shape == (4, 10, 64, 64, 3) and clips.frames.dtype == torch.uint8
    assert clips.pose.shape == (4, 10, 45) and clips.landmarks.shape == (4, 10, 68, 2)
    assert clips.seen.shape == (4, 10, 68) and clips.mask.shape == (4, 10, 64, 64)
    assert clips.flow.shape == (4, 9, 64, 64, 2) and clips.visible.shape == (4, 9, 64, 64)
    assert 0.25 < clips.mask.float().mean() < 0.8
    seen = clips.landmarks[clips.seen]
    assert (seen > 0).float().mean() > 0.99 and (seen < 1).float().mean() > 0.99
    assert clips.frames.float().std() > 30


def test_bytes_do_not_depend_on_batch_chunks_or_start(clips, monkeypatch):
    monkeypatch.setattr(face, "CHUNK", 64 * 64 * 3)
    alone = face.render(SEEDS[1:2], SEEDS[1:2], frames=6, start=4)
    for name in ("frames", "pose", "landmarks", "seen", "mask"):
        assert torch.equal(getattr(alone, name)[0], getattr(clips, name)[1, 4:])
    assert torch.equal(alone.flow[0], clips.flow[1, 4:])
    assert not same(face.render(SEEDS[:1], SEEDS[:1] + 3, frames=1), face.render(SEEDS[:1], SEEDS[:1], frames=1))


def test_flow_leads_from_each_frame_to_the_next(large):
    seen = large.mask[:, :-1] & large.visible
    now = large.frames[:, :-1].float()
    error, unmoved = (
        (warped_back(large.frames, m) - now).abs().mean(-1)[seen] for m in (large.flow, torch.zeros_like(large.flow))
    )
    assert error.median() < 1 and unmoved.mean() > 2.5 * error.mean()
    assert torch.equal(large.flow[~large.mask[:, :-1]].unique(), torch.zeros(1))
    whole = (warped_back(large.frames, large.flow) - now).abs().mean(-1)
    assert whole[large.mask[:, :-1] & ~large.visible].mean() > 3 * error.mean()


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [("eyebrow_raised_left", 0.5, "brows"), ("iris_rotation_y", 0.6, "eyes"), ("mouth_raised_corner_left", 1, "mouth"),
     ("eye_relaxed_right", 1, "eyes")],
)  # fmt: skip
def test_features_move_over_a_head_that_stands_still(name, value, what):
    """Flow is there where the feature is and nowhere else, and it leads to where the feature has gone."""
    clip = posed({}, {name: value})
    moving = clip.flow[0, 0].abs().amax(-1) > 1e-3
    bare = posed({}, {name: value}, without=(what,))
    there = (clip.frames[0, 0] != bare.frames[0, 0]).any(-1)
    assert 4 < moving.sum() < 0.05 * moving.numel() and there[moving].float().mean() > 0.9
    at = moving & clip.visible[0, 0]
    error, unmoved = (
        (warped_back(clip.frames, m)[0, 0] - clip.frames[0, 0].float()).abs().mean(-1)[at].mean()
        for m in (clip.flow, torch.zeros_like(clip.flow))
    )
    assert error < 0.7 * unmoved


def test_landmarks_lie_on_what_they_name():
    """A pupil is dark and lies between its lids; the mouth's inside appears between its lips; left is left."""
    clip = posed({}, {"mouth_aaa": 1.0}, {"eye_wink_left": 1.0}, {"eyebrow_raised_right": 1.0})
    points = clip.landmarks[0] * 128
    frames = clip.frames[0].float()

    def at(frame, *members):
        x, y = points[frame, list(members)].mean(0)
        return frames[frame, int(y), int(x)]

    assert at(0, 36, 39, 37, 41).mean() < 100 < at(0, 30, 33).mean()  # iris, nose
    assert at(1, 62, 66)[0] > 1.5 * at(1, 62, 66)[1:].max()  # a red mouth
    assert opening(clip, [(62, 66)])[1] > opening(clip, [(62, 66)])[0] + 0.03
    assert opening(clip, LIDS["left"])[2] < 0.1 * opening(clip, LIDS["left"])[0]
    assert opening(clip, LIDS["right"])[2] == opening(clip, LIDS["right"])[0]
    right = points[:, 17:22, 1].mean(1)
    assert right[3] < right[0] - 2 and points[3, 22:27].eq(points[0, 22:27]).all()
    assert points[0, 36, 0] < points[0, 39, 0] < points[0, 42, 0] < points[0, 45, 0]  # from the picture's left


def test_points_on_the_far_side_are_not_seen():
    clip = posed({}, {"head_y": 1.0, "body_y": 1.0})
    assert clip.seen[0, 0].all() and not clip.seen[0, 1].all()
    assert clip.seen[0, 1, 36:48].any()
    turned = clip.landmarks[0, 1] - clip.landmarks[0, 0]
    assert turned[30, 0] > 0.05  # the nose goes to the picture's right, the character's left


def test_the_26_points_come_from_the_68(clips):
    points = landmarks.to_anime(clips.landmarks.numpy(), ())
    assert points.shape == (4, 10, 26, 2)
    np.testing.assert_allclose(points[..., landmarks.PARTS["nose"], :][..., 0, :],
                               clips.landmarks[:, :, [30, 33]].numpy().mean(2), atol=1e-6)  # fmt: skip
    picture = landmarks.draw(points[0, 0], (64, 64), 1)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 8  # seven parts on black


@pytest.mark.parametrize("what", features.LEFT_OUT)
def test_features_can_be_left_out(what):
    whole, bare = posed({}), posed({}, without=(what,))
    changed = (whole.frames != bare.frames).any(-1)[0, 0]
    rows = changed.nonzero()[:, 0].float()
    brows, eyes, mouth = (
        whole.landmarks[0, 0, part, 1].mean() * 128 for part in (slice(17, 27), slice(36, 48), slice(48, 68))
    )
    expected = {"brows": brows, "eyes": eyes, "mouth": mouth}[what]
    assert 10 < changed.sum() < 2000 and abs(rows.mean() - expected) < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"motion_seeds": [1]}, "got 2 identity and 1 motion seeds"),
        ({}, "got 2 identity and 0 motion seeds"),
        ({"motion_seeds": [1, 2], "size": (8, 64)}, r"got size \(8, 64\)"),
        ({"motion_seeds": [1, 2], "frames": 0}, "0 frames"),
        ({"pose": torch.zeros(2, 3, 44)}, r"expected \(2, frames, 45\)"),
        ({"pose": torch.zeros(2, 0, 45)}, "one face and one frame at least"),
        ({"pose": torch.zeros(2, 3, 45), "motion_seeds": [1, 2]}, "got motion seeds and a pose"),
        ({"motion_seeds": [1, 2], "without": ("nose",)}, "expected some of brows, eyes, mouth"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        face.render([1, 2], **arguments)
    with pytest.raises(ValueError, match=r"got size \(0, 64\)"):
        face.landmarks([1], torch.zeros(1, 1, 45), (0, 64))
    with pytest.raises(ValueError, match="expected names of POSE"):
        pose_of({"eye_wink": 1})
