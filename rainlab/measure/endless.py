"""The endless stream: does a character fade, drift in colour or turn into another one after thousands of frames?

The failure the paper shows in Figure 6 (error accumulation of methods that feed frames back). One held-out character
is driven by ever new motion, and every frame is compared with its truth, which the studio renders to the end. The
yardstick is the same stream fed back: from stretch to stretch its own last frame becomes the reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from rainlab import runs
from rainlab.config import Preset, identity
from rainlab.data import pose
from rainlab.data.studio import body
from rainlab.measure import evaluate, metrics
from rainlab.method.stream import Stream
from rainlab.training import stages

VERSION = 3  # raised when the numbers would come out differently
PROTOCOL = "endless-3"
NAMES = ("psnr_fg", "ssim_fg", "sharpness_error", "colour", "identity", "tde")
FRAMES = 10_000
STRETCH = 100  # frames of one motion, and of one number


class Stretch(NamedTuple):
    """A motion: frames and conditions uint8 ``(f, h, w, 3)``, mask bool ``(f, h, w)``; another character in it."""

    frames: np.ndarray
    condition: np.ndarray
    mask: np.ndarray
    another: np.ndarray


def stretches(preset: Preset, character: int, frames: int) -> Iterator[Stretch]:
    """A held-out character in one new motion after the other."""
    both = body.split_seeds("test", 2, character)
    for number in range(frames // STRETCH):
        how = body.split_seeds("test", 1, number).repeat(2)
        clips = body.render(both, how, STRETCH, preset.data.size, preset.data.fps, facing=preset.data.facing)
        condition = pose.draw(clips.keypoints[:1], preset.data.size)[0].numpy()
        yield Stretch(clips.frames[0].numpy(), condition, clips.mask[0].numpy(), clips.frames[1].numpy())


def long_run(
    preset: Preset, frames: int = FRAMES, character: int = 0, fed_back: bool = False, record: bool = False
) -> runs.Run:
    """The run of one endless stream.

    Args:
        frames: how many, a multiple of STRETCH. character: number of the held-out character.
        fed_back: the last frame that came out of a stretch is the reference of the next.
        record: as in :func:`rainlab.measure.evaluate.measure`.

    Metrics, one row for what came out during each stretch (label ``frame``: the first that went in): ``psnr_fg``,
    ``ssim_fg``, ``sharpness_error``, ``colour`` (distance of the foreground's mean colour from the truth's, grey
    levels), ``identity`` (dB by which what lies in the true foreground is nearer to the truth than to a picture of the
    next character in the same motion), ``tde`` (motion error), ``memory`` (MiB of the process); and for each of NAMES
    ``<name>_drift``, the change over 1000 frames (:func:`drift`), and ``memory_drift``, without the first tenth, in
    which a process grows to its size.
    The last picture of every stretch and its truth stay in ``strip.npy``, uint8 ``(n, 2, h, w, 3)``.

    Raises:
        ValueError: frames is not two or more whole stretches. FileNotFoundError: nothing recorded, or no weights.
    """
    if frames < 2 * STRETCH or frames % STRETCH:
        expected = f"a multiple of {STRETCH}, the length of a stretch, two at least"
        raise ValueError(f"frames: got {frames}, expected {expected}")
    data = preset.data
    config = {"preset": preset.name, "stream": identity(preset.stream), "size": data.size, "fps": data.fps,
              "studio": body.VERSION, "facing": data.facing, "frames": frames, "stretch": STRETCH,
              "character": character, "fed_back": fed_back}  # fmt: skip
    inputs = {"model": stages.run_id(preset, "distill3d")}
    make = partial(_stream, preset, frames, character, fed_back)
    return runs.made(make, record, preset.name, "endless", config, VERSION, inputs)


def _stream(preset: Preset, frames: int, character: int, fed_back: bool, run: runs.Run) -> None:
    stream = Stream(stages.trained(preset, "distill3d", evaluate.device()))
    waiting, strip, memory = [], [], []  # waiting: truth of frames not out
    rows: dict[str, list[float]] = {name: [] for name in NAMES}
    last = frames // STRETCH - 1
    driven = tqdm(stretches(preset, character, frames), "stretches", last + 1, leave=False)
    for number, stretch in enumerate(driven):
        if number == 0 or fed_back:
            stream.reference(strip[-1][0] if strip else stretch.frames[0])
        waiting += zip(stretch.frames, stretch.mask, stretch.another, strict=True)
        made = stream.push(list(stretch.condition)) + (stream.flush() if number == last else [])
        truth, mask, another = (np.stack(x) for x in zip(*waiting[: len(made)], strict=True))
        del waiting[: len(made)]
        for name, value in _compare(np.stack(made), truth, mask, another).items():
            rows[name].append(value)
            run.record(name, value, n=len(made), protocol=PROTOCOL, frame=number * STRETCH)
        memory.append(_resident())
        run.record("memory", memory[-1], frame=number * STRETCH)
        strip.append(np.stack([made[-1], truth[-1]]))
    for name, each in rows.items():
        run.record(f"{name}_drift", *drift(each), PROTOCOL)
    run.record("memory_drift", *drift(memory[len(memory) // 10 :]), PROTOCOL)
    np.save(run.path / "strip.npy", np.stack(strip))


def _compare(ours: np.ndarray, truth: np.ndarray, mask: np.ndarray, another: np.ndarray) -> dict[str, float]:
    """The measures NAMES of a stretch."""
    values = metrics.evaluate(ours[None], truth[None], mask[None])
    values["identity"] = values["psnr_fg"] - metrics.psnr(ours[None], another[None], mask[None])
    values["colour"] = [np.linalg.norm(ours[mask].mean(0) - truth[mask].mean(0))]
    return {name: float(values[name][0]) for name in NAMES}


def drift(values: list[float], spacing: float = STRETCH / 1000, draws: int = 2000) -> metrics.Estimate:
    """Slope of values at even distances, with its 95 % bootstrap interval over them.

    spacing: between two values in units of which the slope is one; as it is: thousands of frames between stretches.
    """
    y = np.asarray(values)
    x = np.arange(len(y)) * spacing
    rng = np.random.default_rng(0)
    picks = rng.integers(len(y), size=(draws, len(y)))
    slopes = [np.polyfit(x[pick], y[pick], 1)[0] for pick in picks if np.ptp(x[pick]) > 0]
    low, high = np.quantile(slopes, [0.025, 0.975])
    return metrics.Estimate(float(np.polyfit(x, y, 1)[0]), float(low), float(high), len(y))


def _resident() -> float:
    """MiB of memory this process holds now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if statm.exists() else 0.0
