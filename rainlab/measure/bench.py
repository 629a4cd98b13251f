"""Side-by-side timings: `python -m rainlab.measure.bench [NAME ...] [--preset NAME] [--quick] [--json PATH]`.

A benchmark is a function that returns contenders: name -> callable that does one repetition and returns how much work
that was (frames, calls). The first contender is what the others are compared with. Repetitions are interleaved
(A B A B ...), and a ratio is taken within each round, so that a machine that slows down or is shared does not change
it. Medians and quartiles are reported, never the best.

To add a benchmark, write one more function under `@benchmark`.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from rainlab import provenance, runs
from rainlab.config import Preset, geometry, identity, make_preset
from rainlab.data import pose
from rainlab.data.clips import Clip, StudioClips
from rainlab.data.studio import body
from rainlab.files import root, write_json
from rainlab.measure.ways import Way, ceiling, flops, late_ways, middle, past_its_start, seconds_of, ways
from rainlab.method.fast import REWRITES
from rainlab.method.rain import RAIN, to_signed, to_unit
from rainlab.method.stream import Stream

Contenders = dict[str, Callable[[], float]]
VERSION = 3  # raised when `engine` or `tick` measure something else
PROTOCOL = "interleaved rounds: median, quartiles"


@dataclass(frozen=True)
class Benchmark:
    """How to make the contenders (`quick`: with little work each) and how to read their times."""

    make: Callable[..., Contenders]  # (quick, **options)
    unit: str  # "frames/s" (work per second) or "s" (seconds of a repetition)
    threads: int | None  # of torch while it runs; None: as many as there are


@dataclass(frozen=True)
class Row:
    """One contender's result. `speed` is relative to the benchmark's first contender: 2 is twice as fast."""

    benchmark: str
    contender: str
    unit: str
    median: float
    low: float  # lower and upper quartile
    high: float
    speed: float
    speed_low: float
    speed_high: float
    repetitions: int


BENCHMARKS: dict[str, Benchmark] = {}
PRESET_TAKEN = ("engine", "fast", "sizes", "tick")


def benchmark(unit: str, threads: int | None = None) -> Callable:
    """Enter the decorated function in `BENCHMARKS` under its own name."""

    def enter(make: Callable[..., Contenders]) -> Callable[..., Contenders]:
        BENCHMARKS[make.__name__] = Benchmark(make, unit, threads)
        return make

    return enter


# -- the benchmarks --------------------------------------------------------------------------------------------------


@benchmark("s")
def imports(quick: bool) -> Contenders:
    """A new Python that imports torch, the package, and all that a stream needs."""

    def contender(module: str) -> float:
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return 1

    return {f"import {module}": partial(contender, module) for module in ("torch", "rainlab", "rainlab.method.stream")}


@benchmark("frames/s", threads=1)
def studio(quick: bool) -> Contenders:
    """Clips of the procedural studio with all outputs: frames, keypoints, mask, depth, flow."""
    clips, frames = (1, 4) if quick else (4, 16)
    seeds = body.split_seeds("train", clips)

    def contender(size: tuple[int, int]) -> float:
        body.render(seeds, seeds, frames=frames, size=size)
        return clips * frames

    return {f"{h}x{w}": partial(contender, (h, w)) for h, w in ((64, 48), (128, 96))}


@benchmark("frames/s", threads=1)
def pose_pictures(quick: bool) -> Contenders:
    """Condition pictures drawn from keypoints."""
    frames = 4 if quick else 64
    seeds = body.split_seeds("train", 1)

    def contender(keypoints: torch.Tensor, size: tuple[int, int]) -> float:
        pose.draw(keypoints, size)
        return frames

    keypoints = body.render(seeds, seeds, frames=frames, size=(64, 48)).keypoints
    doubled = keypoints * torch.tensor([2.0, 2.0, 1.0])
    return {"64x48": partial(contender, keypoints, (64, 48)), "128x96": partial(contender, doubled, (128, 96))}


def _running(model: RAIN, clip: Clip, options: dict[str, Any]) -> Stream:
    """A stream past its soft start."""
    return past_its_start(Stream(model, **options), clip)


@benchmark("frames/s")
def engine(quick: bool, preset: Preset | None = None) -> Contenders:
    """One network, K frames a repetition: a window at a time by 20-step DDIM, streamed, and other ways of streaming.

    Speed does not depend on the weights, so they are random. Guided DDIM calls the network with and without reference.
    What has to be compiled or exported first is left out if it is to be quick.
    """
    preset = preset or make_preset("small")
    clip, steps = StudioClips("test", 1, preset.stream.window, preset.data.size)[0], 2 if quick else 20
    made = ways(preset, clip, steps) | ({} if quick else late_ways(preset, clip))
    return {label: partial(_frames, way, clip) for label, way in made.items()}


def _frames(way: Way, clip: Clip) -> float:
    way.call(list(clip.condition))
    return len(clip.condition)


@benchmark("frames/s")
def fast(quick: bool, preset: Preset | None = None) -> Contenders:
    """The stream as it is, with each rewrite of :mod:`rainlab.method.fast` alone, and with all of them.

    A fast stream lets its process keep freed memory, so here the plain one gains from that, too.
    """
    preset = preset or make_preset("small")
    clip = StudioClips("test", 1, preset.stream.window, preset.data.size)[0]
    model = RAIN.build(preset, motion=True, guidance=True)
    made = {"plain": False} | {f"{name} alone": (name,) for name in REWRITES} | {"fast": True}

    def contender(stream: Stream) -> float:
        return len(stream.push(list(clip.condition)))

    return {name: partial(contender, _running(model, clip, {"fast": how})) for name, how in made.items()}


@benchmark("frames/s")
def sizes(quick: bool, preset: Preset | None = None) -> Contenders:
    """The fast stream with pictures of the preset's size, half and twice as high and wide."""
    preset = preset or make_preset("small")
    model, made = RAIN.build(preset, motion=True, guidance=True), {}
    for factor in (1.0, 0.5, 2.0):
        whole = preset.autoencoder.factor
        height, width = (int(n * factor) // whole * whole for n in preset.data.size)
        clip = StudioClips("test", 1, preset.stream.window, (height, width))[0]
        way = Way(_running(model, clip, {"fast": True}).push, "", preset.stream.window)
        made[f"{height}×{width}"] = partial(_frames, way, clip)
    return made


@benchmark("s")
def tick(quick: bool, preset: Preset | None = None) -> Contenders:
    """One tick of a running stream, K/p conditions in and K/p frames out, and its parts."""
    preset = preset or make_preset("small")
    clip = StudioClips("test", 1, preset.stream.window, preset.data.size)[0]
    model = RAIN.build(preset, motion=True, guidance=True)
    whole, latents_only = (_running(model, clip, {}) for _ in range(2))
    group = clip.condition[: whole.group_size]
    conditions = to_unit(torch.from_numpy(group))[None]
    features, clean = model.pose_guider(conditions), latents_only.contents[0][:, : whole.group_size]

    def contender(call: Callable, *arguments: Any) -> float:
        call(*arguments)
        return 1

    return {
        "whole tick": partial(contender, whole.push, list(group)),
        "pose guider": partial(contender, model.pose_guider, conditions),
        "network call": partial(contender, latents_only.tick, features),
        "decoder": partial(contender, model.autoencoder.decode_next, clean, None),
        "a new reference": partial(contender, model.look, to_signed(torch.from_numpy(clip.frames[:1]))),
    }


# -- measuring -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def timings(name: str, quick: bool = False, repetitions: int = 7, **options: Any) -> list[Row]:
    """Run one benchmark: each contender once unmeasured, then `repetitions` rounds of all. Raises KeyError.

    `options` go to the benchmark: those of PRESET_TAKEN take `preset`.
    """
    bench, before = BENCHMARKS[name], torch.get_num_threads()
    torch.set_num_threads(bench.threads or before)
    try:
        return rounds(name, bench.make(quick, **options), bench.unit, repetitions)
    finally:
        torch.set_num_threads(before)


def rounds(name: str, contenders: Contenders, unit: str, repetitions: int) -> list[Row]:
    """As :func:`timings`, for contenders that are there."""
    work = {contender: run() for contender, run in contenders.items()}
    seconds = np.array([[seconds_of(run) for run in contenders.values()] for _ in range(repetitions)])
    rates = np.array(list(work.values())) / seconds  # (repetitions, contenders)
    values = seconds if unit == "s" else rates
    return [
        Row(name, contender, unit, *middle(values[:, i]), *middle(rates[:, i] / rates[:, 0]), repetitions)
        for i, contender in enumerate(contenders)
    ]


def steady(preset: Preset, frames: int = 10_000, stretch: int = 500) -> list[float]:
    """Frames a second of an endless fast stream, stretch by stretch: does it slow down?"""
    clip = StudioClips("test", 1, preset.stream.window, preset.data.size)[0]
    stream, rates = _running(RAIN.build(preset, motion=True, guidance=True), clip, {"fast": True}), []
    for _ in tqdm(range(0, frames, stretch), "steady", unit="stretch"):
        conditions = [clip.condition[i % len(clip.condition)] for i in range(stretch)]
        rates.append(stretch / seconds_of(partial(stream.push, conditions)))
    return rates


def speed(preset: Preset, record: bool = False) -> runs.Run:
    """The run that holds the engine's timings (Table 2).

    Args:
        record: time it now, on this machine, and replace what `runs/` holds; False reads what was recorded last, here
            or in the repository, and raises FileNotFoundError if there is nothing.

    Metrics: `frames_per_second` and `speed` (relative to DDIM) of `engine`'s contenders, `seconds` of `tick`'s, medians
    with quartiles in place of an interval; `latency_frames`, `flops_per_frame` of the plain way to do the same, and
    `start_seconds` where something is compiled or exported; `gain` of `fast`'s rewrites over the plain stream;
    `at_size` in frames/s; `steady` for each `stretch` of 500 frames; label `contender`. `ceiling`: see
    :func:`rainlab.measure.ways.ceiling`.
    """
    timed = geometry(preset)
    if not record:
        if run := runs.find("speed", **timed):
            return run
        raise runs.nothing_recorded("speed", preset.name)
    config = timed | {"stream": identity(preset.stream), "threads": torch.get_num_threads()}
    run = runs.open_run("speed", config, VERSION).clear()
    clip = StudioClips("test", 1, preset.stream.window, preset.data.size)[0]
    made = ways(preset, clip) | late_ways(preset, clip)
    counted: dict[str, float] = {}
    for label, way in made.items():
        if way.method not in counted:  # the first of each method is the plain one
            counted[way.method] = flops(partial(way.call, list(clip.condition))) / len(clip.condition)
        run.record("latency_frames", way.latency_frames, contender=label)
        run.record("flops_per_frame", counted[way.method], contender=label)
        if way.start:
            run.record("start_seconds", way.start, contender=label)
    run.record("ceiling", *ceiling(), 9, "one large product", contender="matrix product")
    record_rates(
        run, rounds("engine", {label: partial(_frames, way, clip) for label, way in made.items()}, "frames/s", 5)
    )
    for row in timings("fast", repetitions=7, preset=preset):
        run.record("gain", row.speed, row.speed_low, row.speed_high, row.repetitions, PROTOCOL, contender=row.contender)
    for row in timings("sizes", repetitions=5, preset=preset):
        run.record("at_size", row.median, row.low, row.high, row.repetitions, PROTOCOL, contender=row.contender)
    for i, rate in enumerate(steady(preset)):
        run.record("steady", rate, contender="fast", stretch=i)
    for row in timings("tick", repetitions=15, preset=preset):
        run.record("seconds", row.median, row.low, row.high, row.repetitions, PROTOCOL, contender=row.contender)
    return run.finish()


def record_rates(run: runs.Run, rows: Sequence[Row]) -> None:
    """Record ``frames_per_second`` and ``speed`` of contenders."""
    for row in rows:
        for metric, values in {
            "frames_per_second": (row.median, row.low, row.high),
            "speed": (row.speed, row.speed_low, row.speed_high),
        }.items():
            run.record(metric, *values, row.repetitions, PROTOCOL, contender=row.contender)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one benchmark after the other."""
    lines = [f"{'benchmark':15}{'contender':24}{'median':>10}  {'quartiles':22}{'unit':10}speed relative to the first"]
    for row in rows:
        spread = f"{row.low:.4g} ... {row.high:.4g}"
        speed = f"{row.speed:.2f} ({row.speed_low:.2f} ... {row.speed_high:.2f})"
        lines.append(f"{row.benchmark:15}{row.contender:24}{row.median:>10.4g}  {spread:22}{row.unit:10}{speed}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """The command line; returns the rows."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.measure.bench", description="Side-by-side timings.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--preset", default="small", help=f"geometry of {', '.join(PRESET_TAKEN)}; default: small")
    parser.add_argument("--quick", action="store_true", help="little work, two repetitions: shows that it runs")
    parser.add_argument("--json", metavar="PATH", help="write the rows to this file, too")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - BENCHMARKS.keys():
        parser.error(f"got {', '.join(sorted(unknown))}, expected names of {', '.join(BENCHMARKS)}")
    rows = []
    for name in options.names or BENCHMARKS:
        geometry = {"preset": make_preset(options.preset)} if name in PRESET_TAKEN else {}
        rows += timings(name, options.quick, 2 if options.quick else 7, **geometry)
    print(table(rows))
    if options.json:
        written = {"machine": provenance.versions() | provenance.hardware(root()), "preset": options.preset,
                   "rows": [asdict(row) for row in rows]}  # fmt: skip
        for row in rows:
            if (row.benchmark, row.contender) == ("fast", "fast"):
                written["fast_over_plain"] = {"median": row.speed, "low": row.speed_low, "high": row.speed_high}
        write_json(options.json, written)
    return rows


if __name__ == "__main__":
    main()
