"""The panel without a browser: what it answers to the messages that `panel.js` sends, and that every control acts."""

import io
import sys
import threading
import time

import micro
import numpy as np
import pytest
from PIL import Image

from rainlab import runs
from rainlab.data import detect
from rainlab.data.video import probe, write_video
from rainlab.show import drivers
from rainlab.show.widgets import StreamPanel

MODEL = micro.model()


class Browser:
    """Answers as `panel.js` does: says that it is ready, and that a frame is drawn."""

    def __init__(self, panel, answers=True):
        self.panel, self.answers, self.got = panel, answers, []
        panel.view.send = self.receive

    def receive(self, content, buffers=()):
        self.got.append((content, list(buffers)))
        if self.answers and content["type"] == "frame":
            self.say(drawn=content["number"])

    def say(self, *buffers, **content):
        self.panel._hear(None, content, list(buffers))

    def all(self, kind):
        return [(content, buffers) for content, buffers in list(self.got) if content["type"] == kind]

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, (self.panel.live.state, self.panel.view.message)
            time.sleep(0.01)

    def more(self, count=3):
        goal = len(self.all("frame")) + count
        self.until(lambda: len(self.all("frame")) >= goal)


@pytest.fixture
def panel():
    made = StreamPanel(MODEL, window=8, guidance=2.0)
    yield made
    made.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("rainlab-")]


@pytest.fixture
def browser(panel):
    made = Browser(panel)
    made.say(ready=True)
    return made


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def png(picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "png")
    return data.getvalue()


def test_a_browser_gets_gallery_reference_and_frames(panel, browser):
    ((_, gallery),), ((_, (reference,)),) = browser.all("gallery"), browser.all("reference")
    assert len(gallery) == 6 and decoded(reference).shape == (32, 24, 3)
    assert not browser.all("frame") and panel.view.message == "Press start."
    panel.go.click()
    browser.more()
    content, (frame, beside) = browser.all("frame")[0]
    assert content == {"type": "frame", "number": 0} and decoded(frame).shape == decoded(beside).shape == (32, 24, 3)
    assert panel.go.description == "pause" and panel.view.message == ""
    browser.until(lambda: "frames/s" in panel.view.numbers["shown"] and "ms" in panel.view.numbers["motion to photon"])


def test_it_starts_when_a_browser_comes(panel):
    panel.start()
    assert panel.live.state == "stopped"
    browser = Browser(panel)
    browser.say(ready=True)
    browser.more()


def test_no_more_than_two_frames_are_on_their_way(panel, browser):
    browser.answers = False
    panel.start()
    browser.more(2)
    time.sleep(0.5)
    assert len(browser.all("frame")) == 2
    browser.say(drawn=0)
    browser.until(lambda: len(browser.all("frame")) == 3)


def test_pause_reset_and_hidden_tabs(panel, browser):
    panel.start()
    browser.more()
    panel.go.click()
    assert panel.live.state == "paused" and panel.view.message == "Paused."
    browser.say(visible=False)
    browser.say(visible=True)
    assert panel.live.state == "paused"  # by hand: a tab that is shown again changes nothing
    panel.go.click()
    browser.say(visible=False)
    assert panel.live.state == "paused"
    browser.say(visible=True)
    browser.more()
    panel.anew.click()
    browser.more()
    assert panel.live.state == "running"


def test_a_tab_that_is_closed_leaves_no_thread(panel, browser):
    panel.start()
    browser.more()
    browser.say(gone=True)
    assert panel.live.state == "stopped" and not any(thread.is_alive() for thread in panel.live._threads)


def test_every_control_acts_while_it_streams(panel, browser):
    panel.start()
    browser.more()
    panel.guidance.value, panel.temporal.value = 3.0, 0.5
    browser.until(lambda: (panel.live.settings["guidance"], panel.live.settings["temporal_strength"]) == (3.0, 0.5))
    panel.seed.value = 5
    panel.settings["window"].value = 4
    browser.until(lambda: (panel.live.settings["seed"], panel.live.settings["window"]) == (5, 4))
    panel.rate.value = 12.0
    assert panel.live.rate == 12.0
    panel.rate.value = 0.0
    assert panel.live.rate is None
    panel.filter.value = "nearest"
    assert panel.view.smooth is False
    browser.more()
    panel.settings["groups"].value = 8  # more levels than frames
    browser.until(lambda: panel.view.trouble and panel.settings["groups"].value == 4)
    assert "got" in panel.view.message and panel.live.settings["groups"] == 4
    browser.more()


def test_a_dragged_skeleton(panel, browser):
    panel.source.value = "skeleton"
    assert panel.motion.disabled and panel.film.disabled and panel.view.source == "skeleton"
    panel.start()
    browser.more()
    joints = browser.all("frame")[-1][0]["joints"]
    assert len(joints) == 18 and joints[4][0] == "right wrist"
    browser.say(drag=4, at=[3.0, 3.0])
    browser.until(lambda: browser.all("frame")[-1][0]["joints"][4] != joints[4])
    browser.say(drag="nose", at=[1, 1])
    assert panel.view.trouble and "expected one of 0 … 17" in panel.view.message
    panel.reset()
    browser.until(lambda: browser.all("frame")[-1][0]["joints"][4] == joints[4])


def test_a_keyboard_walk(panel, browser):
    panel.source.value = "keyboard"
    browser.say(keys=["right"])
    panel.start()
    browser.until(lambda: panel._driver._state["x"] > 0.05)
    browser.say(keys=[])
    browser.until(lambda: abs(panel._driver._state["yaw"]) < 0.1)
    assert panel._driver._state["x"] > 0.05  # it stays where it walked to, and faces the viewer again


def test_a_film_of_poses(panel, browser, tmp_path):
    panel.source.value = "film"
    assert panel.view.message.startswith("Name a video file") and not panel.film.disabled
    panel.film.value = str(tmp_path / "missing.mp4")
    assert panel.view.trouble and "missing.mp4" in panel.view.message
    write_video(tmp_path / "poses.mp4", micro.pictures(5), fps=12)
    panel.film.value = str(tmp_path / "poses.mp4")
    assert isinstance(panel._driver, drivers.Film) and not panel.view.trouble
    panel.start()
    browser.more()


def test_a_camera_without_a_detector_says_what_is_missing(panel, browser, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)  # as where the extra is not installed
    panel.source.value = "camera"
    assert panel.view.trouble
    for words in ("yolox_l.onnx", "dw-ll_ucoco_384.onnx", "weights/dwpose", "pip install -e .[detect]"):
        assert words in panel.view.message
    assert not panel.view.filming
    panel.start()
    assert panel.view.filming
    picture = np.full((32, 24, 3), 200, np.uint8)
    browser.say(png(picture), camera="")
    assert browser.all("camera")
    browser.until(lambda: any(len(b) > 1 and decoded(b[1]).mean() > 90 for _, b in browser.all("frame")))
    assert "yolox_l.onnx" in panel.view.message  # for as long as it is so
    browser.say(camera="permission denied")
    assert "no camera: permission denied" in panel.view.message
    panel.pause()
    assert not panel.view.filming


def test_a_camera_drives_where_a_detector_is(panel, browser, monkeypatch):
    found = drivers.Skeleton(panel.size).points
    monkeypatch.setattr(detect, "body_detector", lambda: lambda picture: found)
    panel.source.value = "camera"
    assert not panel.view.trouble
    panel.start()
    browser.say(png(micro.pictures()), camera="")
    browser.until(lambda: panel._driver.received == 1 and panel._driver._picture is None)


def test_references_are_picked_drawn_by_lot_and_uploaded(panel, browser):
    def newest():
        return decoded(browser.all("reference")[-1][1][0]).astype(int)

    seen = [newest()]
    for number in (2, -1, -1):
        browser.say(pick=number)
        seen.append(newest())
    assert all(np.abs(a - b).mean() > 2 for i, a in enumerate(seen) for b in seen[:i])
    grey = np.full((50, 100, 3), 77, np.uint8)  # of another shape: it is cropped
    browser.say(memoryview(png(grey)), upload="me.png")
    assert np.abs(newest() - 77).max() < 3 and panel.view.message == "Reference: me.png"
    before = len(browser.all("reference"))
    browser.say(b"no picture", upload="me.txt")
    assert panel.view.trouble and "expected a picture file" in panel.view.message
    assert len(browser.all("reference")) == before


def test_screenshots_and_recordings_are_written(panel, browser):
    panel.shot.click()
    assert panel.view.trouble and "start the stream first" in panel.view.message
    panel.start()
    browser.more()
    panel.shot.click()
    assert panel.view.message.startswith("Written: ")
    assert decoded((runs.folder().parent / panel.view.message.split(": ")[1]).read_bytes()).shape == (32, 72, 3)
    panel.tape.value = True
    browser.more(8)
    panel.tape.value = False
    assert panel.view.message.startswith("Written: ")
    assert probe(runs.folder().parent / panel.view.message.split(": ")[1])["frames"] >= 4


def test_without_javascript_the_picture_is_shown_all_the_same(panel):
    panel.go.click()
    end = time.monotonic() + 30
    while not panel.fallback.value:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert panel.fallback.layout.display == "" and decoded(panel.fallback.value).shape == (32, 24, 3)


def test_only_one_panel_runs(panel, browser):
    panel.start()
    other = StreamPanel(MODEL, window=8)
    assert panel.live.state == "stopped"
    other.close()


def test_errors_are_shown_in_the_panel(panel, browser):
    def broken(samples):
        raise OSError("the driver broke")

    panel._driver.draw = broken
    panel.start()
    browser.until(lambda: panel.live.state == "failed")
    assert panel.view.trouble and panel.view.message == "OSError: the driver broke"
    assert panel.go.description == "start"


def test_what_it_is_asked_to_begin_with_is_checked():
    with pytest.raises(ValueError, match="source: got 'mouse', expected one of"):
        StreamPanel(MODEL, source="mouse")
    with pytest.raises(ValueError, match="got"):
        StreamPanel(MODEL, window=7)
    begun = StreamPanel(MODEL, source="skeleton", rate=7.0)
    assert isinstance(begun._driver, drivers.Skeleton) and begun.rate.value == 7.0
    begun.close()
