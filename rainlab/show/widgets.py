"""StreamPanel: a live stream in a notebook, steered by hand.

    panel = StreamPanel(rainlab.load())
    panel            # the last expression of a cell
    panel.start()    # or its button

The pictures are an anywidget (`panel.js`), which acknowledges every frame it has drawn, so that no more than two are
ever on their way; the controls are ipywidgets; the work is done by :class:`rainlab.show.live.Live`. Camera pictures go
from the browser to this kernel and nowhere else.
"""

import io
import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as W
import numpy as np
import torch
import traitlets as T
from PIL import Image

from rainlab import runs
from rainlab.data import detect, pose
from rainlab.data.video import read_picture
from rainlab.files import atomic_path
from rainlab.method.rain import RAIN
from rainlab.show import drivers, faces, students
from rainlab.show.live import Live, Recording, Shown

GALLERY = 6  # characters to choose from
EVERY = 0.5  # seconds between two updates of the numbers
SOURCES = {"studio motion": "studio", "dragged skeleton": "skeleton", "keyboard walk": "keyboard",
           "video of poses": "film", "camera": "camera"}  # fmt: skip
FACES = {
    "face motion": "face",
    "face sliders": "sliders",
    "somebody else's face": "other",
    "video of dots": "film",
    "camera": "camera",
}
TALKER = {name: FACES[name] for name in ("face motion", "face sliders")}  # what has poses for a student
RATES = {"as fast as it can": 0.0, "6": 6.0, "12": 12.0, "24": 24.0, "30": 30.0, "60": 60.0}
SAYS = {
    "stopped": "Press start.",
    "running": "",
    "paused": "Paused.",
    "ended": "The driver has come to its end.",
    "unwatched": "Stopped: nothing was drawn for five seconds. Press start to go on.",
}
LOOK = "Look into the camera with open eyes: the first such picture calibrates your face, `reset` does it again."
WORDS = {"sho": "shoulder", "elb": "elbow", "wri": "wrist", "hip": "hip", "kne": "knee", "ank": "ankle", "eye": "eye",
         "ear": "ear"}  # fmt: skip
_panels: "weakref.WeakSet[StreamPanel]" = weakref.WeakSet()  # only one runs: each would take all cores


class StreamView(anywidget.AnyWidget):
    """The pictures of a panel, in the browser; see `panel.js` for the messages."""

    _esm = Path(__file__).with_name("panel.js")
    _css = Path(__file__).with_name("panel.css")
    rows = T.Int().tag(sync=True)  # size of the pictures in pixels
    columns = T.Int().tag(sync=True)
    numbers = T.Dict().tag(sync=True)
    message = T.Unicode().tag(sync=True)
    trouble = T.Bool(False).tag(sync=True)
    smooth = T.Bool(True).tag(sync=True)
    source = T.Unicode("studio").tag(sync=True)
    filming = T.Bool(False).tag(sync=True)


class StreamPanel(W.VBox):
    """Live picture beside driver and reference, with all controls.

    Args:
        model: see :func:`rainlab.load`; or a student (:mod:`rainlab.show.students`), which is one character.
        character: number of the held-out studio character to begin with; of a student whose proportions the dots have.
        source: one of SOURCES' values, of FACES' for a model of faces, of TALKER's for a student; None: the first one.
            rate: samples of the driver a second, None as fast as the engine can.
        options: of :class:`rainlab.show.live.Live` and :class:`rainlab.method.stream.Stream`.

    Raises:
        ValueError: an unknown source, or what the Stream refuses.
    """

    def __init__(
        self,
        model: RAIN | students.Talker,
        character: int = 0,
        source: str | None = None,
        rate: float | None = None,
        **options: Any,
    ):
        self.talker = None if isinstance(model, RAIN) else model
        self.faces = bool(self.talker) or model.preset.data.source.startswith("faces")
        self.sources = TALKER if self.talker else FACES if self.faces else SOURCES
        begin = next(iter(self.sources.values()))
        if (source := source or begin) not in self.sources.values():
            raise ValueError(f"source: got {source!r}, expected one of {list(self.sources.values())}")
        torch.set_num_threads(1)  # of this thread, see `live`
        self.size = students.size_of(model) if self.talker else model.preset.data.size
        self.preset = "student" if self.talker else model.preset.name
        self._character, self._fresh = character, GALLERY
        self._cast = faces if self.faces else drivers
        if self.talker:
            self._reference = students.reference(model)
            self._pictures, options = [self._reference], {"engine": students.StudentStream} | options
        else:
            self._pictures = self._cast.gallery(self.size, GALLERY)
            self._reference = self._cast.reference(self.size, character)
        self._driver: drivers.Driver = (faces.Expression if self.faces else drivers.Motion)(self.size, character)
        driver = self._handed_over()
        self.live = Live(model, self._reference, driver, self._show, rate, self._changed, **options)
        self._browsers, self._sent = 0, None  # views that have answered; the driver's picture that they have
        self._asked_to_start = self._hidden = False
        self._recording: Recording | None = None
        self._note = ""  # what is wrong with the driver for as long as it is used
        self._last: Shown | None = None
        self._updated = 0.0
        self.view = StreamView(rows=self.size[0], columns=self.size[1], source=source)
        self.view.on_msg(self._hear)
        self.fallback = W.Image(format="jpeg", layout=W.Layout(width="360px", display="none"))
        self._build()
        super().__init__([self.view, self.fallback, self.controls])
        self._tell(SAYS["stopped"])
        self._numbers()
        if source != begin:
            self.source.value = source
        for other in list(_panels):
            other.stop()
        _panels.add(self)

    # -- what can be done to it --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start as soon as a browser shows the panel, or go on after a pause."""
        if self._browsers:
            for other in list(_panels):
                if other is not self:
                    other.stop()
            self.live.start()
        else:
            self._asked_to_start = True

    def pause(self) -> None:
        """Hold the picture."""
        self.live.pause()

    def reset(self) -> None:
        """Begin the stream anew, with the same reference and the driver as at its beginning."""
        if isinstance(self._driver, drivers.Skeleton | faces.Camera):
            self._driver.reset()
        self.live.reset()

    def stop(self) -> None:
        """End all threads, switch the camera off."""
        self._asked_to_start = False
        self.live.stop()

    def close(self) -> None:
        """Stop, and take the panel out of the notebook."""
        if hasattr(self, "live"):  # else it was refused what it was asked to begin with
            self.stop()
        super().close()

    def reference(self, picture: np.ndarray) -> None:
        """Set the character: uint8 (h, w, 3) of the stream's size."""

        def done(future: Future) -> None:
            if not self._failed(future):
                self._reference = picture
                self._send_reference()

        self.live.reference(picture).add_done_callback(done)

    def screenshot(self) -> Path:
        """Write reference, driver and picture side by side as a PNG into `screenshots/` beside the runs.

        Raises RuntimeError before the first frame.
        """
        if self._last is None:
            raise RuntimeError("screenshot: no frame yet, expected at least one: start the stream first")
        row = np.concatenate([self._reference, self._picture_of(self._last.condition), self._last.frame], axis=1)
        path = runs.folder() / "screenshots" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(row).save(temporary)
        return path

    def record(self) -> None:
        """Begin to record every frame that the engine makes."""
        self._recording = self._recording or Recording(self.live)

    def finish_recording(self) -> runs.Run | None:
        """The finished run with `film.mp4`; None if nothing was being recorded. Raises ValueError without a frame."""
        recording, self._recording = self._recording, None
        return recording and recording.finish(self.preset, self.source.value)

    # -- the controls ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        settings, style = self.live.settings, {"description_width": "92px"}

        def wide(kind: Callable, description: str, **more: Any) -> Any:
            return kind(description=description, style=style, layout=W.Layout(width="300px"), **more)

        def button(description: str, act: Callable[[], Any], icon: str, tip: str) -> W.Button:
            made = W.Button(description=description, icon=icon, tooltip=tip, layout=W.Layout(width="116px"))
            made.on_click(lambda _: self._try(act))
            return made

        self.go = button("start", self._toggle, "play", "start or pause")
        self.anew = button("reset", self.reset, "refresh", "begin the stream anew")
        self.shot = button("screenshot", self._screenshot, "camera", "write a PNG beside the runs")
        self.tape = W.ToggleButton(description="record", icon="circle", layout=W.Layout(width="116px"),
                                   tooltip="write every frame to an mp4, in a run")  # fmt: skip
        self.source = wide(W.Dropdown, "driver", options=self.sources, value=next(iter(self.sources.values())))
        self.motion = wide(W.BoundedIntText, "motion", value=0, min=0, max=10**6)
        self.film = wide(W.Text, "file", placeholder="poses.mp4", continuous_update=False)
        rate = self.live.rate or 0.0
        own = {} if rate in RATES.values() else {f"{rate:g}": rate}
        self.rate = wide(W.Dropdown, "frames/s", options=RATES | own, value=rate)
        self.guidance = wide(W.FloatSlider, "ω", value=settings["guidance"] or 1.0, min=1.0, max=4.0, step=0.1,
                             disabled=settings["guidance"] is None)  # fmt: skip
        strength = settings["temporal_strength"]
        self.temporal = wide(W.FloatSlider, "temporal", value=strength, min=0.0, max=1.5, step=0.05)
        self.seed = wide(W.BoundedIntText, "seed", value=settings["seed"], min=0, max=2**31 - 1)
        self.settings = {"guidance": self.guidance, "temporal_strength": self.temporal, "seed": self.seed}
        choices = {"window": (4, 8, 12, 16, 24, 32), "groups": (1, 2, 4, 8), "steps_per_group": (1, 2, 4)}
        names = {"window": "K frames", "groups": "p levels", "steps_per_group": "N calls"}
        structure = {
            name: wide(W.Dropdown, names[name], options=sorted({*options, settings[name]}), value=settings[name])
            for name, options in choices.items()
        }
        self.settings |= structure
        self.filter = wide(W.Dropdown, "pixels", options=["smooth", "nearest"])
        why = W.HTML(
            "<div style='line-height: 1.4; margin-left: 8px'>The window holds K frames on p noise levels, N network "
            "calls apart. Changing these, or the seed of the noise, begins the stream anew.</div>",
            layout=W.Layout(width="300px"),
        )
        for control in self.settings.values() if self.talker else ():
            control.disabled = True
        self.sliders = {
            name: wide(W.FloatSlider, name, value=0.0, min=faces.lowest(name), max=1.0, step=0.05)
            for name in (faces.SLIDERS if self.faces else ())
        }
        self.controls = W.VBox([
            W.HBox([self.go, self.anew, self.shot, self.tape]),
            W.HBox([
                W.VBox([self.source, self.motion, self.film, self.rate, self.filter]),
                W.VBox([*self.settings.values(), why]),
                *([W.VBox([*self.sliders.values()])] if self.sliders else []),
            ], layout=W.Layout(grid_gap="24px", flex_flow="row wrap")),
        ], layout=W.Layout(padding="0 8px 8px", grid_gap="8px"))  # fmt: skip
        for name, control in self.sliders.items():
            control.observe(lambda change, name=name: self._try(lambda: self._slide(name, change.new)), "value")
        self._slots()
        for control in (self.source, self.motion, self.film):
            control.observe(lambda change: self._try(self._choose_driver), "value")
        self.rate.observe(lambda change: setattr(self.live, "rate", change.new or None), "value")
        for name, control in self.settings.items():
            control.observe(lambda change, name=name: self._change(**{name: change.new}), "value")
        self.filter.observe(lambda change: setattr(self.view, "smooth", change.new == "smooth"), "value")
        self.tape.observe(lambda change: self._try(self._tape), "value")

    def _slots(self) -> None:
        """What belongs to the chosen source can be set, the rest is greyed: nothing jumps."""
        self.motion.disabled = self.source.value not in ("studio", "face", "other")
        for control in self.sliders.values():
            control.disabled = self.source.value != "sliders"
        self.film.disabled = self.source.value != "film"

    def _toggle(self) -> None:
        if self.live.state == "running":
            self.pause()
        elif self._browsers:
            self.start()
        else:  # a button was pressed, but the pictures' JavaScript never answered
            self.fallback.layout.display = ""
            self.live.start()

    def _screenshot(self) -> None:
        self._tell(f"Written: {self.screenshot().relative_to(runs.folder().parent)}")

    def _tape(self) -> None:
        if self.tape.value:
            self.record()
            self._tell("Recording.")
        elif run := self.finish_recording():
            self._tell(f"Written: {(run.path / 'film.mp4').relative_to(runs.folder().parent)}")

    def _change(self, **settings: Any) -> None:
        if all(self.live.settings[name] == value for name, value in settings.items()):
            return  # set back because it was refused

        def done(future: Future) -> None:
            if self._failed(future):
                for name, control in self.settings.items():
                    if self.live.settings[name] is not None:
                        control.value = self.live.settings[name]

        self.live.change(**settings).add_done_callback(done)

    def _choose_driver(self) -> None:
        self._slots()
        kind, self._note = self.source.value, ""
        if kind == "studio":
            driver = drivers.Motion(self.size, self._character, self.motion.value)
        elif kind == "skeleton":
            driver = drivers.Skeleton(self.size, self._character)
        elif kind == "keyboard":
            driver = drivers.Walk(self.size, self._character)
        elif kind == "face":
            driver = faces.Expression(self.size, self._character, self.motion.value)
        elif kind == "other":
            driver = faces.Other(self.size, self._character, self.motion.value)
        elif kind == "sliders":
            driver = faces.Sliders(self.size, self._character)
            for name, control in self.sliders.items():
                driver.set(name, control.value)
        elif kind == "film":
            if not self.film.value:
                return self._tell("Name a video file of condition pictures.")
            driver = drivers.Film(Path(self.film.value).expanduser(), self.size)
        else:
            try:
                see = detect.face_landmarks() if self.faces else detect.body_detector()
            except (FileNotFoundError, ModuleNotFoundError) as error:
                see, self._note = lambda picture: None, f"The camera is shown, but drives nothing: {error}"
            driver = faces.Camera(self.size, see, self._character) if self.faces else drivers.Camera(self.size, see)
        self._driver = driver
        self.live.drive(self._handed_over())
        self.view.source = kind
        self._filming()
        says = LOOK if isinstance(driver, faces.Camera) else SAYS.get(self.live.state, "")
        self._tell(self._note or says, trouble=bool(self._note))

    def _handed_over(self) -> drivers.Driver:
        """The driver as the stream needs it: a student's hands over poses."""
        return students.Posed(self._driver) if self.talker else self._driver

    def _picture_of(self, condition: np.ndarray) -> np.ndarray:
        """What shows a condition: the condition itself, or a pose's dots."""
        return self._driver.draw([torch.as_tensor(condition)])[0] if self.talker else condition

    def _slide(self, name: str, value: float) -> None:
        if isinstance(self._driver, faces.Sliders):
            self._driver.set(name, value)

    def _filming(self) -> None:
        self.view.filming = self.source.value == "camera" and self.live.state == "running"

    # -- what the browser says ---------------------------------------------------------------------------------------

    def _hear(self, _: Any, content: dict, buffers: list) -> None:
        self._try(lambda: self._act(content, buffers))

    def _act(self, content: dict, buffers: list) -> None:
        if "drawn" in content:
            self.live.drawn(content["drawn"])
        elif "ready" in content:
            self._browsers += 1
            self.fallback.layout.display = "none"
            self.view.send({"type": "gallery"}, [jpeg(picture) for picture in self._pictures])
            self._send_reference()
            self._sent = None
            if self._asked_to_start:
                self._asked_to_start = False
                self.start()
        elif "gone" in content:
            self._browsers = max(0, self._browsers - 1)
            if not self._browsers:
                self.stop()
        elif "visible" in content:
            if not content["visible"] and self.live.state == "running":
                self._hidden = True
                self.pause()
            elif content["visible"] and self._hidden:
                self._hidden = False
                self.start()
        elif "drag" in content and isinstance(self._driver, drivers.Skeleton):
            self._driver.drag(content["drag"], *content["at"])
        elif "keys" in content and isinstance(self._driver, drivers.Walk):
            self._driver.press(content["keys"])
        elif "pick" in content:
            self._pick(content["pick"])
        elif "upload" in content:
            self.reference(read_picture(io.BytesIO(buffers[0]), self.size, fit="crop"))
            self._tell(f"Reference: {content['upload']}")
        elif "camera" in content and isinstance(self._driver, drivers.Camera):
            if not buffers:
                return self._tell(f"The browser gives no camera: {content['camera']}", trouble=True)
            self._driver.put(bytes(buffers[0]))
            self.view.send({"type": "camera"})

    def _pick(self, number: int) -> None:
        if self.talker:
            return self._tell("A student is one character.")
        if number < 0:
            number, self._fresh = self._fresh, self._fresh + 1
        self._character = number
        in_gallery = number < len(self._pictures)
        self.reference(self._pictures[number] if in_gallery else self._cast.reference(self.size, number))
        if self.source.value not in ("film", *([] if self.faces else ["camera"])):  # others take its proportions
            self._choose_driver()

    # -- what it says to the browser; from any thread ----------------------------------------------------------------

    def _show(self, shown: Shown) -> None:
        self._last = shown
        if not self._browsers:
            self.fallback.value = jpeg(shown.frame)
            self.live.drawn(shown.number)
        else:
            content: dict[str, Any] = {"type": "frame", "number": shown.number}
            pictures = [jpeg(shown.frame)]
            beside = self._driver.view if isinstance(self._driver, drivers.Camera) else shown.condition
            if beside is not self._sent:
                self._sent = beside
                pictures.append(jpeg(self._picture_of(beside)))
            if isinstance(self._driver, drivers.Skeleton):
                content["joints"] = [[_in_words(name), *point[:2].round(2).tolist()]
                                     for name, point in zip(pose.POINTS, self._driver.points, strict=True)]  # fmt: skip
            self.view.send(content, pictures)
        if time.monotonic() - self._updated > EVERY:
            self._updated = time.monotonic()
            self._numbers()

    def _numbers(self) -> None:
        now = self.live.statistics()
        p50, p95 = (now.latency(quantile) for quantile in (0.5, 0.95))
        waited = "–" if p50 is None else f"p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms"
        parts = sorted(now.parts.items(), key=lambda part: -part[1])[:3]
        self.view.numbers = {
            "shown": f"{now.shown_rate:.1f} frames/s",
            "engine": f"{now.engine_rate:.1f} of {now.capacity:.1f} frames/s",
            "motion to photon": waited if self._browsers else f"{waited} (to sending)",
            "dropped": f"{now.dropped_samples} samples, {now.dropped_frames} frames",
            "waiting": f"{now.waiting} in queues, {self.live.settings['window']} in the window",
            "time goes to": ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts),
        }
        if now.overloaded:
            came, used = f"{now.asked_rate:.0f} samples/s asked for", f"{now.capacity:.0f} can be used"
            self._tell(f"Overload: {came}, {used}; the oldest are dropped.", trouble=True)
        elif self.view.message.startswith("Overload"):
            self._tell(self._note, trouble=bool(self._note))

    def _changed(self, state: str) -> None:
        self.go.description, self.go.icon = ("pause", "pause") if state == "running" else ("start", "play")
        if state == "failed":
            self._tell(f"{type(self.live.error).__name__}: {self.live.error}", trouble=True)
        else:
            self._tell(SAYS[state] or self._note, trouble=state == "running" and bool(self._note))
        self._filming()
        self._numbers()

    def _send_reference(self) -> None:
        self.view.send({"type": "reference"}, [jpeg(self._reference)])

    def _tell(self, message: str, trouble: bool = False) -> None:
        self.view.message, self.view.trouble = message, trouble

    def _failed(self, future: Future) -> bool:
        """Show what a change of the stream raised."""
        if error := future.exception():
            self._tell(str(error), trouble=True)
        return error is not None

    def _try(self, act: Callable[[], Any]) -> None:
        """Errors of controls belong into the panel, where they can be seen."""
        try:
            act()
        except Exception as error:
            self._tell(str(error), trouble=True)


def _in_words(point: str) -> str:
    """The name of a key point, written out."""
    sides = {"R": "right ", "L": "left "}
    return sides[point[0]] + WORDS[point[1:]] if point[0] in sides else point


def watched() -> bool:
    """Whether a browser may be showing this notebook: its kernel is JupyterLab's or voila's, not papermill's."""
    return "JPY_SESSION_NAME" in os.environ or os.environ.get("SERVER_SOFTWARE", "").startswith("voila")


def jpeg(picture: np.ndarray) -> bytes:
    """A picture uint8 (h, w, 3) as it is sent to the browser."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "jpeg", quality=95, subsampling=0)
    return data.getvalue()
