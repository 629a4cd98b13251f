"""Landmarks of faces against the published code's, number for number and pixel for pixel."""

import numpy as np
import pytest
from goldens import FOLDER
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from rainlab.data import landmarks
from rainlab.data.landmarks import Transform

FACES = [{key.partition("/")[2]: value for key, value in load_file(FOLDER / "i_landmarks.safetensors").items()
          if key.startswith(f"{i}/")} for i in range(3)]  # fmt: skip
WINDOW = np.s_[100:420, 100:420]  # the goldens' part of a picture of 512×512; outside all is black


@pytest.mark.parametrize("face", FACES)
def test_points_and_picture_are_the_published_code_s(face):
    real = points = face["landmarks68_f64"]
    for transform in landmarks.TRANSFORMS:
        points = transform(points)
    np.testing.assert_allclose(points, face["after_translations_f64"], atol=1e-14)
    anime = landmarks.to_anime(real)
    np.testing.assert_allclose(anime, face["points26_f64"], atol=1e-14)
    picture = landmarks.draw(anime, (512, 512), landmarks.dot_radius(real))
    np.testing.assert_array_equal(picture[WINDOW], face["image"])
    assert picture.sum() == picture[WINDOW].sum() > 0


def test_many_faces_at_once_are_each_of_them():
    real = np.stack([face["landmarks68_f64"] for face in FACES])
    np.testing.assert_allclose(landmarks.to_anime(real), [landmarks.to_anime(face) for face in real], atol=1e-15)


def test_without_transforms_the_points_are_means_of_the_real_ones():
    real = FACES[0]["landmarks68_f64"]
    plain = landmarks.to_anime(real, ())
    np.testing.assert_array_equal(plain[landmarks.PARTS["nose"]][0], (real[33] + real[30]) / 2)
    np.testing.assert_array_equal(plain[2], real[8])
    parts = [i for part in landmarks.PARTS.values() for i in range(*part.indices(26))]
    assert parts == list(range(26)) and landmarks.COLOURS.keys() == landmarks.PARTS.keys()


@given(st.floats(-np.pi, np.pi), st.floats(0.2, 5.0))
def test_transforms_go_along_with_a_face_that_turns_grows_and_moves(angle, size):
    """They are defined by the face's own axes and lengths, so it does not matter which comes first."""
    c, s = np.cos(angle), np.sin(angle)
    moved = lambda points: size * points @ np.array([[c, s], [-s, c]]) + (0.3, -0.2)  # noqa: E731
    real = FACES[1]["landmarks68_f64"]
    np.testing.assert_allclose(landmarks.to_anime(moved(real)), moved(landmarks.to_anime(real)), atol=1e-9)


def test_scale_and_shift_by_hand():
    points = np.zeros((68, 2))
    points[:4] = [[1, 1], [3, 1], [3, 2], [1, 2]]  # mean (2, 1.5), x axis to the right, y axis down
    points[10] = 4, 3  # five from the origin, where 11 is
    changed = Transform(0, 4, (0, 1), scale=(2, 3), shift=(0.1, -0.2), unit=(10, 11))(points)
    np.testing.assert_allclose(changed[:4], [[0.5, -1], [4.5, -1], [4.5, 2], [0.5, 2]])
    np.testing.assert_array_equal(changed[4:], points[4:])
    assert points[0, 0] == 1  # the given ones are left


def test_dots():
    points = np.full((26, 2), np.nan)
    points[11], points[15] = (0.5, 0.25), (0.5, 0.25)  # mouth, and over it the nose
    picture = landmarks.draw(points, (40, 20), 1)
    assert [tuple(place) for place in np.argwhere(picture.any(-1))] == [(9, 10), (10, 9), (10, 10), (10, 11), (11, 10)]
    assert picture[10, 10].tolist() == list(landmarks.COLOURS["nose"])
    points[0] = -0.5, 3.0
    np.testing.assert_array_equal(landmarks.draw(points, (40, 20), 1), picture)  # outside: nothing


def test_larger_faces_and_pictures_have_larger_dots():
    real = FACES[0]["landmarks68_f64"]
    assert landmarks.dot_radius(real) == 3 and landmarks.dot_radius(2 * real) == 6
    assert landmarks.dot_radius(real, 1024) == 6 and landmarks.dot_radius(real, 64) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: landmarks.to_anime(np.zeros((5, 26, 2))), r"got shape \(5, 26, 2\), expected \(…, 68, 2\)"),
        (lambda: landmarks.draw(np.zeros((68, 2)), (8, 8), 1), r"got shape \(68, 2\), expected \(…, 26, 2\)"),
        (lambda: landmarks.draw(np.zeros((26, 2)), (8, 8), 0), "radius: got 0, expected at least 1"),
        (lambda: Transform(60, 70, (0, 4)), "points 60 to 70"),
        (lambda: Transform(36, 42, (0, 6)), r"got axis \(0, 6\), expected two different points, numbers 0 to 5"),
        (lambda: Transform(36, 42, (3, 3)), "two different points"),
        (lambda: Transform(36, 42, (0, 3), unit=(33, -1)), r"got unit \(33, -1\)"),
        (lambda: Transform(36, 42, (0, 3), shift=(0.1, 0)), "a shift needs a unit"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
