"""Students of Talking Head Anime 4 on the studio's faces: trained, measured; its Tables 4, 6 and 7 at small scale.

The teacher is exact: whatever a student should make can be drawn (:mod:`rainlab.baselines.tha_distill`). A student
knows one character, so there is none to hold out; poses are held out, of motions that no lesson shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rainlab import runs
from rainlab.baselines import tha, tha_distill, tha_teacher
from rainlab.baselines.tha_distill import PHASES, Lessons
from rainlab.data.studio import body, face
from rainlab.data.studio.expression import POSE
from rainlab.files import digest
from rainlab.measure import metrics
from rainlab.method.checkpoint import read_tensors, write_tensors
from rainlab.training import weights

VERSION = 1
PROTOCOL = "students-1"
ARCHITECTURES = ("Section 4.1", "Section 4.1 w/o multi-res", "Vanilla SIREN")
"""Table 6: the student; all its layers at full size; one network of sine layers that paints all pixels."""
MODELS = {"A": (2,), "B": (1,), "C": (1, 2), "D": (0,), "E": (0, 2), "F": (0, 1), "G": (0, 1, 2)}
"""Table 7: which phases of training a model of that name has."""
MEASURES = ("psnr", "ssim", "sharpness_error")


@dataclass(frozen=True)
class Recipe:
    """How large a student is, and how long it learns."""

    size: int = 128  # of its pictures
    lessons: int = 2000  # poses that it learns from
    tests: int = 200  # poses that it is measured in
    face_examples: int = 40_000
    body_examples: int = 80_000
    face: tuple[int, int] = (128, 8)  # width and sine layers of the face
    widths: tuple[tuple[int, ...], ...] = tha.WIDTHS
    rate: float = 1.0  # what the paper's learning rates are multiplied by


RECIPES = {
    "tiny": Recipe(size=64, lessons=1000, tests=100, face_examples=8000, body_examples=16_000),
    "small": Recipe(),
    # section 4.2, but for the lessons: a pose takes 12 MB at this size
    "paper": Recipe(size=512, lessons=4000, tests=1000, face_examples=1_000_000, body_examples=1_500_000),
}


def student(
    character: int,
    recipe: str | Recipe = "small",
    record: bool = False,
    architecture: str = ARCHITECTURES[0],
    model: str = "G",
) -> runs.Run:
    """The run that trained a student of a held-out character, and measured it; its weights are in its folder.

    Metrics over test poses, label ``method`` ("student", or "copy": the character at rest): MEASURES of the picture on
    white; ``loss`` of each step, label ``part``. n: poses.

    Args:
        recipe: or its name in RECIPES. record: as in :func:`rainlab.measure.evaluate.measure`, resuming.
        architecture: of ARCHITECTURES. model: of MODELS; phases that are left share the whole length.

    Raises:
        ValueError: another name. FileNotFoundError: nothing recorded.
    """
    chosen, config = recipe_of(recipe), _config(character, recipe, architecture, model)

    def make(run: runs.Run) -> None:
        given = lessons(character, chosen)
        network = _train(run, given, _untrained(given, chosen, architecture), chosen, model)
        measure(run, network, lessons(character, chosen, "test"))

    return runs.made(make, record, None, "student", config, VERSION)


def own(picture: str | Path, teacher: str | Path, recipe: Recipe, record: bool = False) -> runs.Run:
    """The run that trained a student of a picture of one's own, by the published teacher; as :func:`student` else.

    Args:
        picture: a file, 512×512, the character on transparent ground, its face where the published demo wants it.
        teacher: the folder of :func:`rainlab.baselines.tha_teacher.load`. recipe: of 512 pixels; a pose takes 15 MB.

    Raises:
        ValueError: the picture is another, or the recipe of another size. FileNotFoundError: no such picture, no
            teacher, or nothing recorded.
    """
    if recipe.size != tha.SIZE:
        raise ValueError(f"recipe: got pictures of {recipe.size} pixels, expected {tha.SIZE}: what the teacher draws")
    character = tha.from_picture(tha.read_character(picture))
    files = {name: digest(file) for name, file in tha_teacher.files(Path(teacher))}
    config = {"recipe": asdict(recipe), "model": "G"}

    def make(run: runs.Run) -> None:
        says = partial(tha_distill.teacher_lessons, tha_teacher.load(teacher), character)
        given = says(tha_distill.natural_poses(recipe.lessons))
        torch.manual_seed(0)
        network = tha.Student(character, *_parts(recipe, ARCHITECTURES[0], tha.FACE), tha.CORNER)
        network = _train(run, given, network, recipe, "G")
        measure(run, network, says(tha_distill.natural_poses(recipe.tests, split="test")))

    return runs.made(make, record, None, "student", config, VERSION, {"picture": digest(picture)} | files)


def _train(
    run: runs.Run, given: Lessons, network: tha.Student | tha.FaceMorpher, recipe: Recipe, model: str
) -> tha.Student | tha.FaceMorpher:
    """Train in a run, resuming; weights and curves are kept there."""
    curves, state = {}, {name: run.path / f"{name}.safetensors" for name in ("face", "body", "whole")}
    if isinstance(network, tha.Student):
        examples, corner, rate = (recipe.face_examples, recipe.body_examples), network.corner, recipe.rate
        curves["face"] = tha_distill.train_face(network.face, given, corner, examples[0], state["face"], rate)
        curves["body"] = tha_distill.train_body(network.body, given, examples[1], state["body"], phases_of(model), rate)
    else:
        curves["whole"] = tha_distill.train_whole(network, given, recipe.body_examples, state["whole"], recipe.rate)
    write_tensors(run.path / weights.NAME, _tensors(network))
    for part, curve in curves.items():
        for step in range(0, len(curve), max(1, len(curve) // 200)):
            run.record("loss", curve[step], step=step + 1, part=part)
    return network


def student_id(character: int, recipe: str | Recipe = "small", architecture=ARCHITECTURES[0], model="G") -> str:
    """The id of a run of :func:`student`, known before it is made."""
    return runs.run_id("student", _config(character, recipe, architecture, model), VERSION)


def _config(character: int, recipe: str | Recipe, architecture: str, model: str) -> dict:
    for name, value, known in (("architecture", architecture, ARCHITECTURES), ("model", model, MODELS)):
        if value not in known:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    config = {"character": character, "recipe": asdict(recipe_of(recipe)), "architecture": architecture, "model": model}
    return config | {"studio": body.VERSION, "face": face.VERSION}


@lru_cache(maxsize=2)
def lessons(character: int, recipe: Recipe, split: str = "train") -> Lessons:
    """Those of a held-out character; ``split`` "test": those that it is measured in."""
    count = recipe.lessons if split == "train" else recipe.tests
    seed = body.split_seeds("test", 1, character)
    return tha_distill.studio_lessons(seed, tha_distill.natural_poses(count, character, split), recipe.size)


def measure(run: runs.Run, network: tha.Student | tha.FaceMorpher, asked: Lessons) -> None:
    """Record MEASURES of a student in other poses, and of its character at rest."""
    still = asked.character.expand_as(asked.final)
    record_each(run, {"student": pictures(network, asked.pose), "copy": shown(still)}, shown(asked.final), PROTOCOL)


def record_each(run: runs.Run, made: dict[str, np.ndarray], truth: np.ndarray, protocol: str) -> None:
    """Record MEASURES of pictures ``(n, h, w, 3)``, label ``method``; n: pictures."""
    for method, frames in made.items():
        values = metrics.evaluate(frames[:, None], truth[:, None])
        for name in MEASURES:
            run.record(name, *metrics.bootstrap(values[name]), protocol, method=method)


def pictures(network: tha.Student | tha.FaceMorpher, poses: Tensor) -> np.ndarray:
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


def load(run: runs.Run) -> tha.Student | tha.FaceMorpher:
    """The networks of a run of :func:`student`. FileNotFoundError if its weights are not there."""
    recipe = Recipe(**run.config["recipe"])
    tensors, _ = read_tensors(weights.weights_file(run.id))
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    architecture = run.config.get("architecture", ARCHITECTURES[0])
    if architecture == ARCHITECTURES[2]:
        network = _painter(recipe)
        network.load_state_dict(tensors)
        return network.eval().requires_grad_(False)
    top, left, size = tensors.pop("place").int().tolist()
    drawn = tha.Student(tensors.pop("character"), *_parts(recipe, architecture, size), (top, left))
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


def _untrained(given: Lessons, recipe: Recipe, architecture: str) -> tha.Student | tha.FaceMorpher:
    torch.manual_seed(0)
    if architecture == ARCHITECTURES[2]:
        return _painter(recipe)
    corner, size = face_place(given)
    return tha.Student(given.character, *_parts(recipe, architecture, size), corner)


def _parts(recipe: Recipe, architecture: str, size: int) -> tuple[tha.FaceMorpher, tha.BodyMorpher]:
    flat = tuple(width for level in recipe.widths for width in level)
    widths = recipe.widths if architecture == ARCHITECTURES[0] else (flat,)
    return tha.FaceMorpher(*recipe.face, size), tha.BodyMorpher(widths, recipe.size)


def _painter(recipe: Recipe) -> tha.FaceMorpher:
    """Nine sine layers, as wide as gives them the numbers of the student's body."""
    numbers = sum(p.numel() for p in tha.BodyMorpher(recipe.widths, recipe.size).parameters())
    width = round((numbers / 8 + 9) ** 0.5 - 3)  # 8 w² + 51 w + 4 = numbers, nearly
    return tha.FaceMorpher(width, 9, recipe.size, len(POSE))


def _tensors(network: tha.Student | tha.FaceMorpher) -> dict[str, Tensor]:
    if isinstance(network, tha.FaceMorpher):
        return network.state_dict()
    parts = {"face": network.face, "body": network.body}
    tensors = {f"{name}.{key}": x for name, part in parts.items() for key, x in part.state_dict().items()}
    return tensors | {"character": network.character, "place": torch.tensor([*network.corner, network.face.size])}
