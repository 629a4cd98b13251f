"""The studio's faces as clips to train on: dots that say what the face does, or leave out what gaps hide."""

import numpy as np
import pytest

from rainlab.config import DataConfig
from rainlab.data import dataset, landmarks
from rainlab.data.faces import OPENINGS, StudioFaces
from rainlab.data.studio import body, face
from rainlab.data.studio.expression import POSE

SIZE, FRAMES = (48, 48), 6


@pytest.fixture(scope="module")
def faces():
    return StudioFaces("train", 2, FRAMES, SIZE, facing=True, pause=True)


def dots(picture, part):
    return (picture == landmarks.COLOURS[part]).all(-1)


def test_a_clip_holds_a_face_and_its_dots(faces):
    clip = faces[1]
    assert clip.frames.shape == clip.condition.shape == (FRAMES, *SIZE, 3) and clip.mask.shape == (FRAMES, *SIZE)
    assert clip.flow.shape == (FRAMES - 1, *SIZE, 2) and clip.name == "train_00001"
    for part in ("jaw", "nose", "mouth", "left eye", "right eye"):
        assert all(dots(picture, part).any() for picture in clip.condition)
    on = (clip.condition.sum(-1) > 0) & (np.arange(SIZE[1]) > 0)
    assert clip.mask[on].mean() > 0.95  # dots lie on the face


def test_the_dots_are_the_26_landmarks_of_the_frame(faces):
    seeds = body.split_seeds("train", 1, 1)
    points = landmarks.to_anime(face.landmarks(seeds, faces._poses(seeds), SIZE)[0][0].numpy(), ())
    for frame, picture in zip(points, faces[1].condition, strict=True):
        column, row = (frame[landmarks.PARTS["nose"]][0] * SIZE[0]).astype(int)
        assert dots(picture, "nose")[row, column]
    whole = face.render(seeds, pose=faces._poses(seeds), size=SIZE)
    np.testing.assert_array_equal(whole.landmarks[0], face.landmarks(seeds, faces._poses(seeds), SIZE)[0][0])


def test_a_slice_is_rendered_together_and_gives_the_same_clips(faces):
    for one, other in zip(faces[:2], (faces[0], faces[1]), strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        np.testing.assert_array_equal(one.condition, other.condition)


def test_facing_faces_begin_at_rest(faces):
    pose = faces._poses(body.split_seeds("train", 1))[0]
    assert not pose[0, OPENINGS].any() and pose[1:, OPENINGS].any()
    turn = POSE.index("head_y")
    plain = StudioFaces("train", 2, FRAMES, SIZE)._poses(body.split_seeds("train", 1))[0]
    assert pose[0, turn] == pytest.approx(0.3 * plain[0, turn].item()) and plain[0, OPENINGS].any()


def test_gaps_hide_what_eyes_and_mouth_do_and_nothing_else(faces):
    gaps = StudioFaces("train", 2, FRAMES, SIZE, facing=True, pause=True, gaps=True)
    exact, hidden = faces[0], gaps[0]
    np.testing.assert_array_equal(exact.frames, hidden.frames)
    assert (exact.condition[1:] != hidden.condition[1:]).any()
    for part in ("jaw", "nose", "left brow"):
        np.testing.assert_array_equal(dots(exact.condition, part), dots(hidden.condition, part))


def test_a_configuration_names_them():
    for source, gaps in (("faces", False), ("faces with gaps", True)):
        clips = dataset.clips_of(DataConfig(source=source, height=48, width=48, clips=3, facing=True), "train")
        assert isinstance(clips, StudioFaces) and clips.gaps == gaps and clips.pause and len(clips) == 3
    assert len({str(StudioFaces("train", 2, FRAMES, SIZE, gaps=gaps).fingerprint()) for gaps in (False, True)}) == 2
