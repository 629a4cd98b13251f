"""Landmarks of faces as numbered points, the way the paper's Figures 7 to 10 show them."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rainlab.data.landmarks import ANIME, COLOURS, PARTS
from rainlab.show.figures import STYLE, new_figure

MARGIN = 0.06  # around the points, as a share of a panel
GROUP = "#E8B100"
PLAIN = "#CFE8FF"


@mpl.rc_context(STYLE)
def numbered(
    panels: Mapping[str, Mapping[str, Any]], columns: int = 3, side: float = 3.3, alike: bool = False
) -> Figure:
    """A panel a face, on black, cut to the face; ``alike``: all panels to the same part of the picture.

    panels: title -> ``points`` ``(n, 2)`` in units of a square picture, 26 of them in their parts' colours, others
    pale; and, where wanted, ``groups`` (tuples of points to mark as one), ``picture`` uint8 ``(h, w, 3)`` behind them,
    ``numbers`` False. ``side``: of a panel in inches.

    Raises ValueError for no panel, or points of another shape or not finite.
    """
    sets = [np.asarray(panel["points"], np.float64) for panel in panels.values()]
    if not sets or any(points.ndim != 2 or points.shape[1] != 2 for points in sets):
        raise ValueError(f"panels: got points of shapes {[x.shape for x in sets]}, expected (n, 2), one panel at least")
    if lost := [title for title, points in zip(panels, sets, strict=True) if not np.isfinite(points).all()]:
        raise ValueError(f"panels: got points that are not finite in {', '.join(lost)}; leave them out")
    boxes = [_box(np.concatenate(sets) if alike else points) for points in sets]
    rows = -(-len(panels) // columns)
    figure = new_figure(side * min(columns, len(panels)), (side + 0.3) * rows, layout="constrained")
    grid = figure.subplots(rows, min(columns, len(panels)), squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (title, panel), points, (low, high) in zip(grid, panels.items(), sets, boxes, strict=False):
        axes.set(facecolor="black", title=title, xticks=[], yticks=[], aspect="equal")
        axes.grid(False)
        if (picture := panel.get("picture")) is not None:
            axes.imshow(picture, extent=(0, 1, 1, 0), interpolation="nearest", aspect="equal", zorder=0)
        axes.set(xlim=(low[0], high[0]), ylim=(high[1], low[1]))
        for group in panel.get("groups", ()):
            _ring(axes, points[list(group)])
        axes.scatter(*points.T, s=9, c=_colours(len(points)), zorder=3)
        if panel.get("numbers", True):
            for i, (point, away) in enumerate(zip(points, _away(points), strict=True)):
                axes.annotate(
                    str(i), point, 5.5 * away, textcoords="offset points", fontsize=5, color="white", zorder=4,
                    ha="center", va="center",
                )  # fmt: skip
    return figure


def pictures(points: np.ndarray, size: tuple[int, int], radius: float = 1.0) -> np.ndarray:
    """A film of points ``(f, n, 2)`` in units of a square picture, pale on black: uint8 ``(f, height, width, 3)``."""
    height, width = size
    rows, columns = (np.arange(n) + 0.5 for n in size)
    x, y = (points[..., i, None] * n for i, n in ((0, width), (1, height)))
    shade = np.zeros((len(points), height, width))
    for i in range(points.shape[1]):
        far = np.hypot((columns - x[:, i])[:, None, :], (rows - y[:, i])[:, :, None])
        np.maximum(shade, np.clip(radius + 0.5 - far, 0, 1), out=shade)
    colour = np.array([int(PLAIN[i : i + 2], 16) for i in (1, 3, 5)])
    return (shade[..., None] * colour).round().astype(np.uint8)


def _away(points: np.ndarray, neighbours: int = 3) -> np.ndarray:
    """Unit vectors ``(n, 2)``, y up, from a point's nearest neighbours: where its number is in nobody's way."""
    near = np.linalg.norm(points[:, None] - points, axis=-1).argsort(1)[:, 1 : neighbours + 1]
    away = (points - points[near].mean(1)) * (1, -1)
    return away / np.linalg.norm(away, axis=-1, keepdims=True).clip(1e-9)


def _box(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper left and lower right corner of a square around points, MARGIN of its side away from the outermost."""
    middle = (points.min(0) + points.max(0)) / 2
    half = np.ptp(points, axis=0).max() / 2 / (1 - 2 * MARGIN)
    return middle - half, middle + half


def _colours(count: int) -> Sequence[Any]:
    if count != ANIME:
        return [PLAIN] * count
    part_of = {i: part for part, members in PARTS.items() for i in range(*members.indices(ANIME))}
    return [tuple(n / 255 for n in COLOURS[part_of[i]]) for i in range(ANIME)]


def _ring(axes: Any, points: np.ndarray) -> None:
    """A yellow line around the points of a group, and a circle around one alone."""
    if len(points) == 1:
        axes.scatter(*points.T, s=18, color=GROUP, alpha=0.55, linewidths=0, zorder=2)
    else:
        axes.plot(*points.T, color=GROUP, linewidth=3.5, alpha=0.45, solid_capstyle="round", zorder=2)
