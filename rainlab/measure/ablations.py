"""Table 3 and beyond: one factor at a time around K = 16, p = 4, N = 1, one or more trainings of each.

The window (section 5.4's K = 8, and 32; with equal steps as the paper has it, and with equal frames seen), the groups
(p at equal p·N), the calls between two pops, the causal mask, no attention across noise levels; and two cures that
others have against the accumulation of errors: an attention sink (Rolling Forcing) and training on what the network
itself made (Self Forcing). All variants start from the same stage 1 and 2D distillation, which know nothing of a
window; a seed is that of stage 2 and 3D distillation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import numpy as np
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.config import Preset, override
from rainlab.measure import evaluate, features, metrics
from rainlab.training import stages

VERSION = 1
PROTOCOL = "ablations-1"
BASE = "K = 16, p = 4, N = 1"
CHANGES = {
    BASE: {},
    "K = 8": {"stream.window": 8},
    "K = 8, equal frames": {"stream.window": 8},
    "K = 32": {"stream.window": 32},
    "K = 32, equal frames": {"stream.window": 32},
    "causal mask": {"stream.causal": True},
    "no attention across levels": {"stream.cross_level": False},
    "N = 2 (p·N = 8)": {"stream.steps_per_group": 2},
    "p = 2, N = 4 (p·N = 8)": {"stream.groups": 2, "stream.steps_per_group": 4},
    "p = 8, N = 1 (p·N = 8)": {"stream.groups": 8},
    "N = 4 (p·N = 16)": {"stream.steps_per_group": 4},
    "attention sink": {"stream.sink": True},
    "own history": {"distill3d.own_history": 0.5},
}
SEEDS = (0,)
CURES = ("attention sink", "own history")
BEFORE = (BASE, "causal mask")  # measured before distillation, too
MEASURES = ("psnr", "ssim", "psnr_fg", "tde", "sharpness_error", "flicker", "flicker_border_ratio", "flicker_rhythm",
            "warping_error", "id_studio", "lpips_studio")  # fmt: skip


def variant(preset: Preset, label: str, seed: int = 0) -> Preset:
    """The preset of a row of CHANGES; seed 0 is the preset's own. ValueError for an unknown label."""
    if label not in CHANGES:
        raise ValueError(f"label: got {label!r}, expected one of {[*CHANGES]}")
    change = {"stage2.seed": preset.stage2.seed + seed, "distill3d.seed": preset.distill3d.seed + seed}
    if label.endswith("equal frames"):
        factor = preset.stream.window / CHANGES[label]["stream.window"]
        change |= {f"{s}.steps": round(getattr(preset, s).steps * factor) for s in stages.WINDOWED}
    return override(preset, CHANGES[label] | change)


def cost(preset: Preset, seeds: Sequence[int] = SEEDS) -> float:
    """Hours that what is missing of the grid will take on this machine, from what the preset's own runs took.

    Trainings in proportion to the frames they see, measuring to frames and calls. Raises FileNotFoundError if the
    preset's own trainings are not recorded here.
    """
    seconds = 0.0
    for label in CHANGES:
        for seed in seeds:
            changed = variant(preset, label, seed)
            for stage in stages.WINDOWED:
                if not stages.recorded(changed, stage):
                    rows = runs.get(stages.run_id(preset, stage)).metrics()
                    own = max(row["seconds"] for row in rows if row["metric"] == "loss")
                    frames = [getattr(p, stage).steps * p.stream.window for p in (changed, preset)]
                    seconds += own * frames[0] / frames[1]
            calls = changed.stream.groups * changed.stream.steps_per_group
            for method in _methods(label):
                if not runs.existing(evaluate.measure, changed, method):
                    seconds += evaluation_seconds(preset) * calls / preset.stream.groups
    return seconds / 3600


def evaluation_seconds(preset: Preset) -> float:
    """What measuring method "rain" took for the preset itself."""
    provenance = evaluate.measure(preset, "rain").path / "provenance.json"
    return float(json.loads(provenance.read_text("utf-8"))["seconds"])


def _methods(label: str) -> tuple[str, ...]:
    return ("rain", "undistilled") if label in BEFORE else ("rain",)


def describe(preset: Preset, seeds: Sequence[int] = SEEDS) -> tuple[dict, dict[str, str]]:
    """(config, inputs) that determine the numbers."""
    config, inputs = {"preset": preset.name, "seeds": list(seeds), "changes": CHANGES}, {}
    for label, seed, method in _rows(seeds):
        about, given = evaluate.describe(variant(preset, label, seed), method)
        inputs[f"{label}, seed {seed}, {method}"] = runs.run_id("evaluate", about, evaluate.VERSION, given)
    return config, inputs | {"features": runs.run_id("features", features.CONFIG, features.VERSION)}


def _rows(seeds: Sequence[int]) -> list[tuple[str, int, str]]:
    return [(label, seed, method) for seed in seeds for label in CHANGES for method in _methods(label)]


def grid(preset: Preset, seeds: Sequence[int] = SEEDS, record: bool = False) -> runs.Run:
    """The run with the numbers of all variants; ``record`` as in :func:`evaluate.measure`.

    Recording trains what is missing; whatever is done stays done when it is interrupted. Metrics MEASURES and
    ``fvd_studio`` (:mod:`rainlab.measure.features`, all windows of the held-out clips), labels ``variant`` and
    ``method``: mean over seeds and clips with the 95 % interval of both drawn anew (label ``seed``: "all"), and of each
    training. ``<metric>_change``: against BASE, seed with seed and clip with clip.
    """
    config, inputs = describe(preset, seeds)

    def make(run: runs.Run) -> None:
        values = {}
        for label, seed, method in tqdm(_rows(seeds), "variants"):
            values[label, method, seed] = _values(variant(preset, label, seed), method)
        _record(run, values, seeds)

    return runs.made(make, record, preset.name, "ablations", config, VERSION, inputs)


def again(preset: Preset, seeds: Sequence[int] = (0, 1, 2)) -> dict[str, list[runs.Run]]:
    """Variant -> its recorded measurements by method "rain", one for each training there was."""
    made = partial(runs.existing, evaluate.measure)
    found = {label: [made(variant(preset, label, seed), "rain") for seed in seeds] for label in CHANGES}
    return {label: [run for run in several if run] for label, several in found.items()}


def _values(preset: Preset, method: str) -> dict[str, list[float]]:
    """Per clip, and the one FVD-studio, of a variant; trained and measured if that is not done, here or published."""
    run = runs.existing(evaluate.measure, preset, method)
    if not run or not (run.path / runs.VALUES).is_file():
        for stage in stages.WINDOWED if method == "rain" else ("stage2",):
            stages.finished(preset, stage)
        run = evaluate.measure(preset, method, record=True)
    found = run.values()
    known = {name: found[name] for name in MEASURES if name in found}
    return known | {"fvd_studio": [run.value("fvd_studio")["value"]]}


def _record(run: runs.Run, values: dict[tuple[str, str, int], dict[str, list[float]]], seeds: Sequence[int]) -> None:
    for label, method in dict.fromkeys((label, method) for label, method, _ in values):
        tables = {}
        for name in (*MEASURES, "fvd_studio"):
            each = [values[label, method, seed].get(name) for seed in seeds]
            if None in each:
                continue
            tables[name] = np.array(each)
            about = {"variant": label, "method": method}
            run.record(name, *over_seeds(tables[name]), PROTOCOL, seed="all", **about)
            for seed, clips in zip(seeds, each, strict=True):
                run.record(name, float(np.mean(clips)), n=len(clips), protocol=PROTOCOL, seed=seed, **about)
            base = [values[BASE, method, seed].get(name) for seed in seeds]
            if label != BASE and None not in base:
                run.record(f"{name}_change", *over_seeds(tables[name] - np.array(base)), PROTOCOL, **about)


def over_seeds(values: np.ndarray, samples: int = 2000) -> metrics.Estimate:
    """Mean of ``(seeds, clips)`` with the 95 % interval where both are drawn anew; n is the number of clips.

    A few seeds tell little about others: the interval is the least that is to be doubted. One number has none.
    """
    if values.size == 1:
        return metrics.Estimate(values.item(), None, None, 1)
    rng, (s, c) = np.random.default_rng(0), values.shape
    seeds, clips = rng.integers(s, size=(samples, s, 1)), rng.integers(c, size=(samples, 1, c))
    low, high = np.percentile(values[seeds, clips].mean((1, 2)), [2.5, 97.5])
    return metrics.Estimate(float(values.mean()), float(low), float(high), c)
