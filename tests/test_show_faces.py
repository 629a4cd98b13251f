"""Drivers of faces: dots that say what the motion, the sliders or another face do; and the panel of a face model."""

import micro
import numpy as np
import pytest
import torch
from test_widgets import Browser, png

from rainlab.data import detect, landmarks
from rainlab.data.faces import StudioFaces
from rainlab.data.studio import body
from rainlab.data.studio.driver import landmarks as real_landmarks
from rainlab.data.studio.expression import POSE
from rainlab.show import faces
from rainlab.show.widgets import FACES, StreamPanel

SIZE = (64, 64)
MODEL = micro.model(micro.micro(data__source="faces", data__height=64, data__width=64))


def open_mouth(dots):
    return np.ptp(dots[landmarks.PARTS["mouth"], 1])


def test_an_expression_is_the_characters_own_motion():
    driver = faces.Expression(SIZE, character=2, motion=2, seconds=1.0)
    clip = StudioFaces("test", 3, 6, SIZE, fps=12.0)[2]
    pictures = driver.draw([driver.sample(i / 12) for i in range(6)])
    assert pictures.shape == (6, *SIZE, 3) and pictures.dtype == np.uint8
    same = (pictures == clip.condition).all(-1).mean()
    assert same > 0.98  # dots are as large as the face is at rest, there as it is in frame 0
    with pytest.raises(StopIteration):
        driver.sample(1.0)


def test_sliders_set_the_face_smoothly():
    driver = faces.Sliders(SIZE, 1)
    rest = driver.sample(0.0)
    assert (rest.abs() > 0).sum() <= 2  # it blinks, nothing else
    driver.set("mouth open", 1.0)
    driver.set("look aside", -0.5)
    driver.set("smile", -1.0)
    first, later = driver.sample(0.05), driver.sample(3.0)
    at = {
        name: POSE.index(name)
        for name in ("mouth_aaa", "head_y", "mouth_lowered_corner_left", "mouth_raised_corner_left")
    }
    assert 0.2 < first[at["mouth_aaa"]] < 0.8 and later[at["mouth_aaa"]] > 0.99
    assert later[at["head_y"]] == pytest.approx(-0.5, abs=0.01)
    assert later[at["mouth_lowered_corner_left"]] > 0.99 and later[at["mouth_raised_corner_left"]] == 0
    shut, wide = (open_mouth(driver._dots(pose[None, None])[0]) for pose in (rest, later))
    assert wide > 2 * shut
    driver.set("left eye", 1.0)
    driver.sample(4.0)
    assert driver.sample(6.0)[POSE.index("eye_wink_left")] > 0.99


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("ears", 0.5, "got 'ears', expected one of mouth open"), ("nod", 1.5, "nod: got 1.5, expected -1 to 1"),
     ("mouth open", -0.5, "expected 0 to 1")],
)  # fmt: skip
def test_sliders_refuse_what_they_do_not_know(name, value, message):
    with pytest.raises(ValueError, match=message):
        faces.Sliders(SIZE).set(name, value)


def test_every_slider_moves_the_dots():
    rest = faces.Sliders(SIZE)._dots(torch.zeros(1, 1, len(POSE)))
    for name in faces.SLIDERS:
        for value in {faces.lowest(name), 1.0} - {0.0}:
            driver = faces.Sliders(SIZE)
            driver.set(name, value)
            driver.sample(5.0)
            assert np.abs(driver._dots(driver.sample(9.0)[None, None]) - rest).max() > 0.01, name


def test_another_face_has_the_characters_dots_at_rest_and_its_own_motion():
    own, other = faces.Expression(SIZE, 1), faces.Other(SIZE, 1, person=5)
    at_rest = torch.zeros(1, 1, len(POSE), dtype=torch.float64)
    width = landmarks.face_width(own._at_rest)
    assert np.abs(other._dots(at_rest)[0] - own._at_rest).max() < 0.1 * width
    pose = torch.zeros(1, 1, len(POSE), dtype=torch.float64)
    pose[..., POSE.index("mouth_aaa")] = 1
    assert open_mouth(other._dots(pose)[0]) > 1.5 * open_mouth(other._dots(at_rest)[0])
    again = faces.Other(SIZE, 1, person=6)
    assert np.abs(again._dots(pose) - other._dots(pose)).max() > 1e-3


def test_a_film_s_points_move_a_character_again_and_again():
    poses = torch.zeros(1, 4, len(POSE), dtype=torch.float64)
    poses[0, 2, POSE.index("mouth_aaa")] = 1
    points = real_landmarks(body.split_seeds("test", 1, 1005), poses)[0].numpy()
    speaker = faces.Points(SIZE, points, fps=10.0, character=1)
    drawn = speaker.draw([speaker.sample(t / 10) for t in range(6)])
    assert drawn.shape == (6, *SIZE, 3) and drawn.dtype == np.uint8
    assert np.array_equal(drawn[4], drawn[0]) and np.array_equal(drawn[0], drawn[1])
    assert (drawn[2] != drawn[0]).any()
    width = landmarks.face_width(speaker._at_rest)
    assert np.abs(speaker._dots(torch.from_numpy(points[None, :1]))[0] - speaker._at_rest).max() < 0.1 * width
    with pytest.raises(ValueError, match="without a face at rest"):
        faces.Points(SIZE, points * np.nan)


def test_a_face_before_a_camera_is_calibrated_once_it_is_at_rest():
    poses = torch.zeros(1, 3, len(POSE), dtype=torch.float64)
    poses[0, 0, POSE.index("head_y")] = 1  # looks aside, then ahead, then speaks
    poses[0, 2, POSE.index("mouth_aaa")] = 1
    points = real_landmarks(body.split_seeds("test", 1, 1005), poses)[0].numpy() * faces.Camera.ROWS
    found = [None, *np.concatenate([points, np.ones((3, 68, 1))], -1), points[2]]
    camera = faces.Camera(SIZE, lambda picture: found.pop(0), character=1)
    assert np.array_equal(camera.view, faces.Expression(SIZE, 1).draw([faces.AT_REST[0, 0]])[0])

    def shown():
        camera.put(png(np.full((48, 64, 3), 100, np.uint8)))
        return camera.draw([camera.sample(0.0)])[0]

    start, aside, ahead, speaks = (shown() for _ in range(4))
    assert np.array_equal(start, aside) and (camera.view > 60).any() and np.median(camera.view) == 50
    own = camera._character
    at_rest = landmarks.draw(camera._calibration(points[1] / camera.ROWS), SIZE, own._radius)
    assert np.array_equal(ahead, at_rest) and (speaks != ahead).any()
    assert np.abs(camera._calibration(points[1] / camera.ROWS) - own._at_rest).max() < 0.1
    camera.reset()
    assert camera._calibration is None and np.array_equal(shown(), landmarks.draw(
        landmarks.calibrate(points[2] / camera.ROWS, own._at_rest)(points[2] / camera.ROWS), SIZE, own._radius
    ))  # fmt: skip


def test_the_panel_of_a_face_model(monkeypatch):
    panel = StreamPanel(MODEL, window=8, guidance=2.0)
    try:
        browser = Browser(panel)
        browser.say(ready=True)
        assert panel.source.options == FACES and isinstance(panel._driver, faces.Expression)
        assert all(control.disabled for control in panel.sliders.values())
        panel.start()
        browser.more()
        panel.source.value = "sliders"
        assert not any(control.disabled for control in panel.sliders.values()) and panel.motion.disabled
        panel.sliders["mouth open"].value = 1.0
        assert panel._driver._goal["mouth open"] == 1.0
        browser.more()
        panel.source.value = "other"
        assert isinstance(panel._driver, faces.Other) and not panel.motion.disabled
        before = panel._driver._at_rest
        browser.say(pick=3)
        assert np.abs(panel._driver._at_rest - before).max() > 0
        panel.source.value = "sliders"
        assert panel._driver._goal["mouth open"] == 1.0  # as the slider stands
        browser.more()
        points = real_landmarks(body.split_seeds("test", 1, 1005), faces.AT_REST)[0, 0].numpy()
        monkeypatch.setattr(detect, "face_landmarks", lambda: lambda picture: points * picture.shape[0])
        panel.source.value = "camera"
        assert isinstance(panel._driver, faces.Camera) and "open eyes" in panel.view.message and not panel.view.trouble
        browser.say(png(np.full((48, 64, 3), 100, np.uint8)), camera="")
        browser.until(lambda: panel._driver._calibration is not None)
        panel.reset()
        assert panel._driver._calibration is None
        before = panel._driver._character._at_rest
        browser.say(pick=4)
        assert np.abs(panel._driver._character._at_rest - before).max() > 0
    finally:
        panel.close()
    with pytest.raises(ValueError, match="source: got 'keyboard', expected one of"):
        StreamPanel(MODEL, source="keyboard")
