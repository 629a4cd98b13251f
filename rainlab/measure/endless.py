"""The endless stream: does a character fade, drift in colour or turn into another one after thousands of frames?

The failure the paper shows in Figure 6 (error accumulation of methods that feed frames back). One held-out character
is driven by ever new motion, and every frame is compared with its truth, which the studio renders to the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rainlab import runs
from rainlab.config import Preset
from rainlab.data import pose
from rainlab.data.studio import body
from rainlab.measure import metrics
from rainlab.method.stream import Stream
from rainlab.training import stages

VERSION = 1  # raised when the numbers would come out differently
PROTOCOL = "endless-1"
FRAMES = 5000
STRETCH = 100  # frames of one motion, and of one number


def stretches(preset: Preset, character: int, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(frames, conditions, mask) of a held-out character in one new motion after the other, as in a `Clip`."""
    who = body.split_seeds("test", 1, character)
    for number in range(frames // STRETCH):
        how = body.split_seeds("test", 1, number)
        clip = body.render(who, how, STRETCH, preset.data.size, preset.data.fps, facing=preset.data.facing)
        yield clip.frames[0].numpy(), pose.draw(clip.keypoints, preset.data.size)[0].numpy(), clip.mask[0].numpy()


def long_run(preset: Preset, frames: int = FRAMES, character: int = 0, record: bool = False) -> runs.Run:
    """The run of one endless stream.

    Args:
        frames: how many, a multiple of STRETCH. character: number of the held-out character.
        record: as in :func:`rainlab.measure.evaluate.measure`.

    Metrics, one row for each stretch (label ``frame``: its first): ``psnr_fg``, ``ssim_fg``, ``colour`` (distance of
    the foreground's mean colour from the truth's, grey levels), ``memory`` (MiB of the process); and for each of the
    first three ``<name>_drift``, the change over 1000 frames (:func:`drift`).
    A picture every STRETCH frames stays in ``strip.npy``.

    Raises:
        ValueError: frames is no multiple of STRETCH. FileNotFoundError: nothing recorded, or no weights.
    """
    if frames < STRETCH or frames % STRETCH:
        raise ValueError(f"frames: got {frames}, expected a positive multiple of {STRETCH}, the length of a stretch")
    config = {"preset": preset.name, "stream": asdict(preset.stream), "size": preset.data.size, "fps": preset.data.fps,
              "studio": body.VERSION, "frames": frames, "stretch": STRETCH, "character": character}  # fmt: skip
    config |= {"facing": True} if preset.data.facing else {}
    inputs = {"model": stages.run_id(preset, "distill3d")}
    if not record:
        return runs.get(runs.run_id("endless", config, VERSION, inputs))
    run = runs.open_run("endless", config, VERSION, inputs)
    if run.finished:
        return run
    stream = Stream(stages.trained(preset, "distill3d"))
    waiting: list[tuple[np.ndarray, np.ndarray]] = []  # truth and mask of frames that are still in the window
    made: list[np.ndarray] = []
    rows: dict[str, list[float]] = {"psnr_fg": [], "ssim_fg": [], "colour": []}
    strip = []

    def compare(number: int) -> None:
        ours, (truth, mask) = np.stack(made), (np.stack(x) for x in zip(*waiting[: len(made)], strict=True))
        values = metrics.evaluate(ours[None], truth[None], mask[None])
        rows["psnr_fg"].append(float(values["psnr_fg"][0]))
        rows["ssim_fg"].append(float(values["ssim_fg"][0]))
        rows["colour"].append(float(np.linalg.norm(ours[mask].mean(0) - truth[mask].mean(0))))
        for name, each in rows.items():
            run.record(name, each[-1], n=len(made), protocol=PROTOCOL, frame=number * STRETCH)
        run.record("memory", _resident(), frame=number * STRETCH)
        strip.append(ours[-1])
        del waiting[: len(made)], made[:]

    last = frames // STRETCH - 1
    driven = tqdm(stretches(preset, character, frames), "stretches", last + 1, leave=False)
    for number, (truth, condition, mask) in enumerate(driven):
        if number == 0:
            stream.reference(truth[0])
        waiting += zip(truth, mask, strict=True)
        made += stream.push(list(condition))
        if number == last:
            made += stream.flush()
        compare(number)
    for name, each in rows.items():
        run.record(f"{name}_drift", *drift(each), PROTOCOL)
    np.save(run.path / "strip.npy", np.stack(strip))
    return run.finish()


def drift(values: list[float], draws: int = 2000) -> metrics.Estimate:
    """Slope over 1000 frames of one value for each stretch, with its 95 % bootstrap interval over stretches."""
    y = np.asarray(values)
    x = np.arange(len(y)) * STRETCH / 1000
    rng = np.random.default_rng(0)
    picks = rng.integers(len(y), size=(draws, len(y)))
    slopes = [np.polyfit(x[pick], y[pick], 1)[0] for pick in picks if np.ptp(x[pick]) > 0]
    low, high = np.quantile(slopes, [0.025, 0.975])
    return metrics.Estimate(float(np.polyfit(x, y, 1)[0]), float(low), float(high), len(y))


def _resident() -> float:
    """MiB of memory this process holds now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if statm.exists() else 0.0
