"""Faces as condition pictures: from 68 points of a real face to 26 of an anime face (RAIN's supplement, Figures 7-10).

Points are ``(…, n, 2)``, x to the right and y down, in units of the picture: (0, 0) and (1, 1) are its corners. The 68
are those of iBUG 300-W: 0-16 the jaw from the picture's left, 17-26 the brows, 27-35 the nose, 36-47 the eyes, 48-67
the mouth, of which 60-67 is the inner edge of the lips. Numbers, groups and colours are those of the published code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

REAL, ANIME, DETECTED = 68, 26, 28
GROUPS: tuple[tuple[int, ...], ...] = (
    (1, 2), (4,), (8,), (12,), (15, 14),  # jaw
    (17,), (18, 19), (20,), (23,), (24, 25), (26,),  # brows
    (60,), (62,), (64,), (66,),  # mouth
    (33, 30),  # nose
    (36, 37), (37, 38), (38, 39), (40, 39), (41,),  # eye in the picture's left half
    (42, 43), (43, 44), (44, 45), (46,), (47, 42),  # and in its right half
)  # fmt: skip
"""Of which of the 68 points each of the 26 is the mean (Figure 9)."""
PARTS = {"jaw": slice(0, 5), "left brow": slice(5, 8), "right brow": slice(8, 11), "mouth": slice(11, 15),
         "nose": slice(15, 16), "left eye": slice(16, 21), "right eye": slice(21, 26)}  # fmt: skip
"""Which of the 26 points belong together; left and right are the picture's."""
COLOURS = {"jaw": (0, 255, 255), "left brow": (128, 0, 255), "right brow": (255, 0, 128), "mouth": (0, 0, 255),
           "nose": (255, 0, 255), "left eye": (255, 128, 128), "right eye": (128, 128, 255)}  # fmt: skip
"""RGB of the dots of a part."""
FOUND = (*range(11), *range(24, 28), 23, 11, 12, 13, 14, 16, 17, 18, 19, 20, 22)
"""Which of the 28 points of hysts' detector of drawn faces are the 26, part by part; within a part they keep its order.
The lower lids' middles are left out: which two RAIN leaves out it doesn't say, but of a real face these are not among
the 26 either (Figure 9)."""
LIDS = {"right eye": ((37, 41), (38, 40)), "left eye": ((43, 47), (44, 46)), "mouth": ((61, 67), (62, 66), (63, 65))}
"""Which of the 68 points part when eyes and mouth open; here right and left are the face's own."""


@dataclass(frozen=True)
class Transform:
    """Scale and shift the points ``first`` … ``last`` - 1 about their mean, along axes of the face itself.

    The x axis leads from one of them to another (``axis``, counted from ``first``), the y axis a quarter turn further.
    Shifts are in units of the distance between two of the 68 points (``unit``).
    """

    first: int
    last: int
    axis: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)
    unit: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        name = f"transform of points {self.first} to {self.last}"
        if not 0 <= self.first < self.last <= REAL:
            raise ValueError(f"{name}: expected some of the {REAL} points")
        for what, pair, count in (("axis", self.axis, self.last - self.first), ("unit", self.unit, REAL)):
            if pair and (pair[0] == pair[1] or not 0 <= min(pair) <= max(pair) < count):
                raise ValueError(f"{name}: got {what} {pair}, expected two different points, numbers 0 to {count - 1}")
        if any(self.shift) and self.unit is None:
            raise ValueError(f"{name}: a shift needs a unit")

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """``(…, 68, 2)`` -> a copy of it, changed."""
        part = points[..., self.first : self.last, :]
        centre = part.mean(-2, keepdims=True)
        axes = np.stack(_axes(part, self.axis), -2)  # (…, 2 axes, 2)
        within = (part - centre) @ axes.swapaxes(-1, -2) * np.array(self.scale)
        if self.unit:
            first, last = (points[..., i, :] for i in self.unit)
            within = within + np.linalg.norm(last - first, axis=-1)[..., None, None] * np.array(self.shift)
        changed = points.copy()
        changed[..., self.first : self.last, :] = centre + within @ axes
        return changed


_LEFT, _RIGHT, _EYE, _MOUTH = (36, 42), (42, 48), (0, 3), (0, 4)
TRANSFORMS = (
    Transform(0, 68, (2, 14), scale=(1.0, 0.75)),  # a shorter face
    Transform(*_LEFT, _EYE, scale=(1.6, 3.0)),  # larger eyes
    Transform(*_RIGHT, _EYE, scale=(1.6, 3.0)),
    Transform(60, 68, _MOUTH, scale=(0.67, 1.2)),  # a smaller mouth
    Transform(*_LEFT, _EYE, shift=(0.1, 0.0), unit=(33, 13)),  # with the head's turn: nose to one cheek, to the other
    Transform(*_RIGHT, _EYE, shift=(0.15, 0.0), unit=(33, 13)),
    Transform(*_LEFT, _EYE, shift=(-0.15, 0.0), unit=(33, 3)),
    Transform(*_RIGHT, _EYE, shift=(-0.1, 0.0), unit=(33, 3)),
    Transform(*_LEFT, _EYE, shift=(0.0, 0.1), unit=(19, 6)),  # eyes lower
    Transform(*_RIGHT, _EYE, shift=(0.0, 0.1), unit=(26, 12)),
    Transform(60, 68, _MOUTH, shift=(0.15, 0.0), unit=(33, 13)),
    Transform(60, 68, _MOUTH, shift=(-0.15, 0.0), unit=(33, 3)),
    Transform(4, 13, (0, 8), scale=(0.9, 1.0)),  # a narrower chin
)
"""The published 13 in their order, each on what those before it left; they were found by hand (Figure 10)."""


def to_anime(points: np.ndarray, transforms: Sequence[Transform] = TRANSFORMS) -> np.ndarray:
    """68 points of real faces -> 26 of anime faces: the transforms one after the other, then the means of GROUPS.

    Args:
        points: float ``(…, 68, 2)`` in units of a square picture.

    Raises:
        ValueError: another shape.
    """
    points = _moved(_checked(points, REAL).astype(np.float64), transforms)
    return np.stack([points[..., list(group), :].mean(-2) for group in GROUPS], -2)


MOVED = (
    ("left eye", 36, 42, (0, 3)), ("right eye", 42, 48, (0, 3)), ("left brow", 17, 22, (0, 4)),
    ("right brow", 22, 27, (0, 4)), ("mouth", 60, 68, (0, 4)), ("nose", 27, 36, (4, 8)), ("jaw", 4, 13, (0, 8)),
)  # fmt: skip
"""What a calibration moves: a part, its points, and the two of them that its axis leads through."""
MOUTH_OPENS = 1.2  # by which the published transforms open a mouth wider
OPEN = 0.22  # an eye less high than this share of its width is shut; wide open ones of people have 0.33 and more
TURNED = 0.15  # from the jaw's middle, in shares of its width: a nose farther away belongs to a head that looks aside
EYES_APART, FACE_HIGH = (36, 45), (27, 8)  # units of shifts: both shorten as a head turns or nods


@dataclass(frozen=True)
class Calibration:
    """How the points of one driver become dots of one character: transforms, then their place in its picture."""

    transforms: tuple[Transform, ...]
    scale: float
    offset: tuple[float, float]

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """68 points ``(…, 68, 2)`` of the driver -> 26 ``(…, 26, 2)`` in the character's picture."""
        return to_anime(points, self.transforms) * self.scale + self.offset


def calibrate(driver: np.ndarray, character: np.ndarray) -> Calibration:
    """What has to be set by hand in the published demo, found from one picture of each face at rest, eyes open.

    In the faces' own axes: first the face's height against its width; then size and place of eyes and brows, the
    mouth's width and place, the place of the nose, the chin's width. Sideways shifts are in units of the distance of
    the eyes, others of that from the bridge of the nose to the chin, so that both go along when the head turns. How
    far a mouth opens can't be seen while it is shut: the published factor stays.

    Args:
        driver: ``(68, 2)``. character: its 26 points, ``(26, 2)``.

    Raises:
        ValueError: another shape, points that are not finite, a jaw without extent, or a face that is not at rest: an
            eye nearly shut, or the nose far from the middle of the jaw.
    """
    driver, character = _checked(driver, REAL).astype(np.float64), _checked(character, ANIME).astype(np.float64)
    if driver.ndim != 2 or character.ndim != 2:
        raise ValueError(f"calibrate: got {driver.shape} and {character.shape}, expected one face each")
    for whose, points in (("driver", driver), ("character", character)):
        if not np.isfinite(points).all():
            lost = np.flatnonzero(~np.isfinite(points).all(1)).tolist()
            raise ValueError(f"calibrate: the {whose}'s points {lost} are not finite, expected a face that is all seen")
    jaw, made = PARTS["jaw"], []
    theirs, across = _axes(character[jaw], (0, 4)), _axes(driver, (2, 14))
    (width, height), here = _reach(character[jaw], theirs), _reach(to_anime(driver, ())[jaw], across)
    if min(width, height, *here) <= 0:
        raise ValueError("calibrate: a jaw without extent, expected faces at rest and nearly from the front")
    for whose, points in (("driver", to_anime(driver, ())), ("character", character)):
        _check_rest(whose, points)
    size = width / here[0]
    made.append(Transform(0, REAL, (2, 14), scale=(1.0, height / (size * here[1]))))
    # the character as it would be in the driver's picture, as wide as the driver and as upright
    middle = to_anime(driver, made)[jaw].mean(0)
    wanted = middle + (character - character[jaw].mean(0)) @ np.stack(theirs).T @ np.stack(across) / size
    for part, first, last, axis in MOVED:
        members = PARTS[part]
        there = _moved(driver, made)[first:last]
        if not np.subtract(*there[list(axis)]).any():
            raise ValueError(f"calibrate: the driver's {part} has no extent, expected a face nearly from the front")
        along = _axes(there, axis)
        if part != "nose":
            inner = slice(1, 4) if part == "jaw" else slice(None)  # its upper ends give the face its width
            there, here = (_reach(x[members][inner], along) for x in (wanted, to_anime(driver, made)))
            tall = there[1] / here[1] if "eye" in part else MOUTH_OPENS if part == "mouth" else 1.0
            made.append(Transform(first, last, axis, scale=(there[0] / here[0], tall)))
        if part != "jaw":
            away = wanted[members].mean(0) - to_anime(driver, made)[members].mean(0)
            for way, unit in enumerate((EYES_APART, FACE_HIGH)):
                length = np.linalg.norm(np.subtract(*_moved(driver, made)[list(unit)]))
                shift = [0.0, 0.0]
                shift[way] = float(away @ along[way] / length)
                made.append(Transform(first, last, axis, shift=tuple(shift), unit=unit))
    offset = character[jaw].mean(0) - size * middle
    return Calibration(tuple(made), float(size), tuple(offset))


def most_at_rest(points: np.ndarray) -> int:
    """Of a film's faces ``(f, 68, 2)`` the one to calibrate with: it looks ahead, its eyes open and its mouth shut.

    The sum of how far the nose is off the jaw's middle and how far the lips are apart, less how far the lids are, all
    in widths of the face, is smallest; frames without a face (not finite) don't count.

    Raises:
        ValueError: another shape, or no frame that :func:`calibrate` would take.
    """
    points = _checked(points, REAL)
    best, least = -1, np.inf
    for number, face in enumerate(points):
        if not np.isfinite(face).all():
            continue
        dots = to_anime(face, ())
        try:
            _check_rest("driver", dots)
        except ValueError:
            continue
        width = face_width(dots)
        *lids, lips = openings(face) / width
        if (far := abs(_aside(dots)) + lips - np.mean(lids)) < least:
            best, least = number, far
    if best < 0:
        raise ValueError(
            f"got {len(points)} frames without a face at rest, expected one with open eyes, from the front"
        )
    return best


def openings(points: np.ndarray) -> np.ndarray:
    """Distances between the lids and between the lips of 68 points ``(…, 68, 2)`` -> ``(…, 3)`` by LIDS."""
    gaps = (
        [np.linalg.norm(points[..., a, :] - points[..., b, :], axis=-1) for a, b in pairs] for pairs in LIDS.values()
    )
    return np.stack([np.mean(each, 0) for each in gaps], -1)


def _check_rest(whose: str, points: np.ndarray) -> None:
    """Raise ValueError unless 26 points are those of a face that looks ahead with open eyes."""
    for part in ("left eye", "right eye"):
        eye = points[PARTS[part]]
        across, high = _reach(eye, _axes(eye, (0, 2)))
        if not high > OPEN * across:
            share = high / max(across, 1e-9)
            raise ValueError(
                f"calibrate: the {whose}'s {part} is nearly shut, {share:.2f} of its width high, "
                f"expected at least {OPEN}; take a picture with open eyes"
            )
    if abs(aside := _aside(points)) > TURNED:
        raise ValueError(
            f"calibrate: the {whose} looks aside, nose {aside:+.2f} of the jaw's width from its middle, "
            f"expected at most {TURNED}; take a picture from the front"
        )


def _aside(points: np.ndarray) -> float:
    """How far the nose of 26 points is off the middle of the jaw, in its widths."""
    ends = points[[0, 4]]
    return float((points[PARTS["nose"]][0] - ends.mean(0)) @ _axes(ends, (0, 1))[0] / face_width(points))


def _axes(part: np.ndarray, axis: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the line between two of some points, and of the one a quarter turn further."""
    along = part[..., axis[1], :] - part[..., axis[0], :]
    along = along / np.linalg.norm(along, axis=-1, keepdims=True)
    return along, np.stack([-along[..., 1], along[..., 0]], -1)


def _reach(points: np.ndarray, axes: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """How far points reach along both axes."""
    x, y = axes
    return np.ptp(points @ x), np.ptp(points @ y)


def _moved(points: np.ndarray, transforms: Sequence[Transform]) -> np.ndarray:
    for transform in transforms:
        points = transform(points)
    return points


def face_width(dots: np.ndarray) -> np.ndarray:
    """Distance of the jaw's ends of 26 points ``(…, 26, 2)`` -> ``(…)``."""
    return np.linalg.norm(dots[..., 0, :] - dots[..., 4, :], axis=-1)


def of_drawn(points: np.ndarray, least: float = 0.0) -> np.ndarray:
    """28 points of a detector of drawn faces -> the 26 ``(…, 26, 2)``.

    Args:
        points: ``(…, 28, 3)``, the last the confidence; those below ``least`` become NaN. ``(…, 28, 2)``: all are sure.

    Raises:
        ValueError: another shape.
    """
    points = np.asarray(points, np.float64)
    if points.ndim < 2 or points.shape[-2] != DETECTED or points.shape[-1] not in (2, 3):
        raise ValueError(f"landmarks: got shape {points.shape}, expected (…, {DETECTED}, 2) or (…, {DETECTED}, 3)")
    chosen = points[..., FOUND, :]
    unsure = (chosen[..., 2:] < least).any(-1, keepdims=True)
    return np.where(unsure, np.nan, chosen[..., :2])


def dot_radius(points: np.ndarray, size: int = 512) -> int:
    """Radius in pixels of the dots for a face of 68 points, before any transform: larger faces have larger ones.

    The published code draws pictures of 512 pixels only; for others it is in proportion. Of a face of 26 points the
    middle between the eyes stands for the bridge of the nose: 2 % more, on the studio's faces.
    """
    if np.shape(points) == (ANIME, 2):
        bridge, chin = points[PARTS["left eye"].start :].mean(0), points[PARTS["jaw"]][2]
    else:
        bridge, chin = _checked(points, REAL)[[27, 8]]
    height = float(np.linalg.norm(bridge - chin))
    return max(int(3 * (height / 0.3) * size / 512), 1)


def draw(points: np.ndarray, size: tuple[int, int], radius: int) -> np.ndarray:
    """26 points as dots of their part's colour on black, uint8 ``(h, w, 3)``; later ones cover earlier ones.

    Args:
        points: ``(26, 2)``; those that are not finite are left out, as where a part is hidden.
        size: (height, width). radius: in pixels (:func:`dot_radius`).

    Raises:
        ValueError: another shape, or a radius below 1.
    """
    points = _checked(points, ANIME)
    if radius < 1:
        raise ValueError(f"radius: got {radius}, expected at least 1 pixel")
    height, width = size
    picture, (rows, columns) = np.zeros((height, width, 3), np.uint8), np.ogrid[:height, :width]
    for part, members in PARTS.items():
        for x, y in points[members]:
            if np.isfinite((x, y)).all():
                inside = (columns - int(x * width)) ** 2 + (rows - int(y * height)) ** 2 <= radius**2
                picture[inside] = COLOURS[part]
    return picture


def _checked(points: np.ndarray, count: int) -> np.ndarray:
    points = np.asarray(points)
    if points.ndim < 2 or points.shape[-2:] != (count, 2):
        raise ValueError(f"landmarks: got shape {points.shape}, expected (…, {count}, 2)")
    return points
