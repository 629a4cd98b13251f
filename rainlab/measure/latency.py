"""Motion to photon: how long a frame is behind the condition it shows, and what it waits for.

Conditions arrive at an even rate whether or not the stream keeps up, in real time; each setting runs in a process of
its own, so that its memory can be told. The frames of a group come out together and are shown evenly, one every
1/rate seconds, so that all frames of a group are equally late:

    latency = (K - 1) / rate + queue + tick

the time until a frame's conditions are there (K/p - 1 for its group, then p - 1 groups more), what the last of them
waits until the stream is free, and the tick that makes the frame.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

import numpy as np
import torch
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.config import Preset, StreamConfig, geometry, identity
from rainlab.data.clips import StudioClips
from rainlab.method.rain import RAIN
from rainlab.method.stream import Stream
from rainlab.provenance import peak_bytes

VERSION = 1
QUANTILES = (0.5, 0.95, 0.99)
SECONDS = 40.0  # of stream time for each setting
PROTOCOL = "conditions at an even rate, in real time; quantiles over ticks"
VARIED = {"window": (8, 16, 32), "groups": (2, 4, 8), "steps_per_group": (1, 2)}  # around the preset's own setting


@dataclass(frozen=True)
class Watched:
    """What one setting did. Arrays hold seconds, one entry a tick in the steady state."""

    queue: np.ndarray  # from the last condition of a group until its tick began
    tick: np.ndarray  # until the frames were there
    parts: dict[str, np.ndarray]  # of that, in guider, network and decoder
    first_frame: float  # seconds from the first condition to the first frame
    ready: float  # seconds from nothing to a stream with a reference, imports aside
    weights: int  # bytes
    peak: int  # bytes of memory the process took more than before there was a model


def settings(preset: Preset) -> dict[str, StreamConfig]:
    """The preset's own K, p, N, and those with one of them changed, by name."""
    own = preset.stream
    changed = [replace(own, **{name: value}) for name, values in VARIED.items() for value in values]
    fitting = [cfg for cfg in (own, *changed) if cfg.window <= preset.model.motion_length]
    return {label(cfg): cfg for cfg in fitting}


def label(cfg: StreamConfig) -> str:
    """K, p, N in words."""
    return f"K = {cfg.window}, p = {cfg.groups}, N = {cfg.steps_per_group}"


def watch(preset: Preset, cfg: StreamConfig, rate: float, seconds: float, threads: int) -> Watched:
    """Run a fast stream of random weights with ``rate`` conditions a second."""
    torch.set_num_threads(threads)
    clip, before = StudioClips("test", 1, 16, preset.data.size)[0], peak_bytes()
    began = time.perf_counter()
    model = RAIN.build(preset, motion=True, guidance=True)
    stream = Stream(model, fast=True, **asdict(cfg))
    stream.reference(clip.frames[0])
    stream.push([clip.condition[0]] * (cfg.window + stream.group_size))  # the first calls choose their kernels
    stream.reset()
    ready = time.perf_counter() - began
    size, ticks = stream.group_size, max(cfg.groups + 1, round(seconds * rate / stream.group_size))
    queue, tick, parts, first = [], [], {part: [] for part in stream.seconds}, None
    start = time.perf_counter()
    for i in range(ticks):
        complete = start + ((i + 1) * size - 1) / rate  # when the last condition of the group arrives
        time.sleep(max(0.0, complete - time.perf_counter()))
        spent, at = dict(stream.seconds), time.perf_counter()
        frames = stream.push([clip.condition[(i * size + j) % 16] for j in range(size)])
        done = time.perf_counter()
        if not frames:
            continue
        first = first or done - start
        queue.append(at - complete)
        tick.append(done - at)
        for part, values in parts.items():
            values.append(stream.seconds[part] - spent[part])
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    found = {part: np.array(values) for part, values in parts.items()}
    return Watched(np.array(queue), np.array(tick), found, first, ready, weights, peak_bytes() - before)


def latency(preset: Preset, record: bool = False, seconds: float = SECONDS) -> runs.Run:
    """The run that holds the latencies of :func:`settings` at the rate of the preset's clips.

    Args:
        record: measure now, on this machine, and replace what `runs/` holds; False reads what was recorded last, here
            or in the repository, and raises FileNotFoundError if there is nothing.

    Metrics, labelled ``setting``, in seconds: ``latency``, ``queue`` and ``tick``, by ``quantile``; ``stage`` the same
    by ``part``; ``jitter``, the mean change of latency from tick to tick; ``first_frame``, ``ready``; ``busy``, the
    share of the time spent in ticks; ``weights_bytes``, ``peak_bytes``.
    """
    about = geometry(preset)
    if not record:
        if run := runs.find("latency", **about):
            return run
        raise runs.nothing_recorded("latency", preset.name)
    rate, threads = preset.data.fps, torch.get_num_threads()
    config = about | {"stream": identity(preset.stream), "threads": threads, "rate": rate, "seconds": seconds}
    run = runs.open_run("latency", config, VERSION).clear()
    for name, cfg in tqdm(settings(preset).items(), "latency", leave=False):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found = fresh.submit(watch, preset, cfg, rate, seconds, threads).result()
        _record(run, name, cfg, rate, found)
    return run.finish()


def _record(run: runs.Run, name: str, cfg: StreamConfig, rate: float, found: Watched) -> None:
    late, n = (cfg.window - 1) / rate + found.queue + found.tick, len(found.tick)
    for metric, values in {"latency": late, "queue": found.queue, "tick": found.tick}.items():
        for q in QUANTILES:
            run.record(metric, float(np.quantile(values, q)), n=n, protocol=PROTOCOL, setting=name, quantile=q)
    for part, values in found.parts.items():
        for q in QUANTILES:
            value = float(np.quantile(values, q))
            run.record("stage", value, n=n, protocol=PROTOCOL, setting=name, part=part, quantile=q)
    jitter = float(np.abs(np.diff(late)).mean())
    busy = float(found.tick.mean()) * rate / (cfg.window // cfg.groups)
    alone = {"jitter": jitter, "first_frame": found.first_frame, "ready": found.ready, "busy": busy,
             "weights_bytes": found.weights, "peak_bytes": found.peak}  # fmt: skip
    for metric, value in alone.items():
        run.record(metric, value, n=n, protocol=PROTOCOL, setting=name)
