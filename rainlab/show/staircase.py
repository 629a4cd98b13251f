"""The paper's idea as one picture: the staircase of noise levels during a tick, and over the first ticks."""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rainlab.method.schedule import TRAIN_TIMESTEPS, check_window, stream_times
from rainlab.show.figures import ACCENT, CLEAN, INK, NOISE, STYLE, new_figure


@mpl.rc_context(STYLE)
def staircase(window: int = 16, groups: int = 4, steps_per_group: int = 1, ticks: int = 8) -> Figure:
    """The paper's idea in one picture: noise levels in the window during one tick, and over the first ticks.

    Left: the K frames stand in p groups like stairs (equation 7); N network calls lower every group by T/p, the first
    group is clean and leaves, a group of noise enters. Right: the same from the start of a stream (Algorithm 1).
    ValueError unless p divides K.
    """
    check_window(window, groups)
    times = stream_times(groups, steps_per_group).numpy()  # (N + 1, p)
    figure = new_figure(11, 4.3, layout="constrained")
    turn, life = figure.subplots(1, 2, width_ratios=(1, 1.2))
    _turn(turn, times, window // groups)
    _life(life, times[0], window // groups, ticks)
    return figure


def _turn(axes: Any, times: np.ndarray, size: int) -> None:
    """One tick: the stairs before (pale) and after (solid) its network calls, who leaves and who enters."""
    calls, groups = len(times) - 1, times.shape[1]
    window, step = size * groups, TRAIN_TIMESTEPS / groups
    for group, (high, low) in enumerate(zip(times[0], times[-1], strict=True)):
        slots = np.arange(size) + group * size + 1
        before, after = NOISE(high / TRAIN_TIMESTEPS), NOISE(low / TRAIN_TIMESTEPS)
        axes.bar(slots, high - low, 0.84, low, color=(*before[:3], 0.3), edgecolor=before, linewidth=0.8)
        axes.bar(slots, low, 0.84, color=after)
        for start, stop in zip(times[:-1, group], times[1:, group], strict=True):
            arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 1, "shrinkB": 0}
            axes.annotate("", (slots.mean(), stop), (slots.mean(), start), arrowprops=arrow)
    margin = 0.3 * window + 0.5
    low, high = step / 2, TRAIN_TIMESTEPS - step / 2
    frames = f"{size} frame{'s' * (size > 1)}"
    arrow = {"arrowstyle": "-|>", "color": ACCENT, "linewidth": 2, "mutation_scale": 14}
    words = {"color": ACCENT, "fontsize": 9, "linespacing": 1.3, "ha": "center"}
    axes.annotate("", (0.5 - margin / 2, low), (0.4, low), arrowprops=arrow)
    axes.text(0.5 - margin / 2, low + 30, f"{frames}\nclean: out", va="bottom", **words)
    axes.annotate("", (window + 0.6, high), (window + 0.6 + margin / 2, high), arrowprops=arrow)
    axes.text(window + 0.5 + margin / 2, high - 30, f"{frames} of\nnoise: in", va="top", **words)
    call = "one network call" if calls == 1 else f"{calls} network calls"
    text = f"{call}:\nall frames down by T/p = {step:g}"
    axes.text(0.5 - 0.9 * margin, TRAIN_TIMESTEPS, text, va="top", fontsize=9, linespacing=1.3)
    axes.set(title=f"One tick: K = {window} frames, p = {groups} noise levels", ylim=(0, 1040))
    axes.set(xlabel="slot in the window (older → newer frames)", ylabel="time step t (0 clean, 1000 noise)")
    axes.set(xlim=(0.5 - margin, window + 0.5 + margin), yticks=np.arange(groups + 1) * step)
    axes.set_xticks([1, *(np.arange(1, groups + 1) * size)])
    axes.grid(False, axis="x")


def _life(axes: Any, levels: np.ndarray, size: int, ticks: int) -> None:
    """The first ticks of a stream: a row is the window at one tick, a column the life of one group of frames."""
    groups = len(levels)
    for tick in range(1, ticks + 1):
        for group in range(tick):  # those that have entered so far, oldest first
            age = tick - group  # 1 in the tick in which it enters
            level = levels[groups - age] if age <= groups else 0
            corner, colour = (group * size, tick - 0.43), NOISE(level / TRAIN_TIMESTEPS) if level else CLEAN
            axes.add_patch(Rectangle(corner, 0.96 * size, 0.86, facecolor=colour))
            frames = group * size + np.arange(1, size)
            axes.vlines(frames, tick - 0.43, tick - 0.27, color="white", linewidth=0.6)
            axes.vlines(frames, tick + 0.27, tick + 0.43, color="white", linewidth=0.6)
            if ticks <= 12 and age <= groups + 1:
                ink = ACCENT if not level else "white" if level > 400 else INK
                words = {"ha": "center", "va": "center", "fontsize": 9, "color": ink}
                axes.text((group + 0.5) * size, tick, str(level or "clean"), **words)
    text = f"soft start: one group more each tick,\nthe first frames leave after tick {groups}"
    axes.text(ticks * size, 0.6, text, ha="right", va="top", fontsize=9, linespacing=1.3)
    axes.set(title=f"The stream from its start: latency K = {size * groups} frames", ylim=(ticks + 0.6, 0.4))
    axes.set(xlabel="frame of the stream", ylabel="tick (colour and number: t before its calls)")
    every = -(-ticks // 10)
    axes.set(xticks=np.arange(0, ticks + 1, every) * size, yticks=np.arange(1, ticks + 1, every))
    axes.set_xlim(-0.3, ticks * size + 0.3)
    axes.grid(False)
