"""A student in the live panel: poses drive it, and it answers at once."""

import numpy as np
import pytest
import torch
from test_tha_export import student  # noqa: F401
from test_widgets import Browser, decoded

from rainlab.baselines import tha
from rainlab.data.studio.expression import pose_of
from rainlab.show import faces, students
from rainlab.show.widgets import TALKER, StreamPanel

OPEN = pose_of({"mouth_aaa": 1.0, "head_y": 0.5})


def test_a_picture_stands_on_white(student):  # noqa: F811
    picture, straight = students.draw(student, OPEN[0]), student.frame(OPEN[0])
    alpha = straight[..., 3:] / 255.0
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8 and (picture[alpha[..., 0] == 0] == 255).all()
    assert np.abs(straight[..., :3] * alpha + 255 * (1 - alpha) - picture).max() <= 0.51


def test_a_stream_of_a_student_has_no_window(student):  # noqa: F811
    stream = students.StudentStream(student, fast=True, window=16)
    stream.reference(students.reference(student))
    frames = stream.push(OPEN.float().numpy().repeat(2, 0))
    assert len(frames) == 2 and np.array_equal(frames[1], students.draw(student, OPEN[0].float()))
    assert stream.flush() == [] and stream.seconds["network"] > 0 and stream.group_size == 1
    with pytest.raises(ValueError, match="a student has learned one character"):
        stream.reference(frames[0] // 2)


def test_what_moves_alone_makes_the_same_pictures(student):  # noqa: F811
    performer = tha.Performer(student, torch.cat([pose_of({}), OPEN, -OPEN]).float())
    assert students.size_of(performer) == students.size_of(student) == (64, 64)
    ours, theirs = (students.draw(each, OPEN[0]).astype(int) for each in (performer, student))
    assert np.abs(ours - theirs).max() <= 1


def test_the_panel_of_a_student(student, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    panel = StreamPanel(student)
    try:
        browser = Browser(panel)
        browser.say(ready=True)
        assert panel.source.options == TALKER and all(control.disabled for control in panel.settings.values())
        assert len(browser.all("gallery")[-1][1]) == 1
        panel.start()
        browser.more()
        panel.source.value = "sliders"
        panel.sliders["mouth open"].value = 1.0
        browser.more()
        assert isinstance(panel._driver, faces.Sliders) and panel._driver._goal["mouth open"] == 1.0
        frame, dots = next(buffers for _, buffers in browser.all("frame")[::-1] if len(buffers) > 1)
        assert (
            decoded(frame).shape == decoded(dots).shape == (64, 64, 3) and decoded(frame).mean() > decoded(dots).mean()
        )
        browser.say(pick=-1)
        assert panel.view.message == "A student is one character."
        assert panel.screenshot().is_file()
    finally:
        panel.close()
    with pytest.raises(ValueError, match="source: got 'camera', expected one of"):
        StreamPanel(student, source="camera")
