"""How fast a student of Talking Head Anime 4 draws, side by side with the published algorithm and with its teacher.

    python -m rainlab.measure.student_speed [FOLDER] [--teacher]

A folder holds a published student; without one the networks have the published sizes and random numbers, which takes as
long, but nothing can be said of what moves. The other networks of Table 6 are timed beside it, with random numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from rainlab import runs
from rainlab.baselines import siren, tha, tha_distill, tha_export, tha_teacher
from rainlab.files import digest
from rainlab.measure import bench, students

VERSION = 1
ROUNDS = 5
FIRST = "the published algorithm"
HEAD = (32, 160, 224, 352)  # the face's 192×192 pixels of the paper's Table 8
MOTION = 200  # poses that a performer gets to know, of motions other than the timed ones,
UNSEEN = 24  # that pictures are compared in and timed


def published(student: tha.Student, pose: Tensor) -> Tensor:
    """What the published code does, step by step: RGBA ``(4, size, size)`` of a pose ``(45,)``.

    Every layer sees whole pictures, and the pose is a picture, too, each of its numbers a plane of equal values.
    """

    def sines(layers: Sequence[siren.Sine], x: Tensor) -> Tensor:
        for layer in layers:
            x = torch.sin(siren.OMEGA * layer.linear(x))
        return x

    def planes(numbers: Tensor, side: int) -> Tensor:
        return torch.cat([tha_export.places(side), numbers[None, :, None, None].expand(-1, -1, side, side)], 1)

    layers, picture = student.face.siren, student.character[None].clone()
    face = layers.last_linear(sines(layers.sine_layers, planes(pose[: siren.MORPHS], student.face.size)))
    (top, left), side = student.corner, student.face.size
    picture[:, :, top : top + side, left : left + side] = face
    levels, x = student.body.siren_layers, None
    for level, layers in enumerate(levels):
        side = student.body.size >> (len(levels) - 1 - level)
        seen = planes(pose, side)
        if x is not None:
            seen = torch.cat([F.interpolate(x, size=(side, side), mode="bilinear"), seen], 1)
        x = sines(layers, seen)
    grid, alpha, colour = student.body.last_linear(x).split((2, 1, 4), 1)
    return ((1 - alpha) * tha_teacher.move(picture, grid) + alpha * colour)[0]


def contenders(
    student: tha.Student,
    poses: Tensor,
    known: bool,
    onnx: Path | None = None,
    teacher: tha_teacher.Teacher | None = None,
) -> dict[str, Callable[[Tensor], np.ndarray]]:
    """Label -> pose to picture, colours times alpha, FIRST before the others.

    known: the student is a real one, so that pixels which never move can be found; onnx: a file of
    :mod:`rainlab.baselines.tha_export`, whose pictures are straight.
    """

    def whole(pose: Tensor) -> np.ndarray:
        return student.frame(pose, straight=False)

    def head(pose: Tensor) -> np.ndarray:
        return tha.to_picture(student.draw(pose, HEAD).blended, straight=False)

    made = {FIRST: lambda pose: tha.to_picture(published(student, pose), straight=False), "here": whole}
    made["here, the head alone"] = head
    if known:
        performer = tha.Performer(student, poses)
        made[f"here, what moves ({performer.share:.0%} of the pixels)"] = partial(performer.frame, straight=False)
    made |= others(student)
    if onnx:
        made["ONNX, by onnxruntime"] = tha_export.OnnxStudent(onnx, torch.get_num_threads()).frame
    if teacher:
        character = student.character[None]
        made["the teacher"] = lambda pose: tha.to_picture(teacher(character, pose[None]).upscaled.picture[0], False)
    return made


def others(student: tha.Student) -> dict[str, Callable[[Tensor], np.ndarray]]:
    """The other networks of Table 6 at a student's size, with random numbers: label -> pose to picture."""
    recipe = students.Recipe(size=student.body.size)
    flat = tha.Student(
        student.character, student.face, students.parts(recipe, students.ARCHITECTURES[1], tha.FACE)[1], student.corner
    )
    painter = students.painter(recipe)
    return {
        students.ARCHITECTURES[1]: partial(flat.frame, straight=False),
        students.ARCHITECTURES[2]: lambda pose: tha.to_picture(painter(pose), straight=False),
    }


def speed(folder: str | Path | None = None, teacher: bool = False, record: bool = False) -> runs.Run:
    """The run that times a student of the published size; ``folder`` and what else is said as in the module.

    teacher: time one with random weights beside it. record: as in :func:`rainlab.measure.bench.speed`; without it any
    run of the folder's weights, or if no folder is given of any.

    Metrics, label ``contender``: ``frames_per_second``, and ``speed`` relative to the published algorithm in the same
    round, medians with quartiles; ``grey_levels``: by how much, in UNSEEN poses, a picture that shows the same differs
    from its at most.
    """
    known = "random"
    if folder:
        known = digest(Path(folder) / tha.FILES["body_morpher_file_name"])[:16]
    if not record:
        if run := runs.find("student_speed", **({"weights": known} if folder else {})):
            return run
        command = f"python -m rainlab.measure.student_speed {folder or ''}".strip()
        raise FileNotFoundError(f"nothing recorded of this student's speed: `{command}`")
    config = {"weights": known, "teacher": teacher, "threads": torch.get_num_threads(), "size": tha.SIZE}
    run = runs.open_run("student_speed", config, VERSION).clear()
    torch.manual_seed(0)
    student = tha.load(folder) if folder else tha.Student(_somebody(), siren.FaceMorpher(), siren.BodyMorpher())
    poses = tha_distill.natural_poses(UNSEEN, split="test").float()
    with TemporaryDirectory() as place, torch.inference_mode():
        able = find_spec("onnxscript") and find_spec("onnxruntime")
        with torch.inference_mode(False):
            onnx = tha_export.to_onnx(student, Path(place) / "student.onnx") if able else None
        slow = tha_teacher.Teacher().eval() if teacher else None
        made = contenders(student, tha_distill.natural_poses(MOTION).float(), bool(folder), onnx, slow)
        apart: dict[str, int] = {}
        for pose in tqdm(poses, "compared", leave=False):
            expected = made[FIRST](pose).astype(int)
            for label, draw in made.items():
                if label == FIRST or label.startswith("here"):
                    top, left, bottom, right = HEAD if "head" in label else (0, 0, tha.SIZE, tha.SIZE)
                    most = np.abs(draw(pose) - expected[top:bottom, left:right]).max()
                    apart[label] = max(apart.get(label, 0), int(most))
        for label, most in apart.items():
            run.record("grey_levels", most, contender=label, n=len(poses))
        turns = {label: _Turn(draw, poses) for label, draw in made.items()}
        bench.record_rates(run, bench.rounds("students", turns, "frames/s", ROUNDS))
    return run.finish()


class _Turn:
    """Draws one pose after the other, two a turn."""

    def __init__(self, draw: Callable[[Tensor], np.ndarray], poses: Tensor):
        self.draw, self.poses, self.next = draw, poses, 0

    def __call__(self) -> float:
        for _ in range(2):
            self.draw(self.poses[self.next % len(self.poses)])
            self.next += 1
        return 2


def _somebody() -> Tensor:
    """A character's picture, of random colours: what is drawn does not change how long it takes."""
    picture = np.zeros((tha.SIZE, tha.SIZE, 4), np.uint8)
    picture[64:, 128:384] = np.random.default_rng(0).integers(0, 256, (tha.SIZE - 64, 256, 4))
    return tha.from_picture(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: record and print."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.measure.student_speed", description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of a published student")
    parser.add_argument("--teacher", action="store_true", help="time the teacher, too")
    options = parser.parse_args(arguments)
    run = speed(options.folder, options.teacher, record=True)
    value = partial(run.value, "frames_per_second")
    for label in dict.fromkeys(row["contender"] for row in run.metrics()):
        row, times = value(contender=label), run.value("speed", contender=label)["value"]
        print(f"{label:40} {row['value']:6.2f} frames/s [{row['ci_low']:.2f}, {row['ci_high']:.2f}], {times:.1f} times")
    print(run.id)


if __name__ == "__main__":
    main()
