"""Stand-ins for networks trained on photographs: two small ones trained on the studio, under names of their own.

- ID-studio: cosine between what :class:`Eye` says of two frames, which learned to tell characters apart;
- LPIPS-studio: distance of its maps of two frames, as LPIPS takes VGG's (Zhang et al., arXiv 1801.03924), unweighted;
- FVD-studio: Fréchet distance of what :class:`Walk` says of windows of 16 frames: it learned how points move in them.

Frames are brought to 64×48 first. Only characters of the training split were seen. `python -m rainlab.measure.features`
trains them, some ten minutes on two cores, and ships them with the package; they are good for the studio and for
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rainlab import runs
from rainlab.data.studio import body
from rainlab.measure import metrics
from rainlab.measure.degrade import DEGRADATIONS, degraded
from rainlab.method.checkpoint import write_tensors
from rainlab.training import weights

Trained = TypeVar("Trained", bound=nn.Module)
VERSION = 1
PROTOCOL = "studio-features-1"
SIZE = (64, 48)
WINDOW = 16
CONFIG = {"characters": 900, "steps": 1500, "learning_rate": 1e-3, "clips": 8, "pairs": 32, "shake": 3.0, "seed": 0,
          "studio": body.VERSION}  # fmt: skip


class Eye(nn.Module):
    """A frame ``(n, 3, 64, 48)`` in [0, 1]: its maps, a vector, where its points are, and whom it shows."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 72, 96), length: int = 128):
        super().__init__()
        self.blocks, before = nn.ModuleList(), 3
        for width in widths:
            smaller = nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()
            inside = nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()
            self.blocks.append(nn.Sequential(*smaller, *inside))
            before = width
        self.vector = nn.Linear(before * 4 * 3, length)
        self.points, self.who = nn.Linear(length, 36), nn.Linear(length, 64)

    def maps(self, frames: Tensor) -> list[Tensor]:
        """At half, a quarter, an eighth and a sixteenth of the size."""
        found, x = [], frames * 2 - 1
        for block in self.blocks:
            found.append(x := block(x))
        return found

    def forward(self, frames: Tensor) -> Tensor:
        """``(n, length)``."""
        return self.vector(self.maps(frames)[-1].flatten(1))

    def identity(self, frames: Tensor) -> Tensor:
        """Unit vectors ``(n, 64)``, near each other for one character."""
        return F.normalize(self.who(F.silu(self(frames))), dim=-1)


class Walk(nn.Module):
    """Vectors of a window's frames ``(b, f, length)``: how each point moves from frame to frame."""

    def __init__(self, length: int = 128, width: int = 32):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(2 * length, 128), nn.SiLU(), nn.Linear(128, width))
        self.motion = nn.Linear(width, 36)

    def steps(self, vectors: Tensor) -> Tensor:
        """``(b, f - 1, width)``."""
        return self.step(torch.cat([vectors[:, :-1], vectors[:, 1:]], -1))

    def forward(self, vectors: Tensor) -> Tensor:
        """Mean and deviation over the window's steps, ``(b, 2 · width)``."""
        steps = self.steps(vectors)
        return torch.cat([steps.mean(1), steps.std(1)], 1)


class Features(nn.Module):
    """Both networks."""

    def __init__(self):
        super().__init__()
        self.eye, self.walk = Eye(), Walk()


# -- training --------------------------------------------------------------------------------------------------------


def loss(net: Features, clips: Tensor, points: Tensor, seen: Tensor, pairs: Tensor) -> Tensor:
    """Of windows ``(b, f, 3, 64, 48)`` with points ``(b, f, 18, 2)`` in pixels and whether they are seen, and of pairs
    of frames of one character ``(n, 2, 3, 64, 48)``: points, their motion, and who is who (InfoNCE)."""
    vectors = net.eye(clips.flatten(0, 1))
    where = net.eye.points(F.silu(vectors)).view(points.shape) * 16
    here = seen[..., None].float()
    place = (F.smooth_l1_loss(where, points - 32, reduction="none") * here).sum() / here.sum() / 2
    steps = net.walk.steps(vectors.view(*clips.shape[:2], -1))
    both = (seen[:, 1:] & seen[:, :-1])[..., None].float()
    moved = net.walk.motion(steps).view(*steps.shape[:2], 18, 2)
    motion = (F.smooth_l1_loss(moved, points.diff(dim=1), reduction="none") * both).sum() / both.sum() / 2
    one, other = net.eye.identity(pairs.flatten(0, 1)).view(len(pairs), 2, -1).unbind(1)
    alike, order = one @ other.T / 0.1, torch.arange(len(pairs))
    who = (F.cross_entropy(alike, order) + F.cross_entropy(alike.T, order)) / 2
    return place / 4 + motion + who


def shaken(frames: Tensor, points: Tensor, amount: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each frame of clips ``(b, f, 3, h, w)`` moved by up to so many pixels, half of the clips not, with its points."""
    b, f = frames.shape[:2]
    reach = amount * torch.rand(b, 1, 1, generator=draw) * (torch.rand(b, 1, 1, generator=draw) < 0.5)
    way = ((2 * torch.rand(b, f, 2, generator=draw) - 1) * reach).round().long()
    moved = frames.clone()
    for i in range(b):
        for j in range(f):
            if way[i, j].any():
                moved[i, j] = frames[i, j].roll(way[i, j].flip(0).tolist(), (1, 2))
    return moved, points + way[:, :, None]


def train(config: dict = CONFIG) -> tuple[Features, list[float]]:
    """The networks, and the loss of each step."""
    torch.manual_seed(config["seed"])
    draw, net = torch.Generator().manual_seed(config["seed"]), Features()
    seeds = body.split_seeds("train", 2 * config["characters"])
    who = seeds[: config["characters"]].repeat_interleave(2)
    films = body.render(who, seeds, WINDOW, SIZE)
    frames = films.frames.permute(0, 1, 4, 2, 3)
    points, seen = films.keypoints[..., :2], films.keypoints[..., 2] > 0.3
    optimizer = torch.optim.AdamW(net.parameters(), config["learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["steps"])

    def value() -> Tensor:
        rows = torch.randint(len(frames), (config["clips"],), generator=draw)
        clips, places = shaken(frames[rows].float() / 255, points[rows], config["shake"], draw)
        chosen = torch.randperm(config["characters"], generator=draw)[: config["pairs"]]
        when = torch.randint(WINDOW, (config["pairs"], 2), generator=draw)
        pairs = torch.stack([frames[2 * chosen + i, when[:, i]] for i in range(2)], 1).float() / 255
        return loss(net, clips, places, seen[rows], pairs)

    return fit(net, optimizer, schedule, config["steps"], value, "features")


def fit(
    net: Trained,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    steps: int,
    value: Callable[[], Tensor],
    what: str,
    longest: float = float("inf"),
) -> tuple[Trained, list[float]]:
    """A small network after so many steps on losses that ``value`` draws, ready for use, and the loss of each step.

    longest: gradients longer than that are shortened to it.
    """
    curve = []
    for _ in tqdm(range(steps), what, leave=False):
        drawn = value()
        optimizer.zero_grad()
        drawn.backward()
        nn.utils.clip_grad_norm_(net.parameters(), longest)
        optimizer.step()
        schedule.step()
        curve.append(drawn.item())
    return net.eval().requires_grad_(False), curve


def record_curve(run: runs.Run, curve: list[float], every: int = 50) -> None:
    """Means of a training's losses, metric ``loss``."""
    for i in range(0, len(curve), every):
        run.record("loss", float(np.mean(curve[i : i + every])), step=i + every)


def trained(record: bool = False) -> runs.Run:
    """The run that trained the networks; with ``record`` it is made unless it is there."""

    def make(run: runs.Run) -> None:
        net, curve = train()
        write_tensors(run.path / weights.NAME, net.state_dict())
        record_curve(run, curve)

    return runs.made(make, record, None, "features", CONFIG, VERSION)


@cache
def load() -> Features:
    """The shipped networks. Raises FileNotFoundError if they are not there."""
    net = Features()
    net.load_state_dict(weights.weights_of(runs.run_id("features", CONFIG, VERSION)))
    return net.eval().requires_grad_(False)


# -- measures --------------------------------------------------------------------------------------------------------


def fits(size: tuple[int, int]) -> bool:
    """Whether pictures of a size (h, w) can be brought to 64×48."""
    return not any(n % m for n, m in zip(size, SIZE, strict=True))


def _prepared(videos: np.ndarray) -> Tensor:
    """``(b, f, 3, 64, 48)`` in [0, 1]."""
    return metrics.smaller(videos, SIZE).permute(0, 1, 4, 2, 3)


@torch.no_grad()
def identity(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """ID-studio of uint8 videos ``(b, f, h, w, 3)``, frame with frame, mean over frames: ``(b,)`` in [-1, 1]."""
    one, other = (torch.stack([load().eye.identity(clip) for clip in _prepared(v)]) for v in (x, y))
    return (one * other).sum(-1).mean(1).double().numpy()


@torch.no_grad()
def perceptual(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """LPIPS-studio of uint8 videos ``(b, f, h, w, 3)``, mean over frames: ``(b,)``; 0 for equal ones."""

    def distance(a: Tensor, b: Tensor) -> float:
        pairs = zip(load().eye.maps(a), load().eye.maps(b), strict=True)
        unit = ((F.normalize(p, dim=1) - F.normalize(q, dim=1)).square().sum(1).mean() for p, q in pairs)
        return float(sum(unit))

    return np.array([distance(a, b) for a, b in zip(_prepared(x), _prepared(y), strict=True)])


@torch.no_grad()
def windows(videos: np.ndarray, stride: int = WINDOW) -> np.ndarray:
    """What FVD-studio compares, of windows that begin every ``stride`` frames: ``(n, 64)``.

    ValueError for clips shorter than a window.
    """
    if videos.shape[1] < WINDOW:
        raise ValueError(f"videos: got {videos.shape[1]} frames, expected at least {WINDOW}, a window")
    net, rows = load(), []
    for clip in _prepared(videos):
        vectors = net.eye(clip)
        starts = range(0, len(clip) - WINDOW + 1, stride)
        rows.append(net.walk(torch.stack([vectors[i : i + WINDOW] for i in starts])))
    return torch.cat(rows).double().numpy()


def fvd(x: np.ndarray, y: np.ndarray, stride: int = WINDOW) -> float:
    """FVD-studio of two sets of uint8 videos ``(b, f, h, w, 3)``."""
    return metrics.frechet(windows(x, stride), windows(y, stride))


def null(record: bool = False, counts: tuple[int, ...] = (64, 128, 256, 512, 1024), draws: int = 10) -> runs.Run:
    """The run that tells what FVD-studio is where it should be 0: truth against truth of other characters and motions.

    Two sets of windows, each of a new motion of 16 frames, 32 held-out characters a set. Metrics ``fvd_studio`` (mean
    over ``draws`` random subsets, with their 95 % range), labels ``windows`` and ``what``: "truth", or the first
    strength of a degradation of one of both sets, as a scale.
    """
    config = {"counts": counts, "draws": draws, "characters": 32, "studio": body.VERSION}
    inputs = {"features": runs.run_id("features", CONFIG, VERSION)}

    def make(run: runs.Run) -> None:
        sets = [_motions(first, 32, max(counts)) for first in (0, 32)]
        seen = {"truth": sets[0]} | {name: degraded(sets[0], name, strengths[0])
                                     for name, (_, strengths) in DEGRADATIONS.items()}  # fmt: skip
        looked = {name: windows(videos) for name, videos in seen.items()}
        against, rng = windows(sets[1]), np.random.default_rng(0)
        for count in counts:
            picks = [rng.permutation(len(against))[:count] for _ in range(draws)]
            for name, rows in looked.items():
                found = np.array([metrics.frechet(rows[pick], against[pick]) for pick in picks])
                low, high = np.quantile(found, [0.025, 0.975])
                run.record("fvd_studio", found.mean(), low, high, count, PROTOCOL, windows=count, what=name)

    return runs.made(make, record, None, "fvd_null", config, VERSION, inputs)


def _motions(first: int, characters: int, count: int) -> np.ndarray:
    """So many windows of held-out characters, each in a motion of its own."""
    who = body.split_seeds("test", characters, first).repeat_interleave(count // characters)
    how = body.split_seeds("test", count, 1000 + first * count)
    return body.render(who, how, WINDOW, SIZE).frames.numpy()


def main() -> None:
    """Train, publish and ship the networks, and record what FVD-studio is where it should be 0."""
    made = trained(record=True)
    print(weights.ship(made.id).name)
    print(runs.publish(made).name, runs.publish(null(record=True)).name)


if __name__ == "__main__":
    main()
