"""Two designs of Talking Head Anime's body rotator on the studio's faces: its Tables 2 and 3 at small scale.

A rotator gets a face that does what the pose says but does not turn, and turns head and body. Talking Head Anime 3 has
an encoder and a decoder for it, the fourth a U-Net with attention (section 3.1). Both are trained on the same
characters for the same arithmetic and measured on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rainlab import runs
from rainlab.baselines import tha_distill
from rainlab.baselines.tha_distill import Turns
from rainlab.baselines.tha_teacher import TURN, Coder, Turned, UNet, move, turned
from rainlab.data.studio import body, face
from rainlab.files import write_json
from rainlab.measure import ablations, features, students
from rainlab.method.checkpoint import write_tensors
from rainlab.training import weights

VERSION = 1
PROTOCOL = "rotators-1"
DESIGNS = ("THA3", "Section 3.1")
SEEDS = (0, 1)
MEASURES = tuple(name for name in students.MEASURES if name != "psnr_face")


@dataclass(frozen=True)
class Recipe:
    """How large the rotators are, and how long they learn."""

    size: int = 64  # of the pictures
    characters: int = 2000  # of training, in one pose each
    tests: int = 128  # characters that training never sees
    steps: int = 1500  # of the design of section 3.1; the other takes as many as the same arithmetic pays for
    batch: int = 8
    learning_rate: float = 1e-3
    encoder: tuple[int, ...] = (16, 32, 64, 128)  # widths of THA3's
    width: int = 16  # of section 3.1's first level,
    factors: tuple[int, ...] = (1, 2, 4, 4)  # and of all


SMALL = Recipe()


class EncoderDecoder(nn.Module):
    """THA3's: features at full size, from them flow, direct picture and alpha."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.body, self.last = Coder(4, TURN.stop - TURN.start, widths), nn.Conv2d(widths[0], 7, 3, padding=1)

    def forward(self, picture: Tensor, pose: Tensor) -> Tensor:
        return self.last(self.body.features(picture, pose))


def build(design: str, recipe: Recipe) -> nn.Module:
    """An untrained rotator: ``(picture (n, 4, h, w), pose (n, 6)) -> 7 planes``, direct, flow, alpha."""
    if design not in DESIGNS:
        raise ValueError(f"design: got {design!r}, expected one of {', '.join(DESIGNS)}")
    return EncoderDecoder(recipe.encoder) if design == DESIGNS[0] else UNet(recipe.width, recipe.factors)


def turn(network: nn.Module, picture: Tensor, pose: Tensor) -> Turned:
    """Pictures ``(n, 4, h, w)`` turned as poses ``(n, 45)`` say."""
    return turned(network(picture, pose[:, TURN]), picture)


def steps_of(design: str, recipe: Recipe) -> int:
    """Steps whose arithmetic is that of the design of section 3.1 in ``recipe.steps``."""
    return round(recipe.steps * arithmetic(DESIGNS[1], recipe) / arithmetic(design, recipe))


@lru_cache(maxsize=8)
def arithmetic(design: str, recipe: Recipe) -> int:
    """FLOPs of one picture."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        picture, pose = torch.zeros(1, 4, recipe.size, recipe.size), torch.zeros(1, TURN.stop - TURN.start)
        build(design, recipe).eval()(picture, pose)
    return counter.get_total_flops()


def loss_of(made: Turned, given: Turns) -> Tensor:
    """Mean absolute errors of final, direct and warped picture and of the flow, the last two where that is known."""
    share = given.known.mean().clamp(min=1e-6)
    warped = move(given.faced, given.grid)
    errors = [(made.picture - given.final).abs().mean(), (made.direct - given.final).abs().mean()]
    errors += [((made.warped - warped).abs() * given.known).mean() / share]
    errors += [((made.grid - given.grid).abs() * given.known).mean() / share]
    return torch.stack(errors).sum()


def rotator(design: str, seed: int = 0, recipe: Recipe = SMALL, record: bool = False) -> runs.Run:
    """The run that trained a rotator and measured it; its weights are in its folder.

    Metrics over test characters, label ``method`` ("rotator", or "copy": not turned): MEASURES, as those of
    :mod:`rainlab.measure.students`, each character's values in ``values.json``; ``steps``, ``parameters``, ``flops`` of
    a picture; ``loss``: means over 200 stretches. ``record``: as in :func:`rainlab.measure.evaluate.measure`.
    """
    config = _config(design, seed, recipe)

    def make(run: runs.Run) -> None:
        network, curve = train(design, seed, recipe)
        write_tensors(run.path / weights.NAME, network.state_dict())
        students.record_curve(run, curve)
        run.record("steps", len(curve))
        run.record("parameters", sum(p.numel() for p in network.parameters()))
        run.record("flops", arithmetic(design, recipe))
        pose, given = pictures("test", recipe.tests, recipe)
        made = {"rotator": turn_all(network, given.faced, pose), "copy": given.faced}
        drawn = {method: students.shown(x) for method, x in made.items()}
        write_json(run.path / runs.VALUES, students.record_each(run, drawn, given.final, PROTOCOL))

    return runs.made(make, record, None, "rotator", config, VERSION)


def rotator_id(design: str, seed: int = 0, recipe: Recipe = SMALL) -> str:
    """The id of a run of :func:`rotator`, known before it is made."""
    return runs.run_id("rotator", _config(design, seed, recipe), VERSION)


def _config(design: str, seed: int, recipe: Recipe) -> dict:
    build(design, recipe)  # the name is known
    versions = {"distillation": tha_distill.VERSION, "studio": body.VERSION, "face": face.VERSION}
    return {"design": design, "seed": seed, "recipe": asdict(recipe)} | versions


def train(design: str, seed: int, recipe: Recipe) -> tuple[nn.Module, list[float]]:
    """The network, and the loss of each step."""
    pose, given = pictures("train", recipe.characters, recipe)
    torch.manual_seed(seed)
    draw, network, steps = torch.Generator().manual_seed(seed), build(design, recipe), steps_of(design, recipe)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps)

    def value() -> Tensor:
        rows = torch.randint(len(pose), (recipe.batch,), generator=draw)
        some = Turns(*(x[rows] for x in given))
        return loss_of(turn(network, some.faced, pose[rows]), some)

    return features.fit(network, optimizer, schedule, steps, value, f"{design}, seed {seed}", longest=1.0)


@lru_cache(maxsize=2)
def pictures(split: str, count: int, recipe: Recipe) -> tuple[Tensor, Turns]:
    """(Poses ``(n, 45)``, pictures) of n characters of a split, each in a pose of its own."""
    poses = tha_distill.natural_poses(count, 1000, split)
    return poses.float(), tha_distill.studio_turns(body.split_seeds(split, count), poses, recipe.size)


def load(run: runs.Run, recipe: Recipe) -> nn.Module:
    """The network of a run of :func:`rotator`. FileNotFoundError if its weights are not there."""
    network = build(run.config["design"], recipe).eval().requires_grad_(False)
    network.load_state_dict(weights.weights_of(run.id))
    return network


@torch.inference_mode()
def turn_all(network: nn.Module, faced: Tensor, pose: Tensor) -> Tensor:
    """All of them, some at a time."""
    return torch.cat([turn(network, *some).picture for some in zip(faced.split(16), pose.split(16), strict=True)])


def compare(seeds: Sequence[int] = SEEDS, recipe: Recipe = SMALL, record: bool = False) -> runs.Run:
    """The run that compares the designs (Table 2); ``record`` as in :func:`rotator`.

    Metrics MEASURES, label ``method`` (of DESIGNS, or "copy"): mean over seeds and characters with the 95 % interval of
    both drawn anew; ``<metric>_change``: section 3.1 against THA3, seed with seed and character with character.
    """
    found = {(design, seed): rotator(design, seed, recipe, record) for design in DESIGNS for seed in seeds}

    def make(run: runs.Run) -> None:
        each = {which: one.values() for which, one in found.items()}
        for name in MEASURES:
            of = {design: np.array([each[design, seed]["rotator"][name] for seed in seeds]) for design in DESIGNS}
            of["copy"] = np.array([each[DESIGNS[0], seeds[0]]["copy"][name]])
            for method, table in of.items():
                run.record(name, *ablations.over_seeds(table), PROTOCOL, method=method)
            change = of[DESIGNS[1]] - of[DESIGNS[0]]
            run.record(f"{name}_change", *ablations.over_seeds(change), PROTOCOL, method=DESIGNS[1])

    inputs = {f"{design}, seed {seed}": run.id for (design, seed), run in found.items()}
    return runs.made(make, record, None, "rotators", {"seeds": list(seeds)}, VERSION, inputs)
