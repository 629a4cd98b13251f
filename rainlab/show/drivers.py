"""Drivers: where the condition pictures of a live stream come from.

A driver is asked twice. `sample(seconds)` says at once how things stand at that moment of stream time, in any form, and
raises StopIteration where the driver ends; `draw(samples)` makes condition pictures of some of them together, uint8
(n, h, w, 3): many small operations cost the same for one picture as for a group, and beside a network that computes on
all cores they cost many times as much.

    driver = Walk(size=(128, 96))
    driver.press({"right"})
    pictures = driver.draw([driver.sample(0.1 * i) for i in range(4)])

Samples are taken in one thread, drawn in a second and steered from a third: what these share is replaced whole, never
changed in place. `close` is called when the stream lets go of a driver.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rainlab.data import pose
from rainlab.data.studio import body
from rainlab.data.studio.motion import movement
from rainlab.data.studio.people import people
from rainlab.data.video import iter_video, probe, read_picture

Size = tuple[int, int]  # height, width in pixels


class Driver(ABC):
    """What all drivers are."""

    @abstractmethod
    def sample(self, seconds: float) -> Any:
        """How things stand after so many seconds of stream time. StopIteration: the driver has come to its end."""

    @abstractmethod
    def draw(self, samples: Sequence[Any]) -> np.ndarray:
        """Condition pictures of samples: uint8 (n, h, w, 3)."""

    def close(self) -> None:  # noqa: B027  most have nothing to close
        """Let go of files and devices; it is asked no more, or from the beginning."""


class Motion(Driver):
    """An endless studio motion, exact at any moment.

    character, motion: numbers of held-out ones (split "test"); the character gives the proportions of the skeleton.
    seconds: ends after so many; None never.
    """

    def __init__(self, size: Size, character: int = 0, motion: int = 0, seconds: float | None = None):
        self.size, self.seconds = size, seconds
        self._body, self._how = _measures(character), body.split_seeds("test", 1, motion)

    def sample(self, seconds: float) -> float:
        if self.seconds is not None and seconds >= self.seconds:
            raise StopIteration
        return seconds

    def draw(self, samples: Sequence[float]) -> np.ndarray:
        angles = movement(self._how, torch.tensor([samples], dtype=torch.float64), facing=True)
        return _draw(self._body, {name: angle[0] for name, angle in angles.items()}, self.size)


class Walk(Driver):
    """A body steered by keys: left and right walk that way, up walks on the spot, a and d raise an arm, space both.

    It stays in the picture, and turns no further than the characters of training mostly do.
    """

    KEYS = ("left", "right", "up", "a", "d", "space")
    TURN, REACH, PACE, REACTION = math.radians(70), 0.22, 0.9, 0.18  # rad, half pictures, steps/s, s

    def __init__(self, size: Size, character: int = 0):
        self.size, self._body = size, _measures(character)
        self._keys: frozenset[str] = frozenset()
        self._now: float | None = None
        self._pace = 0.0
        self._state = {"yaw": 0.0, "x": 0.0, "stride": 0.0, "raise_r": 0.0, "raise_l": 0.0}

    def press(self, keys: Collection[str]) -> None:
        """All keys of KEYS that are down from now on; others are ignored."""
        self._keys = frozenset(keys) & frozenset(self.KEYS)

    def sample(self, seconds: float) -> dict[str, float]:
        step = 0.0 if self._now is None else max(0.0, seconds - self._now)
        self._now = seconds
        self._advance(step, self._keys)
        return self._angles()

    def draw(self, samples: Sequence[dict[str, float]]) -> np.ndarray:
        return _draw(self._body, _stack(samples), self.size)

    def _advance(self, step: float, keys: frozenset[str]) -> None:
        way = ("right" in keys) - ("left" in keys)
        blocked = way * self._state["x"] >= self.REACH
        raised = {side: "space" in keys or key in keys for side, key in (("r", "a"), ("l", "d"))}
        goals = {
            "yaw": way * self.TURN,
            "stride": 0.55 * ((way != 0 and not blocked) or "up" in keys),
            "raise_r": 2.2 * raised["r"],
            "raise_l": 2.2 * raised["l"],
        }
        for name, goal in goals.items():  # exponentially nearer, whatever the step
            self._state[name] += (goal - self._state[name]) * (1 - math.exp(-step / self.REACTION))
        x = self._state["x"] + 0.28 * step * way * (not blocked)
        self._state["x"] = min(max(x, -self.REACH), self.REACH)
        self._pace += 2 * math.pi * self.PACE * step

    def _angles(self) -> dict[str, float]:
        stride, swing = self._state["stride"], math.sin(self._pace)
        angles = {"yaw": self._state["yaw"], "x": self._state["x"], "lean": 0.0, "tilt": 0.0, "look": 0.0}
        for side, sign in (("_r", -1.0), ("_l", 1.0)):
            raised = self._state["raise" + side]
            angles["leg" + side] = sign * stride * swing
            angles["knee" + side] = 0.06 + 0.75 * stride * (1 + sign * math.cos(self._pace))
            angles["arm" + side] = -sign * 0.8 * stride * swing
            angles["raise" + side] = 0.25 + raised
            angles["elbow" + side] = 0.3
            angles["bent up" + side] = 0.3
        return angles


def _stack(angles: Sequence[dict[str, float]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([each[name] for each in angles], dtype=torch.float64) for name in angles[0]}


def _measures(character: int) -> dict[str, torch.Tensor]:
    return people(body.split_seeds("test", 1, character))[0]


def _draw(measures: dict[str, torch.Tensor], angles: dict[str, torch.Tensor], size: Size) -> np.ndarray:
    count = len(angles["yaw"])
    bodies = {name: value.expand(count, *value.shape[1:]) for name, value in measures.items()}
    return pose.draw(body.keypoints(bodies, angles, size), size).numpy()


class Skeleton(Driver):
    """A skeleton that is dragged by its joints; limbs keep their length.

    A hand or a foot takes its whole limb along (two-bone inverse kinematics), an elbow or a knee turns about the
    shoulder or hip and carries what hangs on it, a point of the head nods the head, any other joint moves the body.
    """

    # end -> (root, middle); middle -> (root, end), in the order of `pose.POINTS`
    ENDS = {4: (2, 3), 7: (5, 6), 10: (8, 9), 13: (11, 12)}
    MIDDLES = {middle: (root, end) for end, (root, middle) in ENDS.items()}
    HEAD = (0, 14, 15, 16, 17)
    NOD = math.radians(35)  # the head's farthest angle from upright

    def __init__(self, size: Size, character: int = 0):
        self.size = size
        # standing upright, arms a little away from the body
        start = Walk(size, character)
        self._rest = body.keypoints(start._body, _stack([start._angles()]), size)[0].double().numpy()
        self._points = self._rest

    @property
    def points(self) -> np.ndarray:
        """x, y in pixels and confidence, float64 (18, 3)."""
        return self._points

    def reset(self) -> None:
        """Stand as in the beginning."""
        self._points = self._rest

    def drag(self, joint: int, x: float, y: float) -> None:
        """Bring a joint (number in `pose.POINTS`) as near to x, y (pixels) as limbs and picture allow.

        Raises ValueError for another joint, or for coordinates that are no numbers.
        """
        if joint not in range(18) or not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"joint: got {joint!r} at ({x}, {y}), expected one of 0 … 17 and finite coordinates")
        points, (height, width) = self._points.copy(), self.size
        goal = np.clip([x, y], 0, [width - 1, height - 1])
        if joint in self.ENDS:
            root, middle = self.ENDS[joint]
            points[middle, :2], points[joint, :2] = _bend(*points[[root, middle, joint], :2], goal)
        elif joint in self.MIDDLES:
            root, end = self.MIDDLES[joint]
            turned = points[root, :2] + _towards(points[root, :2], points[joint, :2], goal)
            points[end, :2] += turned - points[joint, :2]
            points[joint, :2] = turned
        elif joint in self.HEAD:
            self._nod(points, joint, goal)
        else:
            shift = goal - points[joint, :2]
            low, high = points[:, :2].min(0), points[:, :2].max(0)  # the body stays whole in the picture, if it was
            room = np.minimum(0, -low), np.maximum(0, [width - 1, height - 1] - high)
            points[:, :2] += np.clip(shift, *room)
        self._points = points

    def _nod(self, points: np.ndarray, joint: int, goal: np.ndarray) -> None:
        neck = points[1, :2]
        is_, wanted = (math.atan2(y, x) for x, y in (points[joint, :2] - neck, goal - neck))
        head = points[list(self.HEAD), :2].mean(0) - neck
        leaning = math.atan2(head[0], -head[1])  # 0 is upright
        turn = math.remainder(wanted - is_, 2 * math.pi)
        turn = min(max(turn, -self.NOD - leaning), self.NOD - leaning)
        c, s = math.cos(turn), math.sin(turn)
        for k in self.HEAD:
            points[k, :2] = neck + np.array([[c, -s], [s, c]]) @ (points[k, :2] - neck)

    def sample(self, seconds: float) -> np.ndarray:
        return self._points

    def draw(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        return pose.draw(np.stack(samples), self.size).numpy()


def _towards(origin: np.ndarray, point: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """The vector from origin to point, turned towards goal."""
    length, away = math.dist(origin, point), math.dist(origin, goal)
    return point - origin if away < 1e-9 else (goal - origin) * (length / away)


def _bend(root: np.ndarray, middle: np.ndarray, end: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and end of a two-bone limb whose end comes as near to goal as it can; it goes on bending the same way."""
    upper, lower = math.dist(root, middle), math.dist(middle, end)
    away = goal - root if math.dist(root, goal) > 1e-9 else end - root
    direction = away / max(math.hypot(*away), 1e-9)
    reach = min(max(math.dist(root, goal), abs(upper - lower) + 1e-6), upper + lower - 1e-6)
    along = (reach**2 + upper**2 - lower**2) / (2 * reach)
    across = math.sqrt(max(upper**2 - along**2, 0.0))
    (ax, ay), (bx, by) = middle - root, end - root
    side = 1.0 if bx * ay - by * ax >= 0 else -1.0
    normal = np.array([-direction[1], direction[0]])
    return root + along * direction + side * across * normal, root + reach * direction


class Film(Driver):
    """A video file of pose pictures, played at its own speed, again and again; it holds one frame at a time.

    VideoError for a file that can't be used.
    """

    def __init__(self, path: str | Path, size: Size):
        self.path, self.size, self.fps = path, size, probe(path)["fps"]
        self._at = -1  # number of the frame in hand, counted on through all repetitions
        self._open()
        self.sample(0.0)

    def _open(self) -> None:
        self._frames = iter_video(self.path, size=self.size, fit="crop")

    def sample(self, seconds: float) -> np.ndarray:
        wanted = int(seconds * self.fps)
        if wanted < self._at:  # the stream began anew
            self._frames.close()
            self._open()
            self._at = -1
        while self._at < wanted:
            picture = next(self._frames, None)
            if picture is None:
                self._open()
                continue
            self._picture, self._at = picture, self._at + 1
        return self._picture

    def draw(self, samples: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(samples)

    def close(self) -> None:
        self._frames.close()


class Camera(Driver):
    """Pictures of a camera, as they come in, through a detector.

    detect: picture uint8 (h, w, 3) -> key points (18, 3) in pixels of the picture, or None where nobody is seen. While
    no picture or nobody is there, the last condition stays; the first is a body that stands.
    """

    def __init__(self, size: Size, detect: Callable[[np.ndarray], np.ndarray | None]):
        self.size, self._detect = size, detect
        self._picture: bytes | None = None
        self._condition = self._at_first()
        self.view = self._condition  # what the camera sees, with what was found in it
        self.received = 0

    def _at_first(self) -> np.ndarray:
        standing = Skeleton(self.size)
        return standing.draw([standing.points])[0]

    def put(self, picture: bytes) -> None:
        """A new picture, as the bytes of a JPEG; it replaces one that nobody has looked at yet."""
        self._picture, self.received = picture, self.received + 1

    def sample(self, seconds: float) -> bytes | None:
        data, self._picture = self._picture, None
        return data

    def draw(self, samples: Sequence[bytes | None]) -> np.ndarray:
        pictures = []
        for data in samples:
            if data is not None:
                self._look(BytesIO(data))
            pictures.append(self._condition)
        return np.stack(pictures)

    def _look(self, data: BytesIO) -> None:
        """Bring `_condition` and `view` up to date."""
        picture = read_picture(data, self.size, fit="crop")
        found = self._detect(picture)
        if found is not None:
            self._condition = pose.draw(found, self.size).numpy()
        self.view = np.maximum(picture // 2, self._condition)


def gallery(size: Size, characters: int) -> list[np.ndarray]:
    """Reference pictures of the first held-out studio characters, facing the camera: uint8 (h, w, 3) each."""
    return [reference(size, number) for number in range(characters)]


def reference(size: Size, character: int) -> np.ndarray:
    """The picture of held-out studio character number `character` at the beginning of its own motion."""
    seeds = body.split_seeds("test", 1, character)
    return body.render(seeds, seeds, 1, size, facing=True).frames[0, 0].numpy()
