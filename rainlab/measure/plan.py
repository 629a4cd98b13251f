"""What a training asks of a machine, before one rents it: `python -m rainlab.measure.plan --preset paper`.

Bytes and operations are counted (:mod:`rainlab.measure.count`), the optimiser's scratch not; :func:`check` compares the
count with passes on this machine, :func:`table` says what fits on which GPU and how long it takes there.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest import mock

import pandas as pd
import torch
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.config import PRESETS, Preset, from_words, geometry, identity, make_preset, override
from rainlab.data.dataset import Draw
from rainlab.measure.count import PARTS, Need, count, empty_batch, networks
from rainlab.measure.ways import seconds_of
from rainlab.provenance import peak_bytes
from rainlab.training import stages
from rainlab.training.parameters import STAGES

VERSION = 1
USABLE = 0.9  # of a GPU's memory: the rest is the library's own and fragments
SHARE = (0.2, 0.5)  # of its peak that a GPU reaches in training: assumed, poor and good
LIGHTER = {"optimizer": "adamw8bit", "ema": 0.0, "checkpointing": True}
"""What makes a training fit: averages in 8 bits, no moving average of the weights (RAIN names none), checkpointing."""
CHECKED = [(stage, False) for stage in STAGES] + [(stage, True) for stage in STAGES[1:]]


class Gpu(NamedTuple):
    """Memory in bytes, and operations a second of dense bf16 products summed in fp32, both of the data sheet."""

    memory: float
    peak: float


GPUS = {
    "RTX 3090": Gpu(24 * 2**30, 71e12),
    "RTX 4090": Gpu(24 * 2**30, 165e12),
    "L40S": Gpu(48 * 2**30, 362e12),
    "A100 80 GB": Gpu(80 * 2**30, 312e12),
    "H100 SXM": Gpu(80 * 2**30, 989e12),
}


# -- does the count hold? --------------------------------------------------------------------------------------------


def check(preset: Preset, threads: int = 1) -> runs.Run:
    """The run "plan_check" of a preset: passes over its batches, counted and measured here, each in its own process.

    Metrics, labelled by stage and checkpointing: ``counted_bytes`` and ``measured_bytes`` that a pass holds besides the
    networks, ``flops``, ``seconds`` (the fastest of three passes), and ``product_rate``, the operations a second of one
    large product of matrices in the same process. All in fp32. A finished run is returned as it is.
    """
    run = runs.open_run("plan_check", _describe(preset) | {"threads": threads}, VERSION)
    if run.finished:
        return run
    for stage, checkpointing in tqdm(CHECKED, desc="passes"):
        changed = override(preset, {f"{stages.section(stage)}.checkpointing": checkpointing})
        samples = stages.Training(changed, stage).loop.batch
        need, labels = count(changed, stage, samples), {"stage": stage, "checkpointing": checkpointing}
        with (
            mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_="65536"),  # glibc: what is freed is given back at once
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh,
        ):
            got = fresh.submit(passes, changed, stage, samples, threads).result()
        run.record("counted_bytes", float(need.activations + need.gradients), **labels)
        run.record("flops", float(need.flops), **labels)
        for metric, value in got.items():
            run.record(metric, value, **labels)
    return run.finish()


def _describe(preset: Preset) -> dict[str, Any]:
    """What a plan depends on."""
    loops = {stage: identity(stages.Training(preset, stage).loop) for stage in STAGES}
    return geometry(preset) | {"stages": loops, "stream": identity(preset.stream)}


def passes(preset: Preset, stage: str, samples: int, threads: int) -> dict[str, float]:
    """Forward and backward passes on the processor, in a process that has done nothing else; see :func:`check`."""
    torch.set_num_threads(threads)
    loss, model, _ = networks(preset, stage, "cpu")
    batch = empty_batch(preset, stage, samples, model.autoencoder.latent_channels)
    before, seconds = peak_bytes(), []
    for step in range(3):
        draw = Draw(0, step, range(samples))
        seconds.append(seconds_of(lambda draw=draw: loss(batch, draw).backward()))
        if step == 0:
            peak = peak_bytes() - before
        model.zero_grad()
    a = torch.ones(1536, 1536)
    rate = 2 * len(a) ** 3 / min(seconds_of(lambda: a @ a) for _ in range(5))
    return {"measured_bytes": float(peak), "seconds": min(seconds), "product_rate": rate}


# -- will it fit? ----------------------------------------------------------------------------------------------------


def lighter(preset: Preset, stage: str) -> dict[str, Any]:
    """LIGHTER as overrides of a stage: what a GPU of 24 GB needs at paper scale.

    A distillation keeps its average, which is its target network.
    """
    kept = {key: value for key, value in LIGHTER.items() if key != "ema" or not stage.startswith("distill")}
    return {f"{stages.section(stage)}.{key}": value for key, value in kept.items()}


def fit(preset: Preset, stage: str, gpu: Gpu) -> dict[str, Any]:
    """How a stage fits on one GPU, in bf16: the largest share of its batch whose peak is at most USABLE of the memory.

    Returns:
        ``peak``: bytes with one sample at once, ``samples`` at once (0: not even one), ``accumulate``: passes a step,
        ``hours``: (least, most) of the whole training, at SHARE of the GPU's peak.
    """
    cfg = stages.Training(preset, stage).loop
    one, two = _one_and_two(preset, stage)
    room = USABLE * gpu.memory - one.peak
    more = max(1, two.peak - one.peak)
    most = 0 if room < 0 else 1 + int(room / more)
    samples = max((n for n in range(1, min(most, cfg.batch) + 1) if cfg.batch % n == 0), default=0)
    total = cfg.steps * cfg.batch * (two.flops - one.flops)
    return {
        "peak": one.peak,
        "samples": samples,
        "accumulate": cfg.batch // samples if samples else 0,
        "hours": tuple(total / (share * gpu.peak) / 3600 for share in reversed(SHARE)),
    }


@lru_cache(maxsize=32)
def _one_and_two(preset: Preset, stage: str) -> tuple[Need, Need]:
    """One sample and two at once: all between them grows evenly."""
    one, two = (count(preset, stage, samples, bf16=True, accumulating=True) for samples in (1, 2))
    return one, two


def table(preset: Preset, gpus: Mapping[str, Gpu] | None = None) -> pd.DataFrame:
    """Every stage of a preset on every GPU, as the preset stands and with LIGHTER; columns as :func:`fit` returns."""
    rows = []
    for stage, way, changed in _ways(preset):
        for name, gpu in (gpus or GPUS).items():
            rows.append({"stage": stage, "way": way, "gpu": name} | fit(changed, stage, gpu))
    return pd.DataFrame(rows)


def _ways(preset: Preset) -> list[tuple[str, str, Preset]]:
    """(stage, in words, preset) for every stage that is trained: as it stands, and lighter."""
    trained = [stage for stage in STAGES if stages.Training(preset, stage).loop.steps]
    ways = lambda stage: {"as it stands": {}, "lighter": lighter(preset, stage)}.items()  # noqa: E731
    return [(stage, way, override(preset, changes)) for stage in trained for way, changes in ways(stage)]


def record(preset: Preset) -> runs.Run:
    """The run "plan" of a preset: its :func:`table`, a metric for each column, and what one sample takes, by part.

    A finished one is returned as it is.
    """
    gpus = {name: gpu._asdict() for name, gpu in GPUS.items()}
    run = runs.open_run("plan", _describe(preset) | {"gpus": gpus, "usable": USABLE, "share": SHARE}, VERSION)
    if run.finished:
        return run
    for stage, way, changed in _ways(preset):
        need = asdict(_one_and_two(changed, stage)[0])
        for part in PARTS:
            run.record(part, float(need[part]), stage=stage, way=way)
    for row in table(preset).to_dict("records"):
        labels = {key: row.pop(key) for key in ("stage", "way", "gpu")}
        least, most = row.pop("hours")
        for metric, value in (row | {"hours_least": least, "hours_most": most}).items():
            run.record(metric, float(value), **labels)
    return run.finish()


def recorded(run: runs.Run) -> pd.DataFrame:
    """The :func:`table` that a run of :func:`record` holds."""
    keys = ["stage", "way", "gpu"]
    rows = pd.DataFrame(row for row in run.metrics() if row.get("gpu"))
    rows = rows.pivot(index=keys, columns="metric", values="value").reset_index()
    rows["hours"] = list(zip(rows.pop("hours_least"), rows.pop("hours_most"), strict=True))
    rows = rows.astype({"samples": int, "accumulate": int})
    order = {name: i for names in (STAGES, ("as it stands", "lighter"), GPUS) for i, name in enumerate(names)}
    return rows.sort_values(keys, key=lambda column: column.map(order), ignore_index=True)


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """A :func:`table` in words: what one sample at once takes, how a batch is split, hours at SHARE of the peak."""
    digits = lambda value: f"{value:.0f}" if value >= 10 else f"{value:.2g}"  # noqa: E731
    hours = [" to ".join(map(digits, ends)) for ends in rows["hours"]]
    split = [f"{n} × {k}" if n else "does not fit" for n, k in zip(rows["samples"], rows["accumulate"], strict=True)]
    percent = " to ".join(f"{share:.0%}" for share in reversed(SHARE))
    columns = {
        "stage": rows["stage"],
        "settings": rows["way"],
        "GPU": rows["gpu"],
        "GiB, one sample": [f"{peak / 2**30:.1f}" for peak in rows["peak"]],
        "at once × passes": split,
        f"hours at {percent} of its peak": [h if n else "–" for h, n in zip(hours, rows["samples"], strict=True)],
    }
    return pd.DataFrame(columns)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: print :func:`table`."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.measure.plan", description="Memory and time of trainings.")
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument("--gpu", choices=sorted(GPUS), help="only this one")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="override values: data.height=512")
    options = parser.parse_args(arguments)
    gpus = {options.gpu: GPUS[options.gpu]} if options.gpu else None
    print(shown(table(make_preset(options.preset, from_words(options.set)), gpus)).to_string(index=False))


if __name__ == "__main__":
    main()
