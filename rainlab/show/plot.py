"""Arrays in, Figure out: the pictures and charts of the notebooks.

Every function returns a closed matplotlib Figure: a notebook cell that ends in the call shows it exactly once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import patheffects
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from rainlab.show.figures import COLOURS, GREY, INK, NOISE, STYLE, folder, new_figure, save, save_film, use_style, webp
from rainlab.show.staircase import staircase

__all__ = [
    "attention", "bars_with_ci", "curves", "depth_rgb", "flow_rgb", "folder", "histogram", "save", "save_film", "sheet",
    "stack", "staircase", "strip", "use_style", "video",
]  # fmt: skip
_WIDTH = 960  # pixels across a notebook


@mpl.rc_context(STYLE)
def sheet(
    rows: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    scale: int | None = None,
    title: str | None = None,
    columns: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Rows of pictures, each with its label: ``{label: uint8 (n, h, w, 3)}``, or without; all of one size.

    `scale` enlarges by a whole factor without smoothing (None: until a notebook's width is filled, at most 5);
    `columns` are labels under the pictures, `names` one for every picture, row by row, in its lower left corner.
    ValueError for anything but uint8 pictures of one size.
    """
    rows = rows if isinstance(rows, Mapping) else {" " * i: stack for i, stack in enumerate(rows)}
    stacks = [_pictures(stack, f"row {label!r}") for label, stack in rows.items()]
    if not stacks or len({stack.shape[1:] for stack in stacks}) > 1:
        got = {label: np.shape(stack) for label, stack in rows.items()}
        raise ValueError(f"rows: got {got}, expected at least one row and pictures of one size; resize them")
    count, (height, width) = max(map(len, stacks)), stacks[0].shape[1:3]
    if len(columns or ()) > count:
        raise ValueError(f"columns: got {len(columns)} labels, expected at most {count}, one a picture")
    gap = 3
    scale = scale or int(np.clip(np.ceil(_WIDTH / (count * width)), 1, 5))
    height, width = height * scale, width * scale
    canvas = np.full((len(stacks) * (height + gap) - gap, count * (width + gap) - gap, 3), 255, np.uint8)
    for i, stack in enumerate(stacks):
        for j, picture in enumerate(stack):
            top, left = i * (height + gap), j * (width + gap)
            canvas[top : top + height, left : left + width] = picture.repeat(scale, 0).repeat(scale, 1)
    zoom = max(1.0, canvas.shape[1] / _WIDTH)  # the page shrinks a wide sheet: larger letters stay readable
    letters = max(len(line.strip()) for label in rows for line in label.split("\n"))
    left = round((7 * letters + 12 * (letters > 0)) * zoom)
    above, below = round((26 if title else 2) * zoom), round((20 if columns else 2) * zoom)
    across, down = left + canvas.shape[1] + 2, above + canvas.shape[0] + below
    figure = new_figure(across / 100, down / 100)
    place = (left / across, below / down, canvas.shape[1] / across, canvas.shape[0] / down)
    axes = figure.add_axes(place)  # as many pixels as the canvas has: nothing is resampled
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    for i, label in enumerate(rows):
        axes.text(-8 * zoom, i * (height + gap) + height / 2, label, ha="right", va="center", fontsize=10 * zoom)
    for j, label in enumerate(columns or ()):
        middle, bottom = j * (width + gap) + width / 2, canvas.shape[0] + 5
        axes.text(middle, bottom, label, ha="center", va="top", fontsize=9 * zoom)
    cells = [(i, j) for i, stack in enumerate(stacks) for j in range(len(stack))]
    for (i, j), name in zip(cells, names or (), strict=False):
        corner = j * (width + gap) + 4, (i + 1) * (height + gap) - gap - 4
        shade = [patheffects.withStroke(linewidth=2 * zoom, foreground="#00000099")]
        axes.text(*corner, name, va="bottom", fontsize=8 * zoom, color="white", path_effects=shade)
    if title:
        axes.set_title(title, pad=8, fontsize=11 * zoom)
    return figure


def strip(
    frames: np.ndarray, labels: Sequence[str] | None = None, scale: int | None = None, title: str | None = None
) -> Figure:
    """Frames ``uint8 (f, h, w, 3)`` side by side in order of time, with labels under them."""
    return sheet({"": frames}, scale=scale, title=title, columns=labels)


def _pictures(pictures: Any, what: str) -> np.ndarray:
    pictures = np.asarray(pictures)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or 0 in pictures.shape:
        raise ValueError(f"{what}: got {pictures.dtype} {pictures.shape}, expected uint8 (n, h, w, 3); convert it")
    return pictures


def flow_rgb(flow: np.ndarray, limit: float | None = None) -> np.ndarray:
    """Optical flow ``(…, h, w, 2)`` in pixels (x, y) as ``uint8 (…, h, w, 3)``: hue is direction, saturation speed.

    White stands still; `limit` pixels a frame (None: the largest there is) are fully saturated. Right is red, down
    yellow-green, left cyan, up violet.
    """
    x, y = np.moveaxis(np.asarray(flow, np.float64), -1, 0)
    speed = np.hypot(x, y)
    limit = limit or max(float(speed.max(initial=0)), 1e-9)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    hsv = np.stack([hue, np.clip(speed / limit, 0, 1), np.ones_like(hue)], -1)
    return np.round(hsv_to_rgb(hsv) * 255).astype(np.uint8)


def depth_rgb(depth: np.ndarray) -> np.ndarray:
    """Depth ``(…, h, w)`` in [0, 1] (1 near, 0 background) as ``uint8 (…, h, w, 3)``, near bright."""
    return mpl.colormaps["magma"](np.clip(np.asarray(depth, np.float64), 0, 1), bytes=True)[..., :3]


def video(frames: np.ndarray, fps: float = 12.0, scale: int = 4) -> Any:
    """Frames ``uint8 (f, h, w, 3)`` as a film that plays in the notebook, again and again: an IPython Image.

    An animated WebP, enlarged by the whole factor `scale` without smoothing. JupyterLab shows pictures at once, but no
    videos in a notebook that was opened and not executed, since it does not trust its HTML.
    """
    from IPython.display import Image

    frames = _pictures(frames, "frames")
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    return Image(webp(frames, fps, scale), format="webp", width=width, height=height)


@mpl.rc_context(STYLE)
def curves(
    series: Mapping[str, Sequence[Mapping[str, float]]],
    x: str = "step",
    y: str = "loss",
    smooth: int = 0,
    log: bool = False,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str | None = None,
) -> Figure:
    """Lines ``{label: rows}``; every row is a dict that holds `x` and `y`.

    `smooth`: rows to either side in a centred running mean, which does not lag; the raw line stays behind it, pale.
    """
    if smooth != int(smooth) or smooth < 0:
        raise ValueError(f"smooth: got {smooth}, expected a number of rows, 0 for none; 10 suits some hundred rows")
    figure = new_figure(7, 3.4, layout="constrained")
    axes = figure.add_subplot()
    for label, rows in series.items():
        xs, ys = (np.array([row[key] for row in rows], np.float64) for key in (x, y))
        (line,) = axes.plot(xs, _running_mean(ys, smooth), label=label)
        if smooth:
            axes.plot(xs, ys, color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)
    axes.set(xlabel=xlabel or x, ylabel=ylabel or y, yscale="log" if log else "linear", title=title or "")
    axes.margins(x=0.01)
    if len(series) > 3:  # too many for a free corner: below the axes
        columns = 2 if max(map(len, series)) > 20 else 6
        figure.set_figheight(3.4 + 0.25 * -(-len(series) // columns))
        figure.legend(loc="outside lower center", ncols=columns)
    elif any(series):
        axes.legend()
    return figure


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean of the rows at most `reach` away, near ones weighing more; at the ends of those that there are."""
    weights = np.hanning(2 * reach + 3)
    total, weight = (np.convolve(v, weights)[reach + 1 : -reach - 1] for v in (values, np.ones_like(values)))
    return total / weight


@mpl.rc_context(STYLE)
def stack(series: Mapping[str, Sequence[Mapping[str, float]]], x: str, title: str | None = None) -> Figure:
    """Several quantities over the same x, one above the other: ``{label with unit: rows}`` with `x` and "value"."""
    figure = new_figure(7, 0.6 + 1.5 * len(series), layout="constrained")
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, rows), colour in zip(panels, series.items(), COLOURS, strict=False):
        axes.plot([row[x] for row in rows], [row["value"] for row in rows], color=colour)
        axes.set_title(label, fontsize=10, fontweight="normal")
        axes.set_ylim(0, 1.15 * max((row["value"] for row in rows), default=1))
        axes.margins(x=0.01)
    panels[-1].set_xlabel(x)
    figure.align_ylabels(panels)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@mpl.rc_context(STYLE)
def histogram(
    values: np.ndarray, marks: Mapping[str, float] | None = None, xlabel: str = "", ylabel: str = "", bins: int = 40
) -> Figure:
    """How often which values occur, from 0 on, with lines at `marks`, which the title names in order."""
    figure = new_figure(7, 2.6, layout="constrained")
    axes = figure.add_subplot()
    edges = np.linspace(0, 1.15 * float(np.max(values, initial=0)) or 1.0, bins + 1)
    axes.hist(values, edges, color=COLOURS[0], alpha=0.85)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(x=0.01)
    for value in (marks or {}).values():
        axes.axvline(value, color=INK, linewidth=1.2)
    named = ", ".join(f"{label} {value:.4g}" for label, value in (marks or {}).items())
    axes.set_title(named, fontweight="normal", fontsize=10)
    return figure


@mpl.rc_context(STYLE)
def bars_with_ci(
    rows: Sequence[Mapping[str, Any]],
    label: str = "model",
    units: Mapping[str, str] | None = None,
    title: str | None = None,
    origins: Mapping[str, float] | None = None,
    alike: bool = False,
) -> Figure:
    """Bars from recorded rows (`Run.metrics()`): one panel a metric, one bar for each value of the label column.

    Rows without ci_low and ci_high (reported ones) have no whisker and a grey bar. `units`: metric -> text; `origins`:
    metric -> where its bars begin, 0 if not named (1 for a ratio). `alike`: all panels have one scale.
    """
    metrics, names = (list(dict.fromkeys(row[key] for row in rows)) for key in ("metric", label))
    figure = new_figure(2 + 2.6 * len(metrics), 0.9 + 0.42 * len(names), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharex=alike, sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        left = (origins or {}).get(metric, 0.0)
        for row in (row for row in rows if row["metric"] == metric):
            at, end, measured = names.index(row[label]), row["value"], row.get("ci_low") is not None
            axes.barh(at, end - left, 0.6, left, color=COLOURS[0] if measured else "#C3C8CE", alpha=0.85)
            if measured:
                end = row["ci_high"]
                axes.plot([row["ci_low"], end], [at, at], color=INK, linewidth=1.4, solid_capstyle="butt")
            text = f"{round(row['value'], 3):.4g}"
            axes.annotate(text, (max(end, left), at), (5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set(xlabel=(units or {}).get(metric, ""), title=metric, yticks=range(len(names)), yticklabels=names)
        axes.margins(x=0.22)  # room for the numbers; the axis starts where the bars do: barh sees to it
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].invert_yaxis()
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@mpl.rc_context(STYLE)
def stacked_bars(
    rows: Mapping[str, Mapping[str, float]],
    unit: str,
    limits: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """One bar a row, made of its parts, the sum at its end; `limits` are lines across all bars."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    figure = new_figure(8.5, 1.2 + 0.34 * len(rows), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(rows.values()):
        left = 0.0
        for part, colour in zip(parts, COLOURS, strict=False):
            axes.barh(at, row.get(part, 0.0), 0.66, left, color=colour, label=part if at == 0 else None)
            left += row.get(part, 0.0)
        at_end = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 9}
        axes.annotate(f"{left:.3g}", (1, at), **at_end)
    for name, limit in (limits or {}).items():
        axes.axvline(limit, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        axes.annotate(
            name, (limit, 1), (3, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=9
        )
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=unit)
    axes.margins(x=0.1)  # room for the sums on the right
    axes.invert_yaxis()
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(parts), fontsize=9)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@mpl.rc_context(STYLE)
def attention(maps: Mapping[str, np.ndarray], timesteps: Sequence[int]) -> Figure:
    """Temporal attention ``{title: (K, K)}`` side by side, rows ask and columns answer; lines part the noise groups.

    `timesteps`: of the K frames, equal within a group. ValueError for maps of another size.
    """
    steps = np.asarray(timesteps)
    starts = np.flatnonzero(np.diff(steps, prepend=steps[0] - 1))
    centres = (starts + np.append(starts[1:], len(steps)) - 1) / 2
    figure = new_figure(1.2 + 2.9 * len(maps), 3.3, layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    top = max(float(np.max(weights)) for weights in maps.values())
    for axes, (title, weights) in zip(panels, maps.items(), strict=True):
        if np.shape(weights) != (len(steps), len(steps)):
            raise ValueError(f"map {title!r}: got shape {np.shape(weights)}, expected {(len(steps),) * 2}: (K, K)")
        image = axes.imshow(np.asarray(weights), cmap=NOISE, vmin=0, vmax=top, interpolation="nearest")
        for border in starts[1:] - 0.5:
            axes.axhline(border, color=GREY, linewidth=0.8)
            axes.axvline(border, color=GREY, linewidth=0.8)
        axes.set(title=title, xlabel="attended frame, at t =", xticks=centres, xticklabels=steps[starts])
        axes.set(yticks=centres, yticklabels=steps[starts])
        axes.grid(False)
        axes.tick_params(length=0)
    panels[0].set_ylabel("attending frame, at t =")
    figure.colorbar(image, ax=panels, label="attention weight", shrink=0.85).outline.set_visible(False)
    return figure
