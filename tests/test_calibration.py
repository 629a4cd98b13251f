"""Drivers with known landmarks, and transforms found from one picture of each face."""

import numpy as np
import pytest
import torch

from rainlab.data import landmarks
from rainlab.data.studio import body, driver, face
from rainlab.data.studio.expression import POSE, pose_of
from rainlab.measure import morphing

WHO = body.split_seeds("val", 3)


def at_rest(count=3):
    return torch.zeros(count, 1, len(POSE), dtype=torch.float64)


def of(*poses):
    return torch.cat([pose_of(each) for each in poses])[None]


def test_a_driver_looks_like_a_face():
    points = driver.landmarks(WHO, at_rest()).numpy()[:, 0]
    assert points.shape == (3, 68, 2) and (points > 0.1).all() and (points < 0.95).all()
    for face_ in points:
        assert (np.diff(face_[:17, 0]) > 0).all() and face_[8, 1] == face_[:17, 1].max()  # jaw, chin lowest
        assert face_[17:27, 1].max() < face_[36:48, 1].min() < face_[48:, 1].min()  # brows, eyes, mouth
        assert face_[37:39, 1].max() < face_[40:42, 1].min()  # eyes are open
        np.testing.assert_allclose(face_[60:68, 0].mean(), face_[30, 0], atol=1e-6)
    assert np.ptp(points[:, 8, 1] - points[:, 27, 1]) > 0.01  # people differ


def test_a_driver_moves_as_the_pose_says():
    points = driver.landmarks(WHO[:1], of({}, {"eye_wink_left": 1.0}, {"mouth_aaa": 1.0}, {"head_y": 0.8}))[0].numpy()
    lids = np.linalg.norm(points[:, [37, 43]] - points[:, [41, 47]], axis=-1)
    assert lids[1, 1] < 0.01 * lids[0, 1] and lids[1, 0] == lids[0, 0]  # the character's left: the picture's right
    mouth = np.linalg.norm(points[:, 62] - points[:, 66], axis=-1)
    assert mouth[2] > mouth[0] + 0.03
    assert points[3, 30, 0] > points[0, 30, 0] + 0.03 and np.allclose(points[3, :, 1], points[0, :, 1])
    with pytest.raises(ValueError, match="expected \\(1, frames, 45\\)"):
        driver.landmarks(WHO[:1], torch.zeros(1, 45))


def test_a_calibration_makes_the_face_at_rest_the_character_s():
    """Neither the driver's place nor its tilt and size matter; the truth is the character's own dots."""
    points = driver.landmarks(WHO, at_rest()).numpy()[:, 0]
    dots = landmarks.to_anime(face.landmarks(WHO, at_rest(), (64, 64))[0][:, 0].double().numpy(), ())
    angle = 0.2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for real, wanted in zip(points, dots, strict=True):
        found = landmarks.calibrate(real, wanted)
        width = landmarks.face_width(wanted)
        error = np.linalg.norm(found(real) - wanted, axis=-1) / width
        plain = np.linalg.norm(landmarks.to_anime(real, ()) - wanted, axis=-1) / width
        assert error.mean() < 0.04 < 0.15 < plain.mean()
        for part in ("left eye", "right eye", "mouth", "nose"):
            middle = (found(real) - wanted)[landmarks.PARTS[part]].mean(0)
            assert np.linalg.norm(middle) < 0.01 * width
        moved = 0.7 * real @ turn + (0.1, -0.2)
        again = landmarks.calibrate(moved, wanted)(moved)
        upright = (again - again[landmarks.PARTS["jaw"]].mean(0)) @ turn.T
        expected = found(real) - found(real)[landmarks.PARTS["jaw"]].mean(0)
        np.testing.assert_allclose(upright, expected, atol=0.01 * width)


def test_a_calibrated_driver_still_opens_and_closes():
    poses = of({}, {"eye_wink_left": 1.0, "eye_wink_right": 1.0}, {"mouth_aaa": 1.0})
    real = driver.landmarks(WHO[:1], poses)[0].numpy()
    wanted = landmarks.to_anime(face.landmarks(WHO[:1], at_rest(1))[0][0, 0].double().numpy(), ())
    dots = landmarks.calibrate(real[0], wanted)(real)
    eye = np.ptp(dots[:, landmarks.PARTS["left eye"], 1], axis=1)
    mouth = np.ptp(dots[:, landmarks.PARTS["mouth"], 1], axis=1)
    assert eye[1] < 0.3 * eye[0] and mouth[2] > 2 * mouth[0]


def test_a_face_that_cannot_be_calibrated_on_is_refused():
    real = driver.landmarks(WHO[:1], of({"eye_wink_left": 1.0, "eye_wink_right": 1.0}))[0, 0].numpy()
    dots = landmarks.to_anime(real, ())
    real[37:42, 1] = real[36, 1]
    real[39] = real[36] + (0.1, 0.0)
    with pytest.raises(ValueError, match="the driver's left eye has no extent, expected a face at rest, eyes open"):
        landmarks.calibrate(real, dots)
    with pytest.raises(ValueError, match="a jaw without extent"):
        landmarks.calibrate(np.zeros((68, 2)) + np.arange(68)[:, None] * (1, 0), dots)
    with pytest.raises(ValueError, match="expected one face each"):
        landmarks.calibrate(real[None], dots)


def test_errors_are_recorded_by_way_and_part(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    run = morphing.calibration(pairs=3, frames=5)
    by_hand = []
    for number in range(3):
        points, truth, made = morphing.pair(number, 5)
        assert points.shape == (5, 68, 2) and truth.shape == (5, 26, 2) and made.keys() == {*morphing.WAYS}
        here, there = (x - x[:, :5].mean(1, keepdims=True) for x in (made["calibrated"], truth))
        width = np.linalg.norm(truth[:, 0] - truth[:, 4], axis=-1).mean()
        by_hand.append(100 * np.linalg.norm(here - there, axis=-1).mean() / width)
    assert run.value("landmark_error", way="calibrated", part="all")["value"] == pytest.approx(
        np.mean(by_hand), rel=1e-5
    )
    assert {row["part"] for row in run.metrics()} == {*landmarks.PARTS, "all"}
    assert morphing.calibration(pairs=3, frames=5).path == run.path
