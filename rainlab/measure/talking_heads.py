"""Talking Head Anime 4's tables on the studio's faces, its reported rows beside: what notebooks 80 and 81 show.

Table 2 compares designs of the teacher (:mod:`rainlab.measure.rotators`), 4, 6 and 7 students
(:mod:`rainlab.measure.students`), 3 and 5 are speed (:mod:`rainlab.measure.student_speed`). Table 8 stands here: the
same characters in the same motion by all systems, RAIN and AnimateAnyone among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from rainlab import runs
from rainlab.baselines import tha_distill
from rainlab.config import Preset, identity
from rainlab.data import landmarks
from rainlab.data.studio import face
from rainlab.data.video import read_picture
from rainlab.files import atomic_path
from rainlab.measure import evaluate, metrics, morphing, reported, rotators, students, tables
from rainlab.training import stages

VERSION = 1
PROTOCOL = "talking-heads-1"
CHARACTERS = (0, 1, 2)
SIZE = (64, 64)  # at which all are compared
MOMENTS = 8  # of a motion that are kept to be looked at
METHODS = {
    "copy": "the character at rest",
    "THA3": "THA3",
    "Section 3.1": "Section 3.1",
    "student": "student",
    "rain": "RAIN",
    "animate_anyone": "AnimateAnyone",
}
MEASURES = ("psnr_fg", "ssim_fg", "psnr_face", "ssim_face")


class Films(NamedTuple):
    """A character in a motion, by all METHODS."""

    made: dict[str, tuple[np.ndarray, np.ndarray]]
    """Method -> (what it makes, the truth as it is shown there), uint8 ``(f, h, w, 3)``, of whatever size; of a rotator
    what each of its trainings makes, ``(trainings, f, h, w, 3)``."""
    mask: np.ndarray  # bool (f, h, w): the true foreground,
    face: np.ndarray  # and what of it lies in the square in which the face moves


def compare(
    preset: Preset,
    recipe: str | students.Recipe = "small",
    rotator: rotators.Recipe = rotators.SMALL,
    characters: Sequence[int] = CHARACTERS,
    frames: int = 48,
    record: bool = False,
) -> runs.Run:
    """The run of Table 8: held-out characters in motions of their own, by all METHODS.

    Inside the true foreground, at 64×64, since some paint a backdrop and some paint none: all else is white in both
    pictures. The first frame is left out, which is the picture that is given. THA3 and the design of section 3.1 get
    the true face and only turn it, means over their trainings; a student learned its character; the others get one
    picture and the character's own dots. Metrics MEASURES, label ``method``; "face": inside the square in which a face
    moves, too. n: characters; and of each, label ``character``. Characters as few as these have no honest interval.
    Of the first of them some moments are kept to be looked at (:func:`pictures`).

    ``record``: as in :func:`rainlab.measure.evaluate.measure`; it trains what is not trained.
    """
    config = {"preset": preset.name, "stream": identity(preset.stream), "characters": list(characters)}
    config |= {"frames": frames} | morphing.VERSIONS
    animate = evaluate.trained_as(preset, "animate_anyone")
    inputs = {f"student {number}": students.student_id(number, recipe) for number in characters}
    inputs |= {
        f"{design}, seed {seed}": rotators.rotator_id(design, seed, rotator)
        for design in rotators.DESIGNS for seed in rotators.SEEDS
    }  # fmt: skip
    inputs |= {"rain": stages.run_id(preset, "distill3d"), "animate_anyone": stages.run_id(animate, "stage2")}

    def make(run: runs.Run) -> None:
        stages.finished(animate, "stage2", evaluate.device())
        each = {}
        for number in characters:
            shown = films(preset, recipe, rotator, number, frames, record=True)
            if number == characters[0]:
                _keep(run, shown)
            each[number] = _values(shown)
        for method in METHODS:
            for name in MEASURES:
                values = [each[number][method][name] for number in characters]
                run.record(name, float(np.mean(values)), None, None, len(values), PROTOCOL, method=method)
                for number, value in zip(characters, values, strict=True):
                    run.record(name, value, None, None, 1, PROTOCOL, method=method, character=number)

    return runs.made(make, record, preset.name, "talking_heads", config, VERSION, inputs)


def films(
    preset: Preset,
    recipe: str | students.Recipe,
    rotator: rotators.Recipe,
    number: int,
    frames: int,
    trainings: Sequence[int] = rotators.SEEDS,
    record: bool = False,
) -> Films:
    """A held-out character in a motion of its own, by all METHODS; of rotators by these ``trainings``.

    ``record``: as in :func:`rainlab.measure.evaluate.measure`, for student and rotators.
    """
    network = students.load(students.student(number, recipe, record))
    each = [(design, seed) for design in rotators.DESIGNS for seed in trainings]
    turning = {which: rotators.load(rotators.rotator(*which, rotator, record), rotator) for which in each}
    who, _, pose = morphing.cast(number, frames)
    size = preset.data.size
    clip = face.render(who, pose=pose, size=size)
    truth, mask = clip.frames[0].numpy(), clip.mask[0].numpy()
    dots = morphing.pair(number, frames)[1]
    radius = landmarks.dot_radius(clip.landmarks[0, 0].numpy(), size[0])
    drawn = np.stack([landmarks.draw(each, size, radius) for each in dots])
    held = evaluate.HeldOut(truth[:1], truth[None], drawn[None], clip.mask.numpy())
    made = {"copy": (truth[:1].repeat(frames, 0), truth)}
    made |= {method: (evaluate.generate(preset, method, held)[0], truth) for method in ("rain", "animate_anyone")}

    own = tha_distill.studio_lessons(who, pose[0], network.body.size)
    made["student"] = students.pictures(network, own.pose), students.shown(own.final)
    given = own if network.body.size == rotator.size else tha_distill.studio_lessons(who, pose[0], rotator.size)
    shown = {which: students.shown(rotators.turn_all(one, given.faced, given.pose)) for which, one in turning.items()}
    for design in rotators.DESIGNS:
        made[design] = np.stack([shown[design, seed] for seed in trainings]), students.shown(given.final)
    scale = size[0] / network.body.size
    low, high = ([round((x + side) * scale) for x in network.corner] for side in (0, network.face.size))
    square = np.zeros_like(mask)
    square[:, low[0] : high[0], low[1] : high[1]] = True
    return Films({method: made[method] for method in METHODS}, mask, mask & square)


def _values(shown: Films) -> dict[str, dict[str, float]]:
    """Method -> measure -> value of a character."""
    inside = {"fg": _small(shown.mask[None, 1:]), "face": _small(shown.face[None, 1:])}
    outside = ~inside["fg"][..., None]
    values: dict[str, dict[str, float]] = {}
    for method, (made, truth) in shown.made.items():
        ours = _small((made if made.ndim == 5 else made[None])[:, 1:])
        ours, theirs = (x.masked_fill(outside, 1.0) for x in (ours, _small(truth[None, 1:]).expand_as(ours)))
        for part, where in inside.items():
            for name, function in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
                found = function(ours, theirs, where.expand(ours.shape[:-1]))
                values.setdefault(method, {})[f"{name}_{part}"] = float(found.mean())
    return values


def _keep(run: runs.Run, shown: Films) -> None:
    """Moments of a character, a row each of the truth and what METHODS make, of a rotator the first training."""
    from PIL import Image

    rows = [shown.made["copy"][1], *(made if made.ndim == 4 else made[0] for made, _ in shown.made.values())]
    at = np.linspace(0, len(shown.mask) - 1, MOMENTS).round().astype(int)
    small = np.stack([(255 * _small(row[None, at])[0].numpy()).round().astype(np.uint8) for row in rows])
    with atomic_path(run.path / runs.PICTURES) as temporary:
        Image.fromarray(np.concatenate(np.concatenate(small, 1), 1)).save(temporary, "png")


def pictures(run: runs.Run) -> dict[str, np.ndarray]:
    """What a run of :func:`compare` kept: "truth" or of METHODS -> uint8 (MOMENTS, h, w, 3), the first character."""
    sheet = read_picture(run.path / runs.PICTURES)
    parts = sheet.reshape(1 + len(METHODS), SIZE[0], MOMENTS, SIZE[1], 3).swapaxes(1, 2)
    return dict(zip(("truth", *METHODS), parts, strict=True))


def _small(x: np.ndarray) -> torch.Tensor:
    """At SIZE, a mask or float colours in [0, 1]."""
    return metrics.smaller(x, SIZE)


# -- tables ----------------------------------------------------------------------------------------------------------


def table2(run: runs.Run) -> tables.Table:
    """Designs of the rotator, of a run of :func:`rainlab.measure.rotators.compare`."""
    labels = {design: design for design in rotators.DESIGNS} | {"copy": "not turned"}
    ours = [tables.measured(label, _of(run, method), rotators.MEASURES) for method, label in labels.items()]
    return _table("table2", ours, rotators.MEASURES)


def table_of_students(name: str, found: dict[str, runs.Run]) -> tables.Table:
    """Tables 4, 6 and 7: label -> run of :func:`rainlab.measure.students.student`; below, what they have to beat."""
    shown = students.MEASURES
    ours = [tables.measured(label, _of(run, "student"), shown) for label, run in found.items()]
    for number, run in {run.config["character"]: run for run in found.values()}.items():
        for method, label in (("nearest", "nearest lesson"), ("copy", "at rest")):
            ours.append(tables.measured(f"character {number}: {label}", _of(run, method), shown))
    return _table(name, ours, shown)


def differences(run: runs.Run) -> tables.Table:
    """How students differ from the one as published, of a run of :func:`rainlab.measure.students.compare`."""
    rows = []
    for label in dict.fromkeys(row["student"] for row in run.metrics()):
        own = tables.changes(row for row in run.metrics() if row["student"] == label)
        rows.append(tables.measured(f"{label} − {run.config['base']}", own, students.MEASURES))
    return tables.frame(rows, [tables.COLUMNS[metric][0] for metric in students.MEASURES])


def recorded(preset: Preset, recipe: str = "tiny") -> dict[str, tables.Table]:
    """Title -> table, of all that is recorded; ``preset``: of Table 8."""
    found = {}
    if run := runs.existing(rotators.compare):
        found["Table 2: designs of the teacher's rotator"] = table2(run)
    if run := runs.find("student_speed"):
        found["Tables 3, 5: milliseconds a frame at 512×512, medians of n rounds"] = table_of_speed(run)
    each = {f"character {n}": runs.existing(students.student, n, recipe) for n in CHARACTERS}
    if each := {label: run for label, run in each.items() if run}:
        found["Table 4: students"] = table_of_students("table4", each)
    for number, which in ((6, "architectures"), (7, "models")):
        if both := runs.existing(partial(students.compare, which, recipe=recipe)):
            run, ours = both
            found[f"Table {number}: {which} of a student"] = table_of_students(f"table{number}", ours)
            found[f"Table {number}: paired differences, n poses"] = differences(run)
    if run := runs.existing(compare, preset, recipe):
        found["Table 8: all systems"] = table8(run)
    return found


def behind(preset: Preset, recipe: str = "tiny") -> list[runs.Run]:
    """The runs behind notebooks `80_tha_students` and `81_tha_distillation`, those that are made."""
    made = [partial(students.student, number, recipe) for number in CHARACTERS]
    made += [lambda which=which: students.compare(which, recipe=recipe)[0] for which in students.COMPARED]
    made += [rotators.compare, partial(compare, preset, recipe)]
    found = [run for each in made if (run := runs.existing(each))]
    learned = {id for run in found for id in run.inputs.values() if id.startswith(("student-", "rotator-"))}
    return found + [runs.get(id) for id in sorted(learned)]


def table8(run: runs.Run) -> tables.Table:
    """All systems, of a run of :func:`compare`: means over characters, and the PSNR of each."""
    ours = []
    for method, label in METHODS.items():
        rows = _of(run, method)
        each = {
            f"character {row['character']}": f"{row['value']:.2f}"
            for row in rows if row["metric"] == "psnr_fg" and "character" in row
        }  # fmt: skip
        ours.append(tables.measured(label, [row for row in rows if "character" not in row], MEASURES) | each)
    return _table("table8", ours, MEASURES, [f"character {number}" for number in run.config["characters"]])


def table_of_speed(run: runs.Run) -> tables.Table:
    """Tables 3 and 5, of a run of :func:`rainlab.measure.student_speed.speed`: milliseconds a frame."""
    columns = dict(zip(("RTX A6000", "Titan RTX", "GTX 1080 Ti"), range(3), strict=True))
    rows = [
        {"method": method, "source": "reported, Tables 3 and 5"}
        | {card: f"{times[i]:g}" for card, i in columns.items()}
        for method, times in reported.THA4_SPEED.items()
    ]
    here = f"CPU, {run.config['threads']} threads"
    for row in run.metrics():
        if row["metric"] == "frames_per_second":
            found = {"method": row["contender"], "source": "measured here", here: f"{1000 / row['value']:.0f}"}
            rows.append(found | {"n": str(row["n"])})
    return tables.frame(rows, dict.fromkeys([*columns, here]))


def _of(run: runs.Run, method: str) -> list[dict]:
    return [row for row in run.metrics() if row.get("method") == method]


def _table(name: str, ours: list[dict[str, str]], shown: Sequence[str], more: Sequence[str] = ()) -> tables.Table:
    columns = dict(zip(("PSNR ↑", "SSIM ↑", "LPIPS ↓"), range(3), strict=True))
    rows = [
        {"method": method, "source": f"reported, Table {name[-1]}"}
        | {column: f"{numbers[i]:g}" for column, i in columns.items() if i < len(numbers)}
        for method, numbers in reported.THA4[name].items()
    ]
    found = [tables.COLUMNS[metric][0] for metric in shown]
    return tables.frame([*rows, *ours], dict.fromkeys([*columns, *found, *more]))
