"""How a stream begins, what it remembers, and what cures there are against mistakes that live on in it.

Section 4.2 begins softly, with a window that fills, and says that one filled with a still picture degenerates. A
mistake travels through attention over frames, from a group to those that share its window. So a disturbance is let in
at one group, as noise that is off in a part of the picture, and its trace is followed; the paper would weaken that
attention (`temporal_strength`, section 6.1), which costs what the attention is there for; others train the network for
it (:data:`rainlab.measure.ablations.CURES`). And what the reference does not show is invented anew by every group,
which a second picture of the character may spare.
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
from rainlab.measure import ablations, evaluate, metrics
from rainlab.measure.ways import flops
from rainlab.method.rain import RAIN
from rainlab.method.sampling import mirrored
from rainlab.method.stream import Stream
from rainlab.training import stages

VERSION = 2
STARTS = ("soft start", "filled with a still picture")
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
    held, size = evaluate.held_out(preset, clips), preset.stream.group_size
    driver, films = mirrored(held.condition.shape[1], 0, AT + AFTER + preset.stream.window), []
    for at in (AT, None):
        options = evaluate.stream_options(preset, model) | {"temporal_strength": strength}
        stream = Stream(model, batch=len(held.reference), noise=Disturbed(at, size), **options)
        stream.reference(held.reference)
        films.append(np.stack(stream.push([held.condition[:, i] for i in driver]), axis=1)[:, AT : AT + AFTER])
    return np.abs(films[0].astype(float) - films[1]).mean((0, 2, 3, 4))


def beginning(preset: Preset, model: RAIN) -> dict[str, np.ndarray]:
    """Foreground PSNR of the first frames of a test clip by way of beginning, ``(CLIPS, test_frames)`` each.

    The still picture is the reference in its own pose; its frames, which come out before the clip's, are left out.
    """
    held, size = evaluate.held_out(preset, CLIPS), preset.stream.group_size
    poses = np.stack([clip.condition[0] for clip in dataset.clips_of(preset.data, "test")[:CLIPS]])
    found = {}
    for start in STARTS:
        stream = Stream(model, batch=len(held.reference), **evaluate.stream_options(preset, model))
        stream.reference(held.reference)
        if start != "soft start":
            stream.fill(held.reference, poses)
        made = stream.push([held.condition[:, i] for i in range(held.condition.shape[1])]) + stream.flush()
        made = np.stack(made, axis=1)[:, 0 if start == "soft start" else preset.stream.window - size :]
        each = [metrics.psnr(*(x[:, [i]] for x in (made, held.frames, held.mask))) for i in range(made.shape[1])]
        found[start] = np.stack(each, axis=1)
    return found


def views(preset: Preset) -> dict[str, list[np.ndarray]]:
    """What a character may be shown in, ``(CLIPS, h, w, 3)`` each: the reference, and a picture before the driver."""
    clips = dataset.clips_of(preset.data, "test")[:CLIPS]
    first, later = (np.stack([clip.frames[i] for clip in clips]) for i in (0, preset.data.test_gap // 2))
    shown = {"the reference": [first], "the reference, twice": [first, first]}
    return shown | {"and a picture from later on": [first, later]}


def memory(preset: Preset, record: bool = False) -> runs.Run:
    """The run with all of this; ``record`` as in :func:`rainlab.measure.evaluate.measure`.

    Metrics: with label ``start``: ``psnr_fg`` of the clips' first frames (:func:`beginning`, label ``frame``). With
    label ``strength``, or ``trained`` (one of :data:`ablations.CURES`): ``disturbed`` (:func:`trace`, label ``frame``,
    from the disturbance on). With ``strength``, ``trained`` or ``shown`` (a key of :func:`views`), over CLIPS held-out
    clips: psnr_fg, tde, sharpness_error, ``flicker`` of a frozen pose; with the latter two also ``flops`` of one frame.
    """
    config, inputs = evaluate.describe(preset, "rain")
    config |= {"strengths": STRENGTHS, "clips": CLIPS, "at": AT, "after": AFTER, "offset": OFFSET}
    config["stream"] = identity(preset.stream)
    trained = {label: ablations.variant(preset, label) for label in ablations.CURES}
    inputs |= {label: stages.run_id(variant, "distill3d") for label, variant in trained.items()}

    def make(run: runs.Run) -> None:
        model, shown = stages.trained(preset, "distill3d", evaluate.device()), views(preset)
        for strength in tqdm(STRENGTHS, "strengths"):
            for frame, value in enumerate(trace(preset, model, strength)):
                run.record("disturbed", float(value), strength=strength, frame=frame)
            for name, values in _measured(preset, model, shown["the reference"], strength):
                run.record(name, *metrics.bootstrap(values), metrics.PROTOCOL, strength=strength)
        for start, values in beginning(preset, model).items():
            for frame, each in enumerate(values.T):
                run.record("psnr_fg", *metrics.bootstrap(each), metrics.PROTOCOL, start=start, frame=frame)
        several = {("shown", label): (preset, model, pictures) for label, pictures in shown.items()}
        for label, variant in trained.items():
            for stage in stages.WINDOWED:
                stages.finished(variant, stage)
            model = stages.trained(variant, "distill3d", evaluate.device())
            for frame, value in enumerate(trace(variant, model, 1.0)):
                run.record("disturbed", float(value), trained=label, frame=frame)
            several["trained", label] = variant, model, shown["the reference"]
        for (by, label), (variant, model, pictures) in tqdm(several.items(), "references and cures"):
            for name, values in _measured(variant, model, pictures, 1.0):
                run.record(name, *metrics.bootstrap(values), metrics.PROTOCOL, **{by: label})
            run.record("flops", _flops(variant, model, [x[0] for x in pictures]), **{by: label})

    return runs.made(make, record, preset.name, "memory", config, VERSION, inputs)


def _measured(preset: Preset, model: RAIN, pictures: list, strength: float) -> Iterator[tuple[str, np.ndarray]]:
    held, length = evaluate.held_out(preset, CLIPS), preset.data.test_frames
    around = preset.stream.window - preset.stream.group_size
    driver = mirrored(length, around, around + -length % preset.stream.group_size)
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
    stream, size = Stream(model, **evaluate.stream_options(preset, model)), preset.stream.group_size
    stream.references(pictures)
    conditions = [np.zeros_like(pictures[0])] * 2 * preset.stream.window  # in full flow, a sink in sight
    stream.push(conditions)
    return flops(partial(stream.push, conditions[:size])) / size
