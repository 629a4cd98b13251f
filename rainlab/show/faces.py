"""Drivers of faces: an endless expression, sliders, somebody else's face and your own; see :mod:`rainlab.show.drivers`.

All end as dots for one held-out character, whose proportions its dots have: what drives a face model are 26 landmarks
of the face that it is to make (section 5.2).
"""

import math
from collections.abc import Callable, Sequence
from io import BytesIO

import numpy as np
import torch

from rainlab.data import landmarks
from rainlab.data.studio import body, driver, face
from rainlab.data.studio.expression import BOTH, POSE, expressions, pose_of
from rainlab.data.video import read_picture, resized
from rainlab.show import dots, drivers
from rainlab.show.drivers import Driver, Size


def _both(kind: str) -> dict[str, float]:
    return {f"{kind}{side}": 1.0 for side in BOTH}


SLIDERS = {
    "mouth open": ({}, {"mouth_aaa": 1.0}),
    "mouth wide": ({}, {"mouth_iii": 1.0}),
    "smile": (_both("mouth_lowered_corner"), _both("mouth_raised_corner")),
    "left eye": ({}, {"eye_wink_left": 1.0}),
    "right eye": ({}, {"eye_wink_right": 1.0}),
    "brows": (_both("eyebrow_lowered"), _both("eyebrow_raised")),
    "look aside": ({"head_y": -1.0}, {"head_y": 1.0}),
    "nod": ({"head_x": -1.0}, {"head_x": 1.0}),
    "tilt": ({"neck_z": -1.0}, {"neck_z": 1.0}),
}
"""Name -> numbers of a pose at -1 and at 1; where the first are none a slider begins at 0."""
AT_REST = pose_of({})[None]
REACTION = 0.08  # seconds in which a slider's effect comes most of the way: a hand's jumps are smoothed
BLINKS = [POSE.index(f"eye_wink{side}") for side in BOTH]


class Expression(Driver):
    """An endless motion of the studio's faces, as the character itself moves.

    character, motion: numbers of held-out ones (split "test"). seconds: ends after so many; None never.
    """

    def __init__(self, size: Size, character: int = 0, motion: int = 0, seconds: float | None = None):
        self.size, self.seconds = size, seconds
        self._who, self._how = (body.split_seeds("test", 1, number) for number in (character, motion))
        points = face.landmarks(self._who, AT_REST, size)[0][0, 0].double().numpy()
        self._at_rest, self._radius = landmarks.to_anime(points, ()), landmarks.dot_radius(points, size[0])

    def sample(self, seconds: float) -> torch.Tensor:
        """A pose ``(45,)``."""
        if self.seconds is not None and seconds >= self.seconds:
            raise StopIteration
        return expressions(self._how, torch.tensor([seconds], dtype=torch.float64))[0, 0]

    def draw(self, samples: Sequence[torch.Tensor]) -> np.ndarray:
        dots = self._dots(torch.stack(list(samples))[None])
        return np.stack([landmarks.draw(points, self.size, self._radius) for points in dots])

    def _dots(self, poses: torch.Tensor) -> np.ndarray:
        """Of poses ``(1, n, 45)``: ``(n, 26, 2)``."""
        return landmarks.to_anime(face.landmarks(self._who, poses, self.size)[0][0].double().numpy(), ())


class Sliders(Expression):
    """A face set by hand, with SLIDERS; left alone it blinks."""

    def __init__(self, size: Size, character: int = 0):
        super().__init__(size, character)
        self._goal, self._now, self._then = {name: 0.0 for name in SLIDERS}, {name: 0.0 for name in SLIDERS}, 0.0

    def set(self, name: str, value: float) -> None:
        """Move a slider. ValueError for another name, or a value outside its range."""
        if name not in SLIDERS:
            raise ValueError(f"slider: got {name!r}, expected one of {', '.join(SLIDERS)}")
        if not (least := lowest(name)) <= value <= 1:
            raise ValueError(f"{name}: got {value}, expected {least:g} to 1")
        self._goal = self._goal | {name: float(value)}

    def sample(self, seconds: float) -> torch.Tensor:
        step, goal = max(0.0, seconds - self._then), self._goal
        come = 1 - math.exp(-step / REACTION)
        self._now, self._then = {k: v + come * (goal[k] - v) for k, v in self._now.items()}, seconds
        pose = torch.zeros(len(POSE), dtype=torch.float64)
        for name, value in self._now.items():
            for number, most in SLIDERS[name][value > 0].items():
                pose[POSE.index(number)] += abs(value) * most
        pose[BLINKS] = torch.maximum(pose[BLINKS], super().sample(seconds)[BLINKS])
        return pose


def lowest(name: str) -> float:
    """Where a slider begins."""
    return -1.0 if SLIDERS[name][0] else 0.0


class Other(Expression):
    """Somebody else's face, with real proportions: its 68 points, calibrated to the character's dots.

    person: number of the held-out driver; other arguments as for :class:`Expression`.
    """

    def __init__(self, size: Size, character: int = 0, motion: int = 0, person: int = 0, seconds: float | None = None):
        super().__init__(size, character, motion, seconds)
        self._person = body.split_seeds("test", 1, 1000 + person)
        real = driver.landmarks(self._person, AT_REST)[0, 0].numpy()
        self._calibration = landmarks.calibrate(real, self._at_rest)

    def _dots(self, poses: torch.Tensor) -> np.ndarray:
        return self._calibration(driver.landmarks(self._person, poses)[0].numpy())


class Points(Expression):
    """A face whose 68 points are known frame by frame, of a film say, again and again; calibrated to the character's.

    points: ``(f, 68, 2)``, finite, in units of the picture's height, one of them at rest. fps: of them. character: as
    for :class:`Expression`. ValueError as for :func:`rainlab.data.landmarks.most_at_rest` and `calibrate`.
    """

    def __init__(self, size: Size, points: np.ndarray, fps: float = 12.0, character: int = 0):
        super().__init__(size, character)
        self._points, self._fps = torch.from_numpy(points), fps
        self._calibration = landmarks.calibrate(points[landmarks.most_at_rest(points)], self._at_rest)

    def sample(self, seconds: float) -> torch.Tensor:
        """The points ``(68, 2)`` seen last."""
        return self._points[int(seconds * self._fps + 1e-6) % len(self._points)]

    def _dots(self, points: torch.Tensor) -> np.ndarray:
        return self._calibration(points[0].numpy())


class Camera(drivers.Camera):
    """A face before a camera, calibrated to the character with the first picture that shows it at rest.

    detect: picture uint8 (h, w, 3) -> points (68, 2 or more) in pixels of the picture, or None where nobody is seen.
    character: as for :class:`Expression`. Until a face has been seen that looks ahead with open eyes, and while nobody
    is there, the last condition stays; the first is the character at rest.
    """

    ROWS = 256  # of the pictures that the detector gets, whatever the stream's size

    def __init__(self, size: Size, detect: Callable[[np.ndarray], np.ndarray | None], character: int = 0):
        self._character = Expression(size, character)
        super().__init__(size, detect)
        self._calibration: landmarks.Calibration | None = None

    def reset(self) -> None:
        """Calibrate anew."""
        self._calibration = None

    def _at_first(self) -> np.ndarray:
        return self._character.draw([AT_REST[0, 0]])[0]

    def _look(self, data: BytesIO) -> None:
        height, width = self.size
        picture = read_picture(data, (self.ROWS, round(self.ROWS * width / height)), fit="crop")
        self.view, found = resized(picture, self.size) // 2, self._detect(picture)
        if found is None:
            return
        points, character = found[:, :2] / self.ROWS, self._character
        self.view = np.maximum(self.view, dots.pictures(points[None] * (height / width, 1), self.size)[0])
        calibration = self._calibration
        if calibration is None:
            try:
                self._calibration = calibration = landmarks.calibrate(points, character._at_rest)
            except ValueError:  # not at rest
                return
        self._condition = landmarks.draw(calibration(points), self.size, character._radius)


def gallery(size: Size, characters: int) -> list[np.ndarray]:
    """Reference pictures of the first held-out faces at rest: uint8 (h, w, 3) each."""
    return [reference(size, number) for number in range(characters)]


def reference(size: Size, character: int) -> np.ndarray:
    """The picture of held-out character number `character` from near, at rest."""
    return face.render(body.split_seeds("test", 1, character), pose=AT_REST, size=size).frames[0, 0].numpy()
