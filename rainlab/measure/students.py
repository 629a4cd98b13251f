"""Students of Talking Head Anime 4 on the studio's faces: trained, measured; its Tables 4, 6 and 7 at small scale.

The teacher is exact: whatever a student should make can be drawn (:mod:`rainlab.baselines.tha_distill`). A student
knows one character, so there is none to hold out; poses are held out, of motions that no lesson shows. Besides the
character at rest, it has to be better than the *nearest lesson*: the picture of the pose, among those it was taught,
that is least far from the pose it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rainlab import runs
from rainlab.baselines import siren, tha, tha_distill, tha_teacher
from rainlab.baselines.tha_distill import PHASES, Lessons
from rainlab.data.studio import body, face
from rainlab.data.studio.expression import POSE
from rainlab.files import digest, write_json
from rainlab.measure import evaluate, metrics
from rainlab.method.checkpoint import write_tensors
from rainlab.training import weights

VERSION = 1
PROTOCOL = "students-1"
ARCHITECTURES = ("Section 4.1", "Section 4.1 w/o multi-res", "Vanilla SIREN")
"""Table 6: the student; all its layers at full size; one network of sine layers that paints all pixels."""
MODELS = {"A": (2,), "B": (1,), "C": (1, 2), "D": (0,), "E": (0, 2), "F": (0, 1), "G": (0, 1, 2)}
"""Table 7: which phases of training a model of that name has."""
HALF = tuple(tuple(width // 2 for width in level) for level in siren.WIDTHS)
FAST = tha_distill.Strides(6.0, 1e-3)  # found on another character's poses: twice or three times as far is too far
MEASURES = ("psnr_fg", "ssim_fg", "psnr_face", "psnr", "ssim", "sharpness_error")
COMPARED = {"architectures": ARCHITECTURES, "models": tuple(MODELS)}
"""What :func:`compare` compares, with the student as published the first or the last of them."""


@dataclass(frozen=True)
class Recipe:
    """How large a student is, and how long it learns."""

    size: int = 128  # of its pictures
    lessons: int = 2000  # poses that it learns from
    tests: int = 200  # poses that it is measured in
    face_examples: int = 40_000
    body_examples: int = 80_000
    face: tuple[int, int] = (128, 8)  # width and sine layers of the face
    widths: tuple[tuple[int, ...], ...] = siren.WIDTHS
    strides: tha_distill.Strides = tha_distill.PAPER


RECIPES = {
    "tiny": Recipe(64, 1000, 100, 24_000, 12_000, (64, 8), HALF, FAST),
    "small": Recipe(128, 2000, 200, 40_000, 32_000, (128, 8), HALF, FAST),
    # section 4.2, but for the lessons, which are made once and kept in memory: 7 MB a pose at this size
    "paper": Recipe(512, 2000, 1000, 1_000_000, 1_500_000),
}


def student(
    character: int,
    recipe: str | Recipe = "small",
    record: bool = False,
    architecture: str = ARCHITECTURES[0],
    model: str = "G",
    seed: int = 0,
) -> runs.Run:
    """The run that trained a student of a held-out character, and measured it; its weights are in its folder.

    Metrics over test poses, label ``method`` ("student", "nearest": the lesson in the nearest pose, "copy": the
    character at rest): MEASURES of the picture on white, "fg" inside the true foreground, "face" inside the part of
    that which lies in the square of the face; n: poses, each one's values in ``values.json``. ``parameters`` and
    ``flops`` of a picture. ``loss``, label ``part``: means over 200 stretches of the training.

    The face is the same whatever a body's architecture and phases are: those of the student as published is taken.

    Args:
        recipe: or its name in RECIPES. record: as in :func:`rainlab.measure.evaluate.measure`, resuming.
        architecture: of ARCHITECTURES. model: of MODELS; phases that are left share the whole length.
        seed: of the first weights.

    Raises:
        ValueError: another name. FileNotFoundError: nothing recorded.
    """
    chosen, config = recipe_of(recipe), _config(character, recipe, architecture, model, seed)
    own_face = (architecture, model) == (ARCHITECTURES[0], "G") or architecture == ARCHITECTURES[2]
    inputs = {} if own_face else {"face": student_id(character, recipe, seed=seed)}

    def make(run: runs.Run) -> None:
        given = lessons(character, chosen)
        network = _untrained(given, chosen, architecture, seed)
        if not own_face:
            network = replace(network, face=load(student(character, recipe, True, seed=seed)).face)
        network = _train(run, given, network, chosen, model, with_face=own_face)
        measure(run, network, lessons(character, chosen, "test"), given)

    return runs.made(make, record, None, "student", config, VERSION, inputs)


def own(picture: str | Path, teacher: str | Path, recipe: str | Recipe = "paper", record: bool = False) -> runs.Run:
    """The run that trained a student of a picture of one's own, by the published teacher; as :func:`student` else.

    It trains on a GPU if there is one; lessons stay in memory, 7 MB each.

    Args:
        picture: a file, 512×512, the character on transparent ground, its face where the published demo wants it.
        teacher: the folder of :func:`rainlab.baselines.tha_teacher.load`. recipe: of 512 pixels, or its name.

    Raises:
        ValueError: the picture is another, or the recipe of another size. FileNotFoundError: no such picture, no
            teacher, or nothing recorded.
    """
    chosen = recipe_of(recipe)
    if chosen.size != tha.SIZE:
        raise ValueError(f"recipe: got pictures of {chosen.size} pixels, expected {tha.SIZE}: what the teacher draws")
    character = tha.from_picture(tha.read_character(picture))
    files = {name: digest(file) for name, file in tha_teacher.files(Path(teacher))}
    config = {"recipe": asdict(chosen), "model": "G", "distillation": tha_distill.VERSION}

    def make(run: runs.Run) -> None:
        place = evaluate.device()
        says = partial(tha_distill.teacher_lessons, tha_teacher.load(teacher).to(place), character.to(place))
        given = says(tha_distill.natural_poses(chosen.lessons))
        torch.manual_seed(0)
        network = tha.Student(character, *parts(chosen, ARCHITECTURES[0], tha.FACE), tha.CORNER)
        network = _train(run, given, network, chosen, "G", place)
        measure(run, network, says(tha_distill.natural_poses(chosen.tests, split="test")), given)

    return runs.made(make, record, None, "student", config, VERSION, {"picture": digest(picture)} | files)


def compare(
    which: str, character: int = 0, recipe: str | Recipe = "small", record: bool = False
) -> tuple[runs.Run, dict[str, runs.Run]]:
    """(The run that compares students of a character, their runs by name), ``which`` of COMPARED: Table 6 or 7.

    Metrics: ``<metric>_change`` of MEASURES, label ``student``: against the student as published, pose with pose, with
    its 95 % interval; n: poses. It tells how sure a difference of these two trainings is, not what others would give.

    ``record``: as in :func:`rainlab.measure.evaluate.measure`; it trains what is not trained.
    """
    if which not in COMPARED:
        raise ValueError(f"which: got {which!r}, expected one of {', '.join(COMPARED)}")
    name, base = which[:-1], (ARCHITECTURES[0] if which == "architectures" else "G")
    found = {label: student(character, recipe, record, **{name: label}) for label in COMPARED[which]}

    def make(run: runs.Run) -> None:
        values = {label: one.values() for label, one in found.items()}
        for label in found:
            for metric in MEASURES if label != base else ():
                ours, theirs = (values[each]["student"][metric] for each in (label, base))
                run.record(f"{metric}_change", *metrics.paired(ours, theirs), PROTOCOL, student=label)

    inputs = {label: run.id for label, run in found.items()}
    return runs.made(make, record, None, "students", {"which": which, "base": base}, VERSION, inputs), found


def _train(
    run: runs.Run,
    given: Lessons,
    network: tha.Student | siren.FaceMorpher,
    recipe: Recipe,
    model: str,
    place: torch.device | str = "cpu",
    with_face: bool = True,
) -> tha.Student | siren.FaceMorpher:
    """Train in a run, resuming; weights and curves are kept there. ``place``: where. ``with_face``: or body alone."""
    curves, state = {}, {name: run.path / f"{name}.safetensors" for name in ("face", "body", "whole")}
    if isinstance(network, tha.Student):
        face, body = network.face.to(place), network.body.to(place)
        if with_face:
            chosen = recipe.face_examples, state["face"], recipe.strides
            curves["face"] = tha_distill.train_face(face, given, network.corner, *chosen)
        chosen = recipe.body_examples, state["body"], phases_of(model), recipe.strides
        curves["body"] = tha_distill.train_body(body, given, *chosen)
        for part in (face, body):
            part.cpu()
    else:
        chosen = recipe.body_examples, state["whole"], recipe.strides
        curves["whole"] = tha_distill.train_whole(network, given, *chosen)
    write_tensors(run.path / weights.NAME, _tensors(network))
    for part, curve in curves.items():
        record_curve(run, curve, part=part)
    return network


def record_curve(run: runs.Run, curve: Sequence[float], **labels: str) -> None:
    """Record a loss by step: its means over 200 stretches, each at its last step."""
    for some in np.array_split(np.arange(len(curve)), min(200, len(curve))):
        run.record("loss", float(np.mean([curve[i] for i in some])), step=int(some[-1]) + 1, **labels)


def student_id(character: int, recipe: str | Recipe = "small", seed: int = 0) -> str:
    """The id of a run of :func:`student`, of one as published, known before it is made."""
    return runs.run_id("student", _config(character, recipe, ARCHITECTURES[0], "G", seed), VERSION)


def _config(character: int, recipe: str | Recipe, architecture: str, model: str, seed: int) -> dict:
    for name, value, known in (("architecture", architecture, ARCHITECTURES), ("model", model, MODELS)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    config = {"character": character, "recipe": asdict(recipe_of(recipe)), "architecture": architecture, "model": model}
    config |= {"seed": seed, "distillation": tha_distill.VERSION}
    return config | {"studio": body.VERSION, "face": face.VERSION}


@lru_cache(maxsize=2)
def lessons(character: int, recipe: Recipe, split: str = "train") -> Lessons:
    """Those of a held-out character; ``split`` "test": those that it is measured in."""
    count = recipe.lessons if split == "train" else recipe.tests
    seed = body.split_seeds("test", 1, character)
    return tha_distill.studio_lessons(seed, tha_distill.natural_poses(count, character, split), recipe.size)


def measure(run: runs.Run, network: tha.Student | siren.FaceMorpher, asked: Lessons, given: Lessons) -> None:
    """Record MEASURES of a student in poses other than those given, of the nearest of these, and of rest."""
    drawn = {"student": pictures(network, asked.pose), "nearest": shown(given.final[nearest(asked.pose, given.pose)])}
    drawn["copy"] = shown(asked.character[None]).repeat(len(asked), 0)
    corner, side = (network.corner, network.face.size) if isinstance(network, tha.Student) else face_place(given)
    values = record_each(run, drawn, asked.final, PROTOCOL, (*corner, side))
    write_json(run.path / runs.VALUES, values)
    parts = (network.face, network.body) if isinstance(network, tha.Student) else (network,)
    run.record("parameters", sum(x.numel() for part in parts for x in part.parameters()))
    with FlopCounterMode(display=False) as counter:
        pictures(network, asked.pose[:1])
    run.record("flops", counter.get_total_flops())


def nearest(asked: Tensor, given: Tensor) -> Tensor:
    """Which of poses ``(n, 45)`` is least far from each of poses ``(m, 45)``: ``(m,)``."""
    return torch.cdist(asked.double(), given.double()).argmin(1)


def record_each(
    run: runs.Run, made: dict[str, np.ndarray], final: Tensor, protocol: str, face: tuple[int, int, int] | None = None
) -> dict[str, dict[str, list[float]]]:
    """Record MEASURES of pictures ``(n, h, w, 3)`` of a truth ``(n, 4, h, w)``, label ``method``; returns each one's.

    face: top, left and side of a face's square, for the measures of that.
    """
    truth, mask = shown(final)[:, None], (final[:, 3] > 0).numpy()[:, None]  # alpha: more than a half of 255
    square = np.zeros_like(mask)
    if face:
        top, left, side = face
        square[..., top : top + side, left : left + side] = True
    values = {}
    for method, frames in made.items():
        found = metrics.evaluate(frames[:, None], truth, mask)
        if face:
            found["psnr_face"] = metrics.psnr(frames[:, None], truth, mask & square)
        values[method] = {name: np.asarray(found[name]).tolist() for name in MEASURES if name in found}
        for name, each in values[method].items():
            run.record(name, *metrics.bootstrap(each), protocol, method=method)
    return values


def pictures(network: tha.Student | siren.FaceMorpher, poses: Tensor) -> np.ndarray:
    """What a student draws of poses ``(n, 45)``, on white: uint8 ``(n, h, w, 3)``."""
    if isinstance(network, tha.Student):
        return np.stack([on_white(network.draw(pose).blended) for pose in poses])
    with torch.inference_mode():
        return np.stack([on_white(network(pose)) for pose in poses])


def on_white(made: Tensor) -> np.ndarray:
    """A picture of the networks' ``(4, h, w)`` as a page shows it: uint8 ``(h, w, 3)``."""
    return tha.on_white(tha.to_picture(made))


def shown(made: Tensor) -> np.ndarray:
    """Several of them: ``(n, 4, h, w)`` -> ``(n, h, w, 3)``."""
    return np.stack([on_white(each) for each in made])


def phases_of(model: str) -> list[tuple[float, Sequence[float]]]:
    """Of a training: from which share of it on which weights, like PHASES, for one of MODELS."""
    begins = [begin for begin, _ in PHASES] + [1.0]
    lengths = {number: begins[number + 1] - begins[number] for number in MODELS[model]}
    made, begin = [], 0.0
    for number, length in lengths.items():
        made.append((begin, PHASES[number][1]))
        begin += length / sum(lengths.values())
    return made


def load(run: runs.Run) -> tha.Student | siren.FaceMorpher:
    """The networks of a run of :func:`student`. FileNotFoundError if its weights are not there."""
    recipe = Recipe(**run.config["recipe"])
    tensors = weights.weights_of(run.id)
    architecture = run.config.get("architecture", ARCHITECTURES[0])
    if architecture == ARCHITECTURES[2]:
        network = painter(recipe)
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False)
    top, left, size = tensors.pop("place").int().tolist()
    drawn = tha.Student(tensors.pop("character"), *parts(recipe, architecture, size), (top, left))
    for name in ("face", "body"):
        part = {key.partition(".")[2]: tensor for key, tensor in tensors.items() if key.startswith(name)}
        getattr(drawn, name).load_state_dict(part)
        getattr(drawn, name).eval().requires_grad_(False)
    return drawn


def face_place(given: Lessons) -> tuple[tuple[int, int], int]:
    """(Upper left corner, side) of the smallest square, a multiple of 8 wide, that holds all that moves in a face."""
    size = given.character.shape[-1]
    rows, columns = tha_distill.movable(given, (0, 0), size).nonzero().T
    side = max(int(x.max() - x.min()) + 1 for x in (rows, columns))
    side = min(size, -(-side // 8) * 8)
    middle = [int(x.max() + x.min() + 1) // 2 for x in (rows, columns)]
    top, left = (min(max(0, at - side // 2), size - side) for at in middle)
    return (top, left), side


def recipe_of(recipe: str | Recipe) -> Recipe:
    """A recipe, or that of a name. ValueError for another."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe: got {recipe!r}, expected one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def _untrained(given: Lessons, recipe: Recipe, architecture: str, seed: int = 0) -> tha.Student | siren.FaceMorpher:
    torch.manual_seed(seed)
    if architecture == ARCHITECTURES[2]:
        return painter(recipe)
    corner, size = face_place(given)
    return tha.Student(given.character, *parts(recipe, architecture, size), corner)


def parts(recipe: Recipe, architecture: str, size: int) -> tuple[siren.FaceMorpher, siren.BodyMorpher]:
    """Untrained networks, the face's pictures of a ``size``."""
    flat = tuple(width for level in recipe.widths for width in level)
    widths = recipe.widths if architecture == ARCHITECTURES[0] else (flat,)
    return siren.FaceMorpher(*recipe.face, size), siren.BodyMorpher(widths, recipe.size)


def painter(recipe: Recipe) -> siren.FaceMorpher:
    """Nine sine layers, as wide as gives them the numbers of the student's body."""
    numbers = sum(p.numel() for p in siren.BodyMorpher(recipe.widths, recipe.size).parameters())
    width = round(((numbers - 4) / 8 + 3.75**2) ** 0.5 - 3.75)  # 8 w² + 60 w + 4 = numbers
    return siren.FaceMorpher(width, 9, recipe.size, len(POSE))


def _tensors(network: tha.Student | siren.FaceMorpher) -> dict[str, Tensor]:
    if isinstance(network, siren.FaceMorpher):
        return network.state_dict()
    parts = {"face": network.face, "body": network.body}
    tensors = {f"{name}.{key}": x for name, part in parts.items() for key, x in part.state_dict().items()}
    return tensors | {"character": network.character, "place": torch.tensor([*network.corner, network.face.size])}
