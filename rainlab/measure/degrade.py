"""Known damage of known strength, to see which measure notices it, and how much more of more."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _blur(x: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        x = (x + np.roll(x, 1, 2) + np.roll(x, -1, 2) + np.roll(x, 1, 3) + np.roll(x, -1, 3)) / 5
    return x


def _jitter(x: np.ndarray, pixels: int) -> np.ndarray:
    draw, moved = np.random.default_rng(0), np.empty_like(x)
    for i, j in np.ndindex(x.shape[:2]):
        moved[i, j] = np.roll(x[i, j], draw.integers(-pixels, pixels + 1, 2), (0, 1))
    return moved


def _drop(x: np.ndarray, every: int) -> np.ndarray:
    return x[:, np.arange(x.shape[1]) // every * every]


def _drift(x: np.ndarray, levels: float) -> np.ndarray:
    return x + np.linspace(0, levels, x.shape[1])[:, None, None, None] * [1, 0, -1]


def _swap(x: np.ndarray, share: float) -> np.ndarray:
    later, swapped = round(x.shape[1] * (1 - share)), x.copy()
    swapped[:, later:] = np.roll(x, 1, 0)[:, later:]
    return swapped


DEGRADATIONS: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], tuple[float, float, float]]] = {
    "blur": (_blur, (1, 3, 9)),  # times the mean of a pixel and its four neighbours
    "jitter": (_jitter, (1, 2, 4)),  # pixels by which a frame may be moved
    "frame drop": (_drop, (2, 4, 8)),  # frames that one is shown for
    "colour drift": (_drift, (20, 60, 120)),  # grey levels that red has gained and blue lost at the end
    "identity swap": (_swap, (0.25, 0.5, 0.75)),  # share of a clip, at its end, that shows the next clip's character
}
"""Name -> (function of videos and strength, three strengths, each worse than the one before)."""


def degraded(videos: np.ndarray, name: str, strength: float) -> np.ndarray:
    """uint8 videos ``(b, f, h, w, 3)``, damaged; deterministic. Raises ValueError for an unknown name."""
    if name not in DEGRADATIONS:
        raise ValueError(f"degradation: got {name!r}, expected one of {list(DEGRADATIONS)}")
    return DEGRADATIONS[name][0](videos.astype(np.float64), strength).round().clip(0, 255).astype(np.uint8)
