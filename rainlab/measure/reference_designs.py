"""How the reference is shown to the network: AnimateAnyone's Table 3 at equal compute.

Image encoder alone, ControlNet, both, or reference network (:mod:`rainlab.method.designs`): each is trained through
stage 1 as often as there are seeds, for as many steps as the same arithmetic pays for, and its images are drawn by
guided DDIM, each frame for itself, so that nothing but the design tells them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.config import Preset, override
from rainlab.files import write_json
from rainlab.measure import ablations, count, evaluate, features, metrics
from rainlab.method import sampling
from rainlab.method.designs import DESIGNS
from rainlab.training import stages

VERSION = 1
PROTOCOL = "designs-1"
SEEDS = (0, 1, 2)
CLIPS, EVERY = 16, 4  # the first held-out clips, and of each every such frame
STEPS = 20  # of DDIM
TOGETHER = 4  # clips in one batch
MEASURES = ("psnr", "ssim", "psnr_fg", "sharpness_error", "id_studio", "lpips_studio")


def variant(preset: Preset, design: str, seed: int = 0) -> Preset:
    """The preset of a training; the reference network with seed 0 is the preset's own.

    Raises:
        ValueError: an unknown design, or a stage 1 that starts from given weights.
    """
    if preset.stage1.start or preset.model.unet_path:
        got = preset.stage1.start or preset.model.unet_path
        expected = "none: weights learned with a reference network fit no other design, and would decide the comparison"
        raise ValueError(f"preset {preset.name}: got a stage 1 that starts from {got!r}, expected {expected}")
    changed = override(preset, {"model.design": design})
    steps = preset.stage1.steps
    if design != "reference":
        steps = round(steps * _arithmetic(preset) / _arithmetic(changed))
    return override(changed, {"stage1.seed": preset.stage1.seed + seed, "stage1.steps": steps})


@cache
def _arithmetic(preset: Preset) -> float:
    """FLOPs of a sample of stage 1."""
    return count.count(preset, "stage1").flops


def measure(preset: Preset, design: str, seed: int = 0, record: bool = False) -> runs.Run:
    """The run of one training's images: MEASURES, n clips, and in ``values.json`` what each clip scored.

    Recording trains what is not trained; ``record`` as in :func:`rainlab.measure.evaluate.measure`.
    """
    chosen = variant(preset, design, seed)
    config = {"preset": preset.name, "design": design, "seed": seed, "clips": CLIPS, "every": EVERY, "steps": STEPS}
    config |= {"guidance": preset.stream.guidance, "data": evaluate.test_clips(preset)}
    inputs = {"model": stages.run_id(chosen, "stage1")}
    inputs["features"] = runs.run_id("features", features.CONFIG, features.VERSION)

    def make(run: runs.Run) -> None:
        stages.finished(chosen, "stage1", evaluate.device())
        values = _values(chosen)
        for name, clips in values.items():
            run.record(name, *metrics.bootstrap(clips), PROTOCOL, design=design, seed=seed)
        write_json(run.path / runs.VALUES, {name: clips.tolist() for name, clips in values.items()})

    return runs.made(make, record, preset.name, "design", config, VERSION, inputs)


def compare(preset: Preset, seeds: Sequence[int] = SEEDS, record: bool = False) -> runs.Run:
    """The run that compares the designs, of all that :func:`measure` finds or, with ``record``, makes.

    Metrics MEASURES, label ``design``: mean over seeds and clips with the 95 % interval of both drawn anew; ``steps``;
    and ``<metric>_change`` against the reference network, seed with seed and clip with clip.
    """
    each = [(design, seed) for seed in seeds for design in DESIGNS]
    found = {which: measure(preset, *which, record) for which in tqdm(each, "designs", disable=not record)}
    inputs = {f"{design}, seed {seed}": run.id for (design, seed), run in found.items()}

    def make(run: runs.Run) -> None:
        values = {which: one.values() for which, one in found.items()}
        for design in DESIGNS:
            run.record("steps", variant(preset, design).stage1.steps, design=design)
            for name in values[design, seeds[0]]:
                both = design, "reference"
                table, base = (np.array([values[which, seed][name] for seed in seeds]) for which in both)
                run.record(name, *ablations.over_seeds(table), PROTOCOL, design=design)
                if design != "reference":
                    run.record(f"{name}_change", *ablations.over_seeds(table - base), PROTOCOL, design=design)

    config = {"preset": preset.name, "seeds": list(seeds)}
    return runs.made(make, record, preset.name, "designs", config, VERSION, inputs)


def behind(preset: Preset) -> list[runs.Run]:
    """The runs behind :func:`compare`, and it, where it is recorded: trainings and what was measured of them."""
    if not (compared := runs.existing(compare, preset)):
        return []
    each = [runs.get(id) for id in compared.inputs.values()]
    return [compared, *each, *(runs.get(run.inputs["model"]) for run in each)]


def images(preset: Preset, held: evaluate.HeldOut) -> np.ndarray:
    """Frames of a training, each drawn for itself by guided DDIM, uint8 like ``held.frames``."""
    model, parts = stages.trained(preset, "stage1", evaluate.device()), range(0, len(held.reference), TOGETHER)
    given = ((x[i : i + TOGETHER] for x in (held.reference, held.condition)) for i in parts)
    return np.concatenate([sampling.sample(model, *each, STEPS, preset.stream.guidance) for each in given])


def some(preset: Preset) -> evaluate.HeldOut:
    """The held-out frames that are drawn."""
    held = evaluate.held_out(preset, CLIPS)
    parts = held.frames, held.condition, held.mask
    return evaluate.HeldOut(held.reference, *(x if x is None else x[:, ::EVERY] for x in parts))


def _values(preset: Preset) -> dict[str, np.ndarray]:
    """Per clip."""
    held = some(preset)
    made = images(preset, held)
    values = metrics.evaluate(made, held.frames, held.mask)
    if features.fits(preset.data.size):
        measures = {"id_studio": features.identity, "lpips_studio": features.perceptual}
        values |= {name: of(made, held.frames) for name, of in measures.items()}
    return {name: np.asarray(values[name]) for name in MEASURES if name in values}
