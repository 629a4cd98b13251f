"""Drivers with known landmarks, and transforms found from one picture of each face."""

import micro
import numpy as np
import pytest
import torch

from rainlab.data import detect, landmarks, video
from rainlab.data.studio import body, driver, face
from rainlab.data.studio.expression import POSE, expressions, pose_of
from rainlab.measure import morphing, openings
from rainlab.training import stages

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


@pytest.mark.parametrize("name", ["head_x", "head_y"])
def test_a_driver_turns_the_way_a_character_does(name):
    """The features of both go the same way and about as far, measured by the width of their faces."""
    poses = of({}, {name: 0.6}, {name: -0.6}).repeat(3, 1, 1)

    def gone(points):
        """How far eyes, nose and mouth go against the jaw's ends: (2 poses, x and y)."""
        dots = landmarks.to_anime(points.double().numpy(), ())
        inner = dots[:, :, 11:].mean(2) - dots[:, :, [0, 4]].mean(2)
        return (inner[:, 1:] - inner[:, :1]).mean(0) / landmarks.face_width(dots[:, 0]).mean()

    ours, theirs = gone(driver.landmarks(WHO, poses)), gone(face.landmarks(WHO, poses)[0])
    assert np.abs(ours).max() > 0.03
    np.testing.assert_allclose(ours, theirs, atol=0.4 * np.abs(ours).max())


def slope(points):
    """Angle of the line between the eyes' middles in radians, downwards to the right."""
    left, right = (points[..., part, :].double().mean(-2) for part in (slice(36, 42), slice(42, 48)))
    return torch.atan2((right - left)[..., 1], (right - left)[..., 0])


def test_heads_tilt_when_they_tilt_and_not_when_they_look_aside():
    poses = of({"head_y": 1.0}, {"head_y": -1.0}, {"neck_z": 0.6}, {"neck_z": -0.6})
    made = [driver.landmarks(WHO[:1], poses)[0], face.landmarks(WHO[:1], poses, (64, 64))[0][0]]
    ours, theirs = map(slope, made)
    for angles in (ours, theirs):
        assert angles[:2].abs().max() < 0.03 and angles[2] > 0.2 and angles[3] < -0.2
    torch.testing.assert_close(ours[2:], theirs[2:], atol=0.06, rtol=0)


def test_a_driver_smirks_on_its_left():
    points = driver.landmarks(WHO[:1], of({}, {"mouth_smirk": 1.0}))[0].numpy()
    assert points[1, 54, 1] < points[0, 54, 1] - 0.005 and points[1, 48, 1] == points[0, 48, 1]


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
    poses = of({}, {"eye_wink_left": 1.0}, {"eye_wink_right": 1.0}, {"head_y": 1.0}, {"head_y": -1.0})
    drivers = driver.landmarks(WHO[:1], poses)[0].numpy()
    characters = landmarks.to_anime(face.landmarks(WHO[:1], poses)[0][0].double().numpy(), ())
    real, dots = drivers[0], characters[0]
    for number, message in ((1, "right eye is nearly shut"), (2, "left eye is nearly shut"),
                            (3, r"looks aside, nose \+0"), (4, r"looks aside, nose -0")):  # fmt: skip
        with pytest.raises(ValueError, match=f"the driver.*{message}"):
            landmarks.calibrate(drivers[number], dots)
        with pytest.raises(ValueError, match=f"the character.*{message}"):
            landmarks.calibrate(real, characters[number])
    lost = real.copy()
    lost[[3, 40]] = np.nan
    with pytest.raises(ValueError, match=r"the driver's points \[3, 40\] are not finite"):
        landmarks.calibrate(lost, dots)
    flat = real.copy()
    flat[60:68] = real[60]
    with pytest.raises(ValueError, match="the driver's mouth has no extent"):
        landmarks.calibrate(flat, dots)
    with pytest.raises(ValueError, match="a jaw without extent"):
        landmarks.calibrate(np.zeros((68, 2)) + np.arange(68)[:, None] * (1, 0), dots)
    with pytest.raises(ValueError, match="expected one face each"):
        landmarks.calibrate(real[None], dots)


def test_errors_are_recorded_by_way_and_part(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    run = morphing.calibration(pairs=3, frames=5)
    by_hand, at_rest, turned = [], [], []
    for number in range(3):
        points, truth, made = morphing.pair(number, 5)
        assert points.shape == (5, 68, 2) and truth.shape == (5, 26, 2) and made.keys() == {*morphing.WAYS}
        here, there = (x - x[:, :5].mean(1, keepdims=True) for x in (made["calibrated"], truth))
        width = np.linalg.norm(truth[:, 0] - truth[:, 4], axis=-1).mean()
        far = 100 * np.linalg.norm(here - there, axis=-1) / width
        by_hand.append(far[1:].mean())
        at_rest.append(far[0].mean())
        turn = morphing.cast(number, 5)[2][0, 1:, POSE.index("head_y")].abs().numpy()
        half = (turn >= 0.3) & (turn < 0.6)
        turned += [far[1:][half].mean()] if half.any() else []
    row = run.value("turned_error", way="calibrated", turned=0.3)
    assert row["n"] == len(turned) > 0 and row["value"] == pytest.approx(np.mean(turned), rel=1e-5)
    assert run.value("landmark_error", way="calibrated", part="all")["value"] == pytest.approx(
        np.mean(by_hand), rel=1e-5
    )
    rest = run.value("rest_error", way="calibrated", part="all")["value"]
    assert rest == pytest.approx(np.mean(at_rest), rel=1e-5) and rest < np.mean(by_hand)
    assert {row["part"] for row in run.metrics() if "part" in row} == {*landmarks.PARTS, "all"}
    assert morphing.calibration(pairs=3, frames=5).path == run.path


def test_following_is_measured_by_way_and_part(monkeypatch, tmp_path):
    """Random networks: what is measured and recorded is the same. Truth follows its driver, noise does not."""
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    config = micro.micro(data__source="faces", data__height=64, data__width=64)
    monkeypatch.setattr(stages, "trained", lambda *given: micro.model(config))

    def seen(videos):
        """As if an eye's opening were how much of its half of the upper picture is white."""
        bright = (videos.astype(float).min(-1) > 200)[:, :, : videos.shape[2] // 2]
        left, right = (half.mean((2, 3)) for half in np.split(bright, 2, axis=3))
        return np.stack([left, right, left + right], -1)

    monkeypatch.setattr(openings, "seen", seen)
    run = morphing.following(config, pairs=2, frames=17, record=True)
    rows = {(row["driven"], row["part"]): row for row in run.metrics()}
    assert rows.keys() == {(way, part) for way in morphing.DRIVEN for part in (*openings.NAMES, "eyes")}
    assert all(-1 <= row["value"] <= 1 and row["n"] == 2 for row in rows.values())
    eyes = np.mean([rows["truth", name]["value"] for name in openings.NAMES[:2]])
    assert rows["truth", "eyes"]["value"] == pytest.approx(eyes)
    assert morphing.following(config, pairs=2, frames=17).id == run.id
    for other in ({"pairs": 3}, {"stage": "stage1"}, {"inputs_from": micro.micro(train_autoencoder__seed=1)}):
        with pytest.raises(FileNotFoundError, match="nothing recorded"):
            morphing.following(config, **{"pairs": 2, "frames": 17} | other)


def test_drivers_tell_what_the_characters_are_to_do():
    config = micro.micro(data__source="faces", data__height=64, data__width=64)
    told, films = morphing.driven(config, [3], 9, micro.model(config))
    points, _, _ = morphing.pair(3, 9)
    np.testing.assert_allclose(told[0], openings.openings(points))
    assert [*films] == [*morphing.DRIVEN] and {film.shape for film in films.values()} == {(1, 9, 64, 64, 3)}
    who, _, pose = morphing.cast(3, 9)
    np.testing.assert_array_equal(films["truth"], face.render(who, pose=pose).frames)
    assert morphing._correlation(np.arange(4.0), np.ones(4)) == 0


def test_one_driver_moves_many_characters():
    points, dots, made = morphing.pair(3, 9, by=5)
    np.testing.assert_array_equal(points, morphing.pair(5, 9)[0])
    np.testing.assert_allclose(dots[0], morphing.pair(3, 9)[1][0])  # its own face at rest
    assert not np.allclose(dots[4], morphing.pair(3, 9)[1][4])
    jaw = landmarks.PARTS["jaw"]
    ours, theirs = (x - x[:, jaw].mean(1, keepdims=True) for x in (made["calibrated"], dots))
    far = np.linalg.norm(ours - theirs, axis=-1).mean() / landmarks.face_width(dots[0])
    assert far < 0.1


def test_a_talking_head_is_recorded_as_points_and_nothing_else(monkeypatch, tmp_path):
    """13 frames at 24 a second of which the detector finds all but two; kept at 12 a second."""
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path / "runs"))
    with pytest.raises(FileNotFoundError, match="give a film of a face, and install"):
        monkeypatch.setattr(morphing.runs, "find", lambda name: None)
        morphing.talking_head()
    film = np.zeros((13, 32, 48, 3), np.uint8)
    film[:] = np.linspace(0, 240, 13, dtype=np.uint8)[:, None, None, None]
    video.write_video(tmp_path / "film.mp4", film, 24.0)
    poses = expressions(WHO[:1], torch.arange(13, dtype=torch.float64) / 24)
    truth = 32 * driver.landmarks(WHO[:1], poses)[0]

    def find(picture):
        number = round(float(picture.mean()) / 20)  # 0 … 12
        return None if number in (0, 8) else np.concatenate([truth[number], np.ones((68, 1))], 1)

    monkeypatch.setattr(detect, "face_landmarks", lambda device: detect.Detector("eyes", find))
    run = morphing.talking_head(tmp_path / "film.mp4")
    assert run.value("frames")["value"] == 6 and run.value("found")["value"] == pytest.approx(4 / 6)
    kept = morphing.points_of(run)
    expected = truth.numpy()[[2, 2, 4, 6, 6, 10]] / 32  # what is missing is taken from the neighbour
    np.testing.assert_allclose(kept, expected, atol=1e-4)
    assert {file.name for file in run.path.iterdir()} <= {*morphing.runs.FILES, "values.json", ".lock"}
    assert morphing.talking_head(tmp_path / "film.mp4").id == run.id
    finer = morphing.points_of(morphing.talking_head(tmp_path / "film.mp4", fps=48.0))
    assert len(finer) == 26 and np.array_equal(finer[8], finer[9])  # a slower film shows each frame twice
    with pytest.raises(ValueError, match="got 13 frames at 24 a second, expected at least one at 1 a second"):
        morphing.talking_head(tmp_path / "film.mp4", fps=1.0)
    with pytest.raises(ValueError, match="got no face in 1 frames"):
        (run.path / "values.json").write_text('{"points": [null]}')
        morphing.points_of(run)


def test_the_face_most_at_rest_is_found():
    poses = of({"mouth_aaa": 1.0}, {"head_y": 1.0}, {}, {"eye_wink_left": 1.0}, {})
    faces = driver.landmarks(WHO[:1], poses)[0].numpy().copy()
    assert landmarks.most_at_rest(faces) == 2
    faces[2, 5] = np.nan
    assert landmarks.most_at_rest(faces) == 4
    with pytest.raises(ValueError, match="got 2 frames without a face at rest"):
        landmarks.most_at_rest(faces[[1, 2]])
    with pytest.raises(ValueError, match=r"expected \(…, 68, 2\)"):
        landmarks.most_at_rest(faces[:, :60])
