"""What a stream remembers, and two cures of section 6.1: weaker attention over time, and more pictures to look at.

A mistake travels through attention over frames, from a group to those that share its window. So a disturbance is let in
at one group, as noise that is off in a part of the picture, and its trace is followed; the paper would weaken that
attention (`temporal_strength`), which costs what the attention is there for. And what the reference does not show is
invented anew by every group, which a second picture of the character may spare.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.config import Preset, identity
from rainlab.data import dataset
from rainlab.measure import evaluate, metrics
from rainlab.measure.ways import flops
from rainlab.method.rain import RAIN
from rainlab.method.sampling import mirrored
from rainlab.method.stream import Stream
from rainlab.training import stages

VERSION = 1
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
CLIPS = 16
AT, AFTER = 200, 100  # frame of the disturbance, and for how many it is followed
OFFSET = 3.0  # of the noise in a quarter of the picture, in its deviations


class Disturbed:
    """Noise as a stream draws it, but that of the group which enters with frame ``at`` is off. None: nowhere."""

    def __init__(self, at: int | None, group_size: int, seed: int = 0):
        self._generator, self._group = torch.Generator().manual_seed(seed), None if at is None else at // group_size
        self._calls = 0

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        noise = torch.randn(shape, generator=self._generator)
        entering, tick = self._calls % 2 == 0, self._calls // 2  # with N = 1 a tick draws twice
        self._calls += 1
        if entering and tick == self._group:
            noise[..., : shape[-2] // 2, : shape[-1] // 2] += OFFSET
        return noise


def trace(preset: Preset, model: RAIN, strength: float, clips: int = 4) -> np.ndarray:
    """How much a disturbance at frame AT changes frames, mean over clips, in grey levels: from AT on, ``(AFTER,)``.

    ValueError for more than one call between two pops.
    """
    if preset.stream.steps_per_group != 1:
        raise ValueError(f"steps_per_group: got {preset.stream.steps_per_group}, expected 1")
    held, size = evaluate.held_out(preset, clips), preset.stream.window // preset.stream.groups
    driver, films = mirrored(held.condition.shape[1], 0, AT + AFTER + preset.stream.window), []
    for at in (AT, None):
        options = evaluate.stream_options(preset, model) | {"temporal_strength": strength}
        stream = Stream(model, batch=len(held.reference), noise=Disturbed(at, size), **options)
        stream.reference(held.reference)
        films.append(np.stack(stream.push([held.condition[:, i] for i in driver]), axis=1)[:, AT : AT + AFTER])
    return np.abs(films[0].astype(float) - films[1]).mean((0, 2, 3, 4))


def views(preset: Preset) -> dict[str, list[np.ndarray]]:
    """What a character may be shown in, ``(CLIPS, h, w, 3)`` each: the reference, and a picture before the driver."""
    clips = dataset.clips_of(preset.data, "test")[:CLIPS]
    first, later = (np.stack([clip.frames[i] for clip in clips]) for i in (0, preset.data.test_gap // 2))
    shown = {"the reference": [first], "the reference, twice": [first, first]}
    return shown | {"and a picture from later on": [first, later]}


def memory(preset: Preset, record: bool = False) -> runs.Run:
    """The run with all of this; ``record`` as in :func:`rainlab.measure.evaluate.measure`.

    Metrics: with label ``strength``: ``disturbed`` (:func:`trace`, label ``frame``, from the disturbance on);
    with ``strength`` or ``shown`` (a key of :func:`views`), over CLIPS held-out clips: psnr_fg, tde,
    sharpness_error, ``flicker`` of a frozen pose; with ``shown`` also ``flops`` of one frame.
    """
    config, inputs = evaluate.describe(preset, "rain")
    config |= {"strengths": STRENGTHS, "clips": CLIPS, "at": AT, "after": AFTER, "offset": OFFSET}
    config["stream"] = identity(preset.stream)
    if not record:
        return runs.recorded(runs.run_id("memory", config, VERSION, inputs), preset.name)
    run = runs.open_run("memory", config, VERSION, inputs)
    with run.lock():
        if not run.finished:
            model, shown = stages.trained(preset, "distill3d"), views(preset)
            for strength in tqdm(STRENGTHS, "strengths"):
                for frame, value in enumerate(trace(preset, model, strength)):
                    run.record("disturbed", float(value), strength=strength, frame=frame)
                for name, values in _measured(preset, model, shown["the reference"], strength):
                    run.record(name, *metrics.bootstrap(values), metrics.PROTOCOL, strength=strength)
            for label, pictures in tqdm(shown.items(), "references"):
                for name, values in _measured(preset, model, pictures, 1.0):
                    run.record(name, *metrics.bootstrap(values), metrics.PROTOCOL, shown=label)
                run.record("flops", _flops(preset, model, [x[0] for x in pictures]), shown=label)
            run.finish()
    return run


def recorded(preset: Preset) -> runs.Run | None:
    """As :func:`memory`, but None where nothing is recorded."""
    try:
        return memory(preset)
    except FileNotFoundError:
        return None


def _measured(preset: Preset, model: RAIN, pictures: list, strength: float) -> Iterator[tuple[str, np.ndarray]]:
    held, length = evaluate.held_out(preset, CLIPS), preset.data.test_frames
    around = preset.stream.window - preset.stream.window // preset.stream.groups
    driver = mirrored(length, around, around + -length % (preset.stream.window // preset.stream.groups))
    made = []
    for condition in (held.condition, np.repeat(held.condition[:, :1], length, axis=1)):  # driven, and frozen
        options = evaluate.stream_options(preset, model) | {"temporal_strength": strength}
        stream = Stream(model, batch=len(held.reference), **options)
        stream.references(pictures)
        frames = stream.push([condition[:, i] for i in driver])
        made.append(np.stack(frames[around : around + length], axis=1))
    found = metrics.evaluate(made[0], held.frames, held.mask)
    yield from ((name, found[name]) for name in ("psnr_fg", "tde", "sharpness_error"))
    yield "flicker", metrics.flicker(made[1])


def _flops(preset: Preset, model: RAIN, pictures: list[np.ndarray]) -> float:
    stream, size = Stream(model, **evaluate.stream_options(preset, model)), preset.stream.window // preset.stream.groups
    stream.references(pictures)
    conditions = [np.zeros_like(pictures[0])] * preset.stream.window
    stream.push(conditions)
    return flops(partial(stream.push, conditions[:size])) / size
