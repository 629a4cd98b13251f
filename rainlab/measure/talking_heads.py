"""Talking Head Anime 4's tables on the studio's faces, its reported rows beside: what notebooks 80 and 81 show.

Tables 2 and 3 compare designs of the teacher (:mod:`rainlab.measure.rotators`), 4, 6 and 7 students
(:mod:`rainlab.measure.students`), 5 is speed (:mod:`rainlab.measure.student_speed`). Table 8 stands here: the same
characters in the same motion by all systems, RAIN and AnimateAnyone among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rainlab import runs
from rainlab.baselines import tha_distill
from rainlab.config import Preset, identity
from rainlab.data import landmarks
from rainlab.data.studio import face
from rainlab.measure import evaluate, metrics, morphing, reported, rotators, students, tables
from rainlab.method.checkpoint import read_tensors
from rainlab.training import stages, weights

VERSION = 1
PROTOCOL = "talking-heads-1"
CHARACTERS = (0, 1, 2)
SIZE = (64, 64)  # at which all are compared
METHODS = {
    "copy": "the character at rest",
    "THA3": "THA3",
    "Section 3.1": "Section 3.1",
    "student": "student",
    "rain": "RAIN",
    "animate_anyone": "AnimateAnyone",
}
MEASURES = ("psnr_fg", "ssim_fg", "psnr_face", "ssim_face")


def compare(
    preset: Preset,
    recipe: str | students.Recipe = "small",
    rotator: rotators.Recipe = rotators.SMALL,
    characters: Sequence[int] = CHARACTERS,
    frames: int = 48,
    record: bool = False,
) -> runs.Run:
    """The run of Table 8: held-out characters in motions of their own, by all METHODS.

    Inside the true foreground, at 64×64, since some paint a backdrop and some paint none. THA3 and the design of
    section 3.1 get the true face and only turn it; a student learned its character; the others get one picture and the
    character's own dots. Metrics MEASURES, label ``method``; "face": inside the square in which a face moves, too. n:
    characters.

    ``record``: as in :func:`rainlab.measure.evaluate.measure`; it trains what is not trained.
    """
    config = {"preset": preset.name, "stream": identity(preset.stream), "characters": list(characters)}
    config |= {"frames": frames} | morphing.VERSIONS
    animate = evaluate.trained_as(preset, "animate_anyone")
    inputs = {f"student {number}": students.student_id(number, recipe) for number in characters}
    inputs |= {design: rotators.rotator_id(design, 0, rotator) for design in rotators.DESIGNS}
    inputs |= {"rain": stages.run_id(preset, "distill3d"), "animate_anyone": stages.run_id(animate, "stage2")}

    def make(run: runs.Run) -> None:
        stages.finished(animate, "stage2", evaluate.device())
        found: dict[tuple[str, str], list[float]] = {}
        for number in characters:
            for method, values in _values(preset, recipe, rotator, number, frames).items():
                for name in MEASURES:
                    found.setdefault((method, name), []).append(values[name])
        for (method, name), values in found.items():
            run.record(name, *metrics.bootstrap(values), PROTOCOL, method=method)

    return runs.made(make, record, preset.name, "talking_heads", config, VERSION, inputs)


def films(
    preset: Preset, recipe: str | students.Recipe, rotator: rotators.Recipe, number: int, frames: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> (what it makes, the truth as it is shown there), uint8 ``(f, h, w, 3)``; "mask": twice the foreground.

    A student is trained if it is not there, so are the rotators.
    """
    who, _, pose = morphing.cast(number, frames)
    size = preset.data.size
    clip = face.render(who, pose=pose, size=size)
    truth = clip.frames[0].numpy()
    dots = morphing.pair(number, frames)[1]
    radius = landmarks.dot_radius(clip.landmarks[0, 0].numpy(), size[0])
    drawn = np.stack([landmarks.draw(each, size, radius) for each in dots])
    held = evaluate.HeldOut(truth[:1], truth[None], drawn[None], clip.mask.numpy())
    made = {"copy": (truth[:1].repeat(frames, 0), truth)}
    made |= {method: (evaluate.generate(preset, method, held)[0], truth) for method in ("rain", "animate_anyone")}

    chosen = students.recipe_of(recipe)
    network = students.load(students.student(number, recipe, record=True))
    own = tha_distill.studio_lessons(who, pose[0], chosen.size)
    made["student"] = students.pictures(network, own.pose), students.shown(own.final)
    given = own if chosen.size == rotator.size else tha_distill.studio_lessons(who, pose[0], rotator.size)
    for design in rotators.DESIGNS:
        run = rotators.rotator(design, 0, rotator, record=True)
        turning = rotators.build(design, rotator).eval().requires_grad_(False)
        turning.load_state_dict(read_tensors(weights.weights_file(run.id))[0])
        turned = rotators.turn_all(turning, given.faced, given.pose)
        made[design] = students.shown(turned), students.shown(given.final)
    mask = clip.mask[0].numpy()
    return {method: made[method] for method in METHODS} | {"mask": (mask, mask)}


def _values(*given) -> dict[str, dict[str, float]]:
    """Method -> measure -> value of a character."""
    made = films(*given)
    mask, _ = made.pop("mask")
    recipe, number = given[1], given[3]
    learned = students.load(students.student(number, recipe, record=True))
    (top, left), side = learned.corner, learned.face.size
    scale = mask.shape[1] / learned.body.size
    low, high = ([round(x * scale) for x in corner] for corner in ((top, left), (top + side, left + side)))
    square = np.zeros_like(mask)
    square[:, low[0] : high[0], low[1] : high[1]] = True
    values: dict[str, dict[str, float]] = {}
    for method, pair in made.items():
        ours, theirs = (_small(x[None]) for x in pair)
        inside = {"fg": _small(mask[None]), "face": _small((mask & square)[None])}
        for part, where in inside.items():
            for name, function in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
                values.setdefault(method, {})[f"{name}_{part}"] = float(function(ours, theirs, where)[0])
    return values


def _small(x: np.ndarray):
    return metrics.smaller(x, SIZE) if x.shape[2:4] != SIZE else torch.from_numpy(x)


# -- tables ----------------------------------------------------------------------------------------------------------


def table2(runs_of: dict[str, list[runs.Run]]) -> tables.Table:
    """Designs of the rotator, each training a row; ``runs_of``: :func:`rainlab.measure.rotators.compare`."""
    shown = ("psnr", "ssim", "sharpness_error")
    ours = [
        tables.measured(f"{design}, seed {seed}", _of(run, "rotator"), shown)
        for design, each in runs_of.items() for seed, run in enumerate(each)
    ]  # fmt: skip
    still = next(iter(runs_of.values()))[0]
    return _table("table2", [*ours, tables.measured("not turned", _of(still, "copy"), shown)], shown)


def table_of_students(name: str, found: dict[str, runs.Run]) -> tables.Table:
    """Tables 4, 6 and 7: label -> run of :func:`rainlab.measure.students.student`; below them the character at rest."""
    shown = students.MEASURES
    ours = [tables.measured(label, _of(run, "student"), shown) for label, run in found.items()]
    still = {run.config["character"]: run for run in found.values()}
    for number, run in still.items():
        ours.append(tables.measured(f"character {number} at rest", _of(run, "copy"), shown))
    return _table(name, ours, shown)


def table8(run: runs.Run) -> tables.Table:
    """All systems, of a run of :func:`compare`."""
    ours = [tables.measured(label, _of(run, method), MEASURES) for method, label in METHODS.items()]
    return _table("table8", ours, MEASURES)


def _of(run: runs.Run, method: str) -> list[dict]:
    return [row for row in run.metrics() if row.get("method") == method]


def _table(name: str, ours: list[dict[str, str]], shown: Sequence[str]) -> tables.Table:
    columns = dict(zip(("PSNR ↑", "SSIM ↑", "LPIPS ↓"), range(3), strict=True))
    rows = [
        {"method": method, "source": f"reported, Table {name[-1]}"}
        | {column: f"{numbers[i]:g}" for column, i in columns.items() if i < len(numbers)}
        for method, numbers in reported.THA4[name].items()
    ]
    found = [tables.COLUMNS[metric][0] for metric in shown]
    return tables.frame([*rows, *ours], dict.fromkeys([*columns, *found]))
