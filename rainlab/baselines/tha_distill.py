"""How a student of Talking Head Anime 4 learns one character from a teacher (section 4.2).

The face learns the face, the body learns where each pixel is taken from, what else it could be, and how much of both.
A teacher gives *lessons*: pictures of many poses with all that is known of them. The studio's are exact, since every
face can be drawn in every pose with its flow; those of the published teacher are what its networks say. Lessons are
made once and drawn again and again, where the paper makes one for each of its 500,000 poses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from tqdm import tqdm

from rainlab.baselines import siren, tha, tha_teacher
from rainlab.data.studio import body, face
from rainlab.data.studio.expression import POSE, expressions
from rainlab.method.checkpoint import write_tensors
from rainlab.training import optim

VERSION = 1  # raised when the same recipe gives another student
FACE_RATES = ((0, 1e-4), (0.2, 1e-4 / 3), (0.5, 1e-5), (0.8, 1e-5 / 3))  # from which share of the examples on
BODY_RATES = ((0, 1e-4), (2 / 15, 3e-5), (6 / 15, 1e-5), (13 / 15, 3e-6))
PHASES = ((0, (0.5, 0.25, 2.0, 0.25)), (4 / 15, (5.0, 2.5, 1.0, 1.0)), (8 / 15, (1.0, 1.0, 1.0, 10.0)))
"""Weights of flow, warped, direct and final picture (Table 1), and from which share of the examples on."""
MOVABLE = 20.0  # weight of what moves in a face
BATCH = 8
SAVED = 2000  # steps between two saved states, or a fifth of a shorter training
MOMENTUM = 0.95  # of Muon
RISE, FALL = 0.05, 0.6  # shares of a training with Muon in which its rates rise to their height, and fall to nothing


@dataclass(frozen=True)
class Strides:
    """How far each step of a training goes: as in the paper, or with Muon, which needs a fraction of the steps.

    rate: what the paper's learning rates are multiplied by (Adam, falling in steps; section 4.2).
    matrix_rate: where not 0, Muon (:mod:`rainlab.training.optim`) with this for matrices, ``rate`` times the paper's
        first for all else, both rising and falling along straight lines.
    """

    rate: float = 1.0
    matrix_rate: float = 0.0


PAPER = Strides()


@dataclass(frozen=True)
class Lessons:
    """n poses of one character; pictures as :func:`rainlab.baselines.tha.from_picture` makes them.

    The demo fits the direct picture to the teacher's final one where the paper has the teacher's own; the studio knows
    no other direct picture than the final one, the published teacher's lessons have its own, as in the paper.
    """

    pose: Tensor  # (n, 45)
    character: Tensor  # at rest, (4, h, w)
    faced: Tensor  # with the face of a pose, before it turns, (n, 4, h, w)
    final: Tensor
    direct: Tensor
    grid: Tensor  # (n, 2, h, w): where a pixel of ``final`` is taken from in ``faced``, in half pictures
    known: Tensor  # (n, 1, h, w), 1 where ``grid`` is known

    def __len__(self) -> int:
        return len(self.pose)


class Turns(NamedTuple):
    """n faces before they turn and after; ``grid`` and ``known`` as in :class:`Lessons`."""

    faced: Tensor
    final: Tensor
    grid: Tensor
    known: Tensor


def studio_turns(seeds: Tensor, poses: Tensor, size: int = 128, together: int = 32) -> Turns:
    """Of the studio's faces, their seeds ``(n,)``, in poses ``(n, 45)``.

    Known is the flow of what can be seen in both pictures; the rest only the direct picture can show.
    """
    poses, parts = poses.double(), []
    still = poses.clone()
    still[:, tha_teacher.TURN] = 0
    for some, turned, faced in zip(*(x.split(together) for x in (seeds, poses, still)), strict=True):
        clips = face.render(some, pose=torch.stack([turned, faced], 1), size=(size, size))
        pictures = torch.cat([clips.frames, clips.mask[..., None].byte() * 255], -1).numpy()
        final, before = (torch.stack([tha.from_picture(x) for x in pictures[:, i]]) for i in (0, 1))
        known = (clips.visible[:, 0] & clips.mask[:, 0])[:, None].float()
        parts.append((before, final, clips.flow[:, 0].permute(0, 3, 1, 2) * 2 / size, known))
    return Turns(*(torch.cat(column) for column in zip(*parts, strict=True)))


def studio_lessons(seed: Tensor, poses: Tensor, size: int = 128) -> Lessons:
    """Exact lessons of one of the studio's faces (its seed ``(1,)``) in poses ``(n, 45)``; see :func:`studio_turns`."""
    faced, final, grid, known = studio_turns(seed.repeat(len(poses)), poses, size)
    rest = face.render(seed, pose=torch.zeros(1, 1, len(POSE), dtype=torch.float64), size=(size, size))
    picture = np.concatenate([rest.frames[0, 0].numpy(), rest.mask[0, 0, ..., None].numpy() * np.uint8(255)], -1)
    return Lessons(poses.float(), tha.from_picture(picture), faced, final, final, grid, known)


@torch.no_grad()
def teacher_lessons(teacher: tha_teacher.Teacher, character: Tensor, poses: Tensor) -> Lessons:
    """What the published teacher says of a character ``(4, 512, 512)`` in poses ``(n, 45)``; 7 MB a pose, in memory.

    Lessons are kept there with half the digits (float16: pictures are off by less than half a grey level).
    """
    poses, parts = poses.to(character), []
    for pose in tqdm(poses, "lessons", leave=False):
        posed = teacher(character[None], pose[None])
        said = posed.upscaled.picture, posed.upscaled.direct, posed.upscaled.grid, posed.with_face
        parts.append([x.half().cpu() for x in said])
    final, direct, grid, faced = (torch.cat(column) for column in zip(*parts, strict=True))
    known = torch.ones(1, 1, 1, 1).expand(len(poses), 1, *grid.shape[2:])
    return Lessons(poses.cpu(), character.cpu(), faced, final, direct, grid, known)


def natural_poses(count: int, seed: int = 0, split: str = "train") -> Tensor:
    """Poses ``(n, 45)`` of the studio's motions at moments far apart; other seeds, other motions."""
    seeds = body.split_seeds(split, count, 100_000 * (1 + seed))
    return torch.cat([expressions(part, torch.tensor([1.7], dtype=torch.float64))[:, 0] for part in seeds.split(1000)])


def movable(lessons: Lessons, corner: tuple[int, int], size: int, least: float = 0.02) -> Tensor:
    """Which of a face's pixels ``(size, size)`` change from pose to pose by more than ``least``: 1 or 0."""
    faces = _cut(lessons.faced, corner, size)
    return ((faces.amax(0) - faces.amin(0)).amax(0) > least).float()


def face_loss(made: Tensor, wanted: Tensor, movable: Tensor) -> Tensor:
    """Mean absolute error of faces ``(…, 4, s, s)``, and MOVABLE times that of what moves in them."""
    error = (made - wanted).abs()
    return error.mean() + MOVABLE * (error * movable).mean()


def body_loss(drawn: siren.Drawn, lessons: Lessons, number: int, weights: Sequence[float]) -> Tensor:
    """Weighted mean absolute errors of flow, warped, direct and final picture.

    Means are over all pixels, so that one weighs what it does in the paper; those whose flow is not known add nothing.
    """
    names, like = ("faced", "grid", "known", "direct", "final"), drawn.grid
    faced, grid, known, direct, final = (getattr(lessons, name)[number].to(like) for name in names)
    wanted = tha_teacher.move(faced[None], grid[None])[0]
    known = known.flatten(1)
    errors = (
        ((drawn.grid - grid.flatten(1)).abs() * known).mean(),
        ((drawn.warped - wanted.flatten(1)).abs() * known).mean(),
        (drawn.colour - direct.flatten(1)).abs().mean(),
        (drawn.blended - final.flatten(1)).abs().mean(),
    )
    return sum(weight * error for weight, error in zip(weights, errors, strict=True))


def value_at(steps: Sequence[tuple[float, object]], share: float):
    """The last of ``(from which share on, value)`` that has begun."""
    return [value for begin, value in steps if begin <= share + 1e-12][-1]


def train_face(
    network: siren.FaceMorpher,
    lessons: Lessons,
    corner: tuple[int, int],
    examples: int,
    state: Path | None = None,
    strides: Strides = PAPER,
) -> list[float]:
    """Train a face on lessons' faces, cut out at ``corner``; returns the loss of each step. Options as for `_fit`."""
    faces, moves = _cut(lessons.faced, corner, network.size), movable(lessons, corner, network.size)

    def losses(numbers: Tensor, share: float) -> Iterator[Tensor]:
        made = network(lessons.pose[numbers].to(_of(network)))
        yield face_loss(made, faces[numbers].to(made), moves.to(made))

    return _fit(network, losses, FACE_RATES, lessons, examples, "face", state, strides)


def train_body(
    network: siren.BodyMorpher,
    lessons: Lessons,
    examples: int,
    state: Path | None = None,
    phases: Sequence[tuple[float, Sequence[float]]] = PHASES,
    strides: Strides = PAPER,
) -> list[float]:
    """Train a body on lessons; returns the loss of each step. Options as for `_fit`; ``phases``: like PHASES."""

    def losses(numbers: Tensor, share: float) -> Iterator[Tensor]:
        for number in numbers.tolist():
            drawn = network(*(x[number].to(_of(network)) for x in (lessons.faced, lessons.pose)))
            yield body_loss(drawn, lessons, number, value_at(phases, share)) / len(numbers)

    return _fit(network, losses, BODY_RATES, lessons, examples, "body", state, strides)


def train_whole(
    network: siren.FaceMorpher, lessons: Lessons, examples: int, state: Path | None = None, strides: Strides = PAPER
) -> list[float]:
    """Train one network of sine layers to paint all of the final picture (section 5.2).

    It has a face to learn and a body: what moves in the face weighs as for the face, rates are the body's.
    """
    moves = movable(lessons, (0, 0), network.size)

    def losses(numbers: Tensor, share: float) -> Iterator[Tensor]:
        for number in numbers.tolist():
            made = network(lessons.pose[number].to(_of(network)))
            yield face_loss(made, lessons.final[number].to(made), moves.to(made)) / len(numbers)

    return _fit(network, losses, BODY_RATES, lessons, examples, "whole", state, strides)


def _fit(
    network: nn.Module, losses, rates, lessons: Lessons, examples: int, what: str, state: Path | None, strides: Strides
) -> list[float]:
    """Train on BATCH lessons a step, drawn by step so that a training goes on from ``state`` as if never interrupted.

    ``losses``: numbers of lessons and the share of the training behind it -> parts of their loss, which are summed, one
    in memory at a time. ``rates``: the paper's. ValueError if ``state`` is of another training.
    """
    network.train().requires_grad_(True)
    parameters = dict(network.named_parameters())
    optimizer, curve = _optimizer(parameters, strides, rates[0][1]), []
    steps, of = -(-examples // BATCH), f"{what}, {examples} examples, {strides}, {_fingerprint(lessons)}"
    if state and state.exists():
        curve = _restore(parameters, optimizer, state, of)
    for step in tqdm(range(len(curve), steps), what, steps, initial=len(curve), leave=False):
        numbers = torch.from_numpy(np.random.default_rng([7, step]).integers(len(lessons), size=BATCH))
        for group in optimizer.param_groups:
            group["lr"] = group.get("share", 1.0) * _rate(strides, rates, step, steps)
        optimizer.zero_grad()
        total = 0.0
        for value in losses(numbers, step / steps):
            value.backward()
            total += value.item()
        optimizer.step()
        curve.append(total)
        if state and ((step + 1) % min(SAVED, max(1, steps // 5)) == 0 or step + 1 == steps):
            _save(parameters, optimizer, curve, state, of)
    network.eval().requires_grad_(False)
    return curve


def _optimizer(parameters: dict[str, Tensor], strides: Strides, rate: float) -> torch.optim.Optimizer:
    if not strides.matrix_rate:
        return torch.optim.Adam(parameters.values(), rate)
    return optim.muon(parameters, strides.rate * rate, strides.matrix_rate, MOMENTUM, decay=0.0)


def _rate(strides: Strides, rates: Sequence[tuple[float, float]], step: int, steps: int) -> float:
    """Learning rate of a step; with Muon that of what is no matrix."""
    if not strides.matrix_rate:
        return strides.rate * value_at(rates, step / steps)
    return strides.rate * rates[0][1] * min((step + 1) / steps / RISE, 1.0, (1 - step / steps) / FALL)


def _of(network: nn.Module) -> Tensor:
    """One of a network's numbers: their kind and place."""
    return next(network.parameters())


def _fingerprint(lessons: Lessons) -> str:
    """Tells lessons apart."""
    told = (lessons.pose, lessons.character)
    return hashlib.sha256(b"".join(x.cpu().numpy().tobytes() for x in told)).hexdigest()[:16]


def _save(
    parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, curve: list[float], path: Path, of: str
) -> None:
    tensors = {f"parameter/{name}": tensor for name, tensor in parameters.items()}
    for name, tensor in parameters.items():
        tensors |= {f"{key}/{name}": torch.as_tensor(value) for key, value in optimizer.state[tensor].items()}
    write_tensors(path, tensors, {"curve": json.dumps(curve), "of": of})


def _restore(parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, path: Path, of: str) -> list[float]:
    with safe_open(path, "pt") as file, torch.no_grad():
        if (got := file.metadata().get("of")) != of:
            raise ValueError(
                f"{path.name}: got a state of {got}, expected one of {of}; give another file, or delete it"
            )
        for name, tensor in parameters.items():
            tensor.copy_(file.get_tensor(f"parameter/{name}"))
            keys = [key for key in file.keys() if key.endswith(f"/{name}") and not key.startswith("parameter/")]  # noqa: SIM118
            slots = {key.partition("/")[0]: file.get_tensor(key) for key in keys}
            optimizer.state[tensor] = {slot: x if slot == "step" else x.to(tensor.device) for slot, x in slots.items()}
        return json.loads(file.metadata()["curve"])


def _cut(pictures: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    top, left = corner
    return pictures[..., top : top + size, left : left + size]
