"""How far the eyes and the mouth of a drawn face are open, seen by a small network that learned it on such faces.

What a face model should follow (section 5.2) has to be read off the pictures that it makes, which come without
landmarks. `python -m rainlab.measure.openings` trains the network, some minutes on two cores, measures its own error on
characters that it never saw, and ships it; it is good for the studio's faces and for nothing else.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rainlab import runs
from rainlab.data.landmarks import LIDS, openings
from rainlab.data.studio import body, face
from rainlab.measure import features, metrics
from rainlab.method.checkpoint import write_tensors
from rainlab.training import weights

VERSION = 1
PROTOCOL = "face-openings-1"
SIZE = (64, 64)
NAMES = tuple(LIDS)
CONFIG = {"characters": 4000, "frames": 4, "apart": 2.5, "steps": 2400, "batch": 64, "learning_rate": 2e-3, "seed": 0,
          "tests": 256, "studio": body.VERSION, "face": face.VERSION}  # fmt: skip


class Regressor(nn.Module):
    """Pictures ``(n, 3, 64, 64)`` in [0, 1] -> openings ``(n, 3)`` in per cent of the picture's height."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 96)):
        super().__init__()
        blocks, before = [], 3
        for width in widths:
            blocks += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            blocks += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.maps = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Linear(before * 16, 128), nn.SiLU(), nn.Linear(128, len(NAMES)))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.maps(pictures * 2 - 1).flatten(1)) * 5


def _pictures(split: str, count: int, config: dict) -> tuple[Tensor, Tensor]:
    """Frames ``(n, 3, 64, 64)`` uint8 of so many characters at moments far apart, and their openings ``(n, 3)``."""
    frames, truth, seeds = [], [], body.split_seeds(split, count)
    for some in tqdm(seeds.split(50), f"faces, {split}", leave=False):
        clips = face.render(some, some, config["frames"], SIZE, 1 / config["apart"])
        frames.append(clips.frames.flatten(0, 1).permute(0, 3, 1, 2))
        truth.append(100 * openings(clips.landmarks.flatten(0, 1).numpy()))
    return torch.cat(frames), torch.from_numpy(np.concatenate(truth)).float()


def _softened(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Half of the pictures a little blurred, as a model's are."""
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    shape = len(pictures), 1, 1, 1
    share = torch.rand(shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.5)
    return pictures + share * (soft - pictures)


def train(config: dict = CONFIG) -> tuple[Regressor, list[float]]:
    """The network, and the loss of each step."""
    torch.manual_seed(config["seed"])
    draw, net = torch.Generator().manual_seed(config["seed"]), Regressor()
    pictures, truth = _pictures("train", config["characters"], config)
    optimizer = torch.optim.AdamW(net.parameters(), config["learning_rate"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config["learning_rate"], config["steps"])

    def value() -> Tensor:
        rows = torch.randint(len(pictures), (config["batch"],), generator=draw)
        return F.mse_loss(net(_softened(pictures[rows].float() / 255, draw)), truth[rows])

    return features.fit(net, optimizer, schedule, config["steps"], value, "openings")


def trained(record: bool = False, config: dict = CONFIG) -> runs.Run:
    """The run that trained the network; with ``record`` it is made unless it is there.

    Metrics, label ``part`` (NAMES), on test characters: ``opening_error``, mean distance from the truth in per cent of
    the picture's height; ``opening_spread``, what always saying the mean would err by; ``opening_correlation``.
    """

    def make(run: runs.Run) -> None:
        net, curve = train(config)
        write_tensors(run.path / weights.NAME, net.state_dict())
        features.record_curve(run, curve)
        pictures, truth = _pictures("test", config["tests"], config)
        said, truth = _said(net, pictures), truth.numpy()
        for part, ours, theirs in zip(NAMES, said.T, truth.T, strict=True):
            by_character = np.abs(ours - theirs).reshape(-1, config["frames"]).mean(1)
            run.record("opening_error", *metrics.bootstrap(by_character), PROTOCOL, part=part)
            run.record(
                "opening_spread", np.abs(theirs - theirs.mean()).mean(), n=config["tests"], protocol=PROTOCOL, part=part
            )
            correlation = np.corrcoef(ours, theirs)[0, 1]
            run.record("opening_correlation", correlation, n=config["tests"], protocol=PROTOCOL, part=part)

    return runs.made(make, record, None, "openings", config, VERSION)


@torch.no_grad()
def _said(net: Regressor, pictures: Tensor) -> np.ndarray:
    return torch.cat([net(some.float() / 255) for some in pictures.split(256)]).double().numpy()


@cache
def load() -> Regressor:
    """The shipped network. Raises FileNotFoundError if it is not there."""
    net = Regressor()
    net.load_state_dict(weights.weights_of(runs.run_id("openings", CONFIG, VERSION)))
    return net.eval().requires_grad_(False)


def seen(videos: np.ndarray) -> np.ndarray:
    """Openings of uint8 videos of faces ``(b, f, h, w, 3)``, per cent of the picture's height: ``(b, f, 3)`` by NAMES.

    ValueError for pictures that can't be brought to 64×64 by a whole factor.
    """
    small = metrics.smaller(videos, SIZE).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        return torch.stack([load()(clip) for clip in small]).double().numpy()


def main() -> None:
    """Train, publish and ship the network."""
    made = trained(record=True)
    for row in made.metrics():
        if row["metric"] != "loss":
            print(f"{row['metric']:20} {row['part']:10} {row['value']:.3f}")
    print(weights.ship(made.id).name, runs.publish(made).name)


if __name__ == "__main__":
    main()
