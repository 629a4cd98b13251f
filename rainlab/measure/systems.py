"""How fast the three systems are that poses drive, and how much memory they take: clips of a window's length.

    python -m rainlab.measure.systems [--preset NAME]

Speed does not depend on the weights, so they are random. RAIN streams and is in full flow; AnimateAnyone and
PoseAnimate make a clip from its first noise to its last frame, so their first frame is there when all are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from rainlab import runs
from rainlab.baselines import animate_anyone, image_models, pose_animate
from rainlab.config import Preset, geometry, identity, make_preset
from rainlab.data.clips import Clip, StudioClips
from rainlab.measure import bench, evaluate
from rainlab.measure.ways import Way, flops, past_its_start
from rainlab.method.rain import RAIN
from rainlab.method.stream import Stream
from rainlab.provenance import peak_bytes

VERSION = 1
ROUNDS = 5
LABELS = ("RAIN", "RAIN, fast", "AnimateAnyone", "PoseAnimate")
NOTHING = "a process with the networks"


def systems(
    preset: Preset, clip: Clip, steps: int = animate_anyone.STEPS, inner: int = evaluate.ZERO_SHOT_INNER
) -> dict[str, Callable[[], Way]]:
    """Label -> maker of a way that turns conditions into frames ``(f, h, w, 3)``.

    clip: its first frame is the reference. steps: of DDIM. inner: optimisation steps of PoseAnimate's inversion, for
    each of them.
    """
    k, reference = preset.stream.window, clip.frames[0]

    def streamed(fast: bool) -> Way:
        model = RAIN.build(preset, motion=True, guidance=True).eval()
        stream = past_its_start(Stream(model, **evaluate.stream_options(preset, model), fast=fast), clip)
        return Way(lambda conditions: np.stack(stream.push(conditions)), "RAIN", stream.latency_frames)

    def windowed() -> Way:
        model = RAIN.build(preset, motion=True, guidance=False).eval()
        options = {"window": k, "steps": steps, "guidance": preset.stream.guidance}

        def call(conditions: list[np.ndarray]) -> np.ndarray:
            return animate_anyone.animate(model, reference[None], np.stack(conditions)[None], **options)[0]

        return Way(call, "AnimateAnyone", k)

    def inverted() -> Way:
        small = image_models.Small(RAIN.build(preset, motion=False, guidance=False).eval())
        options = pose_animate.Options(steps=steps, inner=inner, guidance=preset.stream.guidance, carried=True)
        words = small.prompt(reference)

        def call(conditions: list[np.ndarray]) -> np.ndarray:
            given = small, reference, clip.condition[0], np.stack(conditions), words, options, clip.mask[0]
            return pose_animate.animate(*given)[0]

        return Way(call, "PoseAnimate", k)

    return dict(zip(LABELS, (partial(streamed, False), partial(streamed, True), windowed, inverted), strict=True))


def _clip(preset: Preset) -> Clip:
    """A reference and a window of conditions."""
    return StudioClips("test", 1, preset.stream.window + 1, preset.data.size)[0]


def compare(preset: Preset, record: bool = False, **options: int) -> runs.Run:
    """The run of all :func:`systems`; ``options`` are theirs. record: as in :func:`rainlab.measure.bench.speed`.

    Metrics, label ``contender``: ``frames_per_second`` and ``speed`` relative to RAIN, medians with quartiles;
    ``flops_per_frame``; ``latency_frames``, poses that must have come before the first frame; and ``peak_bytes`` of a
    process of its own that makes one clip, that of NOTHING beside it.

    Raises:
        FileNotFoundError: nothing recorded. subprocess.CalledProcessError: a clip needs more memory than there is.
    """
    timed = geometry(preset)
    if not record:
        if run := runs.find("systems", **timed):
            return run
        raise FileNotFoundError(f"nothing recorded: `python -m rainlab.measure.systems --preset {preset.name}`")
    config = timed | {"stream": identity(preset.stream), "threads": torch.get_num_threads()} | options
    run = runs.open_run("systems", config, VERSION).clear()
    for label in (NOTHING, *LABELS):
        run.record("peak_bytes", peak_alone(preset.name, label, **options), contender=label)
    torch.manual_seed(0)
    clip = _clip(preset)
    conditions = list(clip.condition[1:])
    turns = {}
    for label, make in systems(preset, clip, **options).items():
        way = make()
        call = partial(way.call, conditions)
        run.record("latency_frames", way.latency_frames, contender=label)
        if label == way.method:  # the plain way to do it
            run.record("flops_per_frame", flops(call) / len(conditions), contender=label)
        turns[label] = partial(_frames, call)
    bench.record_rates(run, bench.rounds("systems", turns, "frames/s", ROUNDS))
    return run.finish()


def peak_alone(preset: str, label: str, **options: int) -> float:
    """The most bytes that a process holds which makes one clip by one of :func:`systems`, or NOTHING."""
    given = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "rainlab.measure.systems", "--preset", preset, "--alone", label, *given]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _frames(call: Callable[[], np.ndarray]) -> float:
    return len(call())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: record and print; or, of one system alone, the most memory that a clip takes."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.measure.systems", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="small", help="whose geometry; default: small")
    parser.add_argument(
        "--alone", choices=(NOTHING, *LABELS), help="print the peak of memory, in bytes, of this system alone"
    )
    for name, default in {"steps": animate_anyone.STEPS, "inner": evaluate.ZERO_SHOT_INNER}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    preset, given = make_preset(options.preset), {"steps": options.steps, "inner": options.inner}
    if options.alone:
        clip = _clip(preset)
        way = systems(preset, clip, **given)["AnimateAnyone" if options.alone == NOTHING else options.alone]()
        if options.alone != NOTHING:
            way.call(list(clip.condition[1:]))
        return print(peak_bytes())
    run = compare(preset, record=True, **given)
    for label in LABELS:
        rate, speed = (run.value(name, contender=label)["value"] for name in ("frames_per_second", "speed"))
        memory = run.value("peak_bytes", contender=label)["value"]
        print(f"{label:16} {rate:8.3f} frames/s, {speed:6.4f} of RAIN's; at most {memory / 1e9:.2f} GB")
    print(run.id)


if __name__ == "__main__":
    main()
