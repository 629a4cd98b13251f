"""Talking Head Anime 4's student networks: images that are functions of a place and a pose, asked pixel by pixel.

The face is one network of sine layers (SIREN, Sitzmann et al., arXiv 2006.09661) that says what colour is there. The
body is drawn coarse to fine by another, which says of every place from where in the character's picture it is taken,
which colour else it has, and how much of that.

Any pixels can be drawn alone, at the cost of their number. Three things make it fast and change nothing: what is the
same all over a picture (the pose) is multiplied once and not once a pixel; what is linear is done before coarser
features are interpolated, at a quarter of the pixels; and pixels go through the layers in groups small enough to stay
in a processor's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.data.studio.expression import POSE
from rainlab.method.unet import pointwise

SIZE = 512  # of published pictures,
FACE = 128  # and of the face's in them
MORPHS = 39  # how many numbers of the pose the face depends on
OMEGA = 30.0  # of sine layers
Region = tuple[int, int, int, int]  # rows and columns: top, left, bottom, right, ends excluded
WIDTHS = ((360, 360, 180), (180, 180, 90), (90, 90, 90))  # of the body's layers
TOGETHER = 4096  # pixels that go through the layers of a level together


class Sine(nn.Module):
    """sin(30 · (W x + b)); ``linear`` is a 1×1 convolution, as in published files.

    First values as in SIREN (section 3.2 there): what comes out of every layer is spread like what went in, and pixels
    that are neighbours begin alike. ``first``: the layer that sees places and pose and nothing else.
    """

    def __init__(self, inputs: int, outputs: int, first: bool = False):
        super().__init__()
        self.linear = nn.Conv2d(inputs, outputs, 1)
        bound = 1 / inputs if first else (6 / inputs) ** 0.5 / OMEGA
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(n, c)`` of n pixels."""
        return F.linear(x, self.linear.weight.flatten(1), self.linear.bias).mul_(OMEGA).sin_()

    def same(self, pose: Tensor) -> Tensor:
        """What the pose, the last of the inputs, and the bias add at every pixel: ``(c,)``."""
        weight = self.linear.weight.flatten(1)
        return self.linear.bias + weight[:, -len(pose) :] @ pose

    def begin(self, before: Tensor | None, pixels: Pixels, level: int, pose: Tensor, part: slice) -> Tensor:
        """Features of a first layer, whose inputs are coarser features, a place, and the pose.

        Coarser features come multiplied already (:meth:`coarse`): what is linear may come before the interpolation, at
        a quarter of the pixels.
        """
        weight = self.linear.weight.flatten(1)
        by_place = weight[:, -2 - len(pose) : -len(pose)]
        told = torch.addmm(self.same(pose), pixels.places[level][part], by_place.T)
        if before is not None:
            for corner, share in zip(pixels.corners[level][:, part], pixels.shares[level][:, part], strict=True):
                told.addcmul_(before[corner], share[:, None])
        return told.mul_(OMEGA).sin_()

    def coarse(self, x: Tensor, pose: Tensor) -> Tensor:
        """Coarser features ``(m, c)`` times their weights."""
        return F.linear(x, self.linear.weight.flatten(1)[:, : -2 - len(pose)])


def _last(inputs: int, outputs: int) -> nn.Conv2d:
    """The layer behind the sines, as in SIREN: all near 0, so that a body begins as the picture that it moves."""
    layer, bound = nn.Conv2d(inputs, outputs, 1), (6 / inputs) ** 0.5 / OMEGA
    nn.init.uniform_(layer.weight, -bound, bound)
    nn.init.zeros_(layer.bias)
    return layer


class FaceMorpher(nn.Module):
    """The face, RGBA ``(4, size, size)`` from the first 39 ``numbers`` of a pose ``(45,)``, or several of several."""

    def __init__(self, width: int = 128, layers: int = 8, size: int = FACE, numbers: int = MORPHS):
        super().__init__()
        self.size, self.numbers = size, numbers
        inputs = [2 + numbers] + [width] * (layers - 1)
        self.siren = nn.Module()
        self.siren.sine_layers = nn.ModuleList(Sine(count, width, i == 0) for i, count in enumerate(inputs))
        self.siren.last_linear = _last(width, 4)

    def forward(self, pose: Tensor) -> Tensor:
        (first, *others), poses = self.siren.sine_layers, pose.reshape(-1, pose.shape[-1])[:, : self.numbers]
        places = Pixels.of((0, 0, self.size, self.size), self.size, levels=1).to(pose.device).places[0]
        weight, made = first.linear.weight.flatten(1), []
        by_pose = F.linear(poses, weight[:, 2:], first.linear.bias)[:, None]
        for part in parts(self.size**2):
            x = (by_pose + F.linear(places[part], weight[:, :2])).mul_(OMEGA).sin_().flatten(0, 1)
            for layer in others:
                x = layer(x)
            made.append(pointwise(self.siren.last_linear, x).unflatten(0, (len(poses), -1)))
        return torch.cat(made, 1).transpose(1, 2).reshape(*pose.shape[:-1], 4, self.size, self.size)


class Drawn(NamedTuple):
    """What a body network makes of n pixels."""

    blended: Tensor  # RGBA (4, n): the picture
    alpha: Tensor  # (1, n): the share of ``colour``; not bounded, neither is the picture
    colour: Tensor  # RGBA (4, n)
    warped: Tensor  # RGBA (4, n): the character's picture, as it is moved
    grid: Tensor  # (2, n): by how much, x and y, in half pictures


class BodyMorpher(nn.Module):
    """Face and body, each level twice as large as the one before, from the picture of a character with its face.

    widths: of each level's layers; three levels of a picture of 512 pixels are 128, 256 and 512.
    """

    def __init__(self, widths: Sequence[Sequence[int]] = WIDTHS, size: int = SIZE):
        super().__init__()
        self.size = size
        self.siren_layers, before = nn.ModuleList(), 0
        for level in widths:
            inputs = (before + 2 + len(POSE), *level[:-1])
            pairs = enumerate(zip(inputs, level, strict=True))
            self.siren_layers.append(nn.ModuleList(Sine(i, o, not before and n == 0) for n, (i, o) in pairs))
            before = level[-1]
        self.last_linear = _last(before, 7)

    def forward(self, picture: Tensor, pose: Tensor, pixels: Pixels | None = None) -> Drawn:
        """picture: RGBA ``(4, size, size)``; pose: ``(45,)``; pixels: those to draw, all of them if None."""
        pixels = (pixels or self.pixels((0, 0, self.size, self.size))).to(pose.device)
        x = None
        for level, layers in enumerate(self.siren_layers):
            before, made = None if x is None else layers[0].coarse(x, pose), []
            for part in parts(len(pixels.places[level])):
                here = layers[0].begin(before, pixels, level, pose, part)
                for layer in layers[1:]:
                    here = layer(here)
                made.append(here if level < len(self.siren_layers) - 1 else pointwise(self.last_linear, here))
            x = torch.cat(made)
        grid, alpha, colour = x.T.split((2, 1, 4))
        flow = (pixels.places[-1] + grid.T)[None, None]
        warped = F.grid_sample(picture[None], flow, "bilinear", "border", align_corners=False)[0, :, 0]
        return Drawn((1 - alpha) * warped + alpha * colour, alpha, colour, warped, grid)

    def pixels(self, which: Region | np.ndarray | Tensor) -> Pixels:
        """Pixels of its pictures; as for :meth:`Pixels.of`."""
        return Pixels.of(which, self.size, len(self.siren_layers))


def parts(count: int) -> Iterator[slice]:
    """Pixels in groups whose features stay in a processor's cache from layer to layer."""
    return (slice(i, i + TOGETHER) for i in range(0, count, TOGETHER))


@dataclass(frozen=True)
class Pixels:
    """Some pixels of a picture, and of each coarser level those that they lie between.

    ``places`` has for each level, coarse to fine, x and y of the middles ``(n, 2)``, in half pictures from the centre;
    ``corners`` ``(4, n)`` says between which pixels of the coarser level each lies, ``shares`` ``(4, n)`` how near to
    each (empty for the coarsest). ``rows`` and ``columns``: of the pixels themselves.
    """

    places: tuple[Tensor, ...]
    corners: tuple[Tensor, ...]
    shares: tuple[Tensor, ...]
    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device | str) -> Pixels:
        """The same on a device; ``rows`` and ``columns`` stay, pictures are put together on the processor."""
        if self.places[0].device == torch.device(device):
            return self
        there = (tuple(x.to(device) for x in each) for each in (self.places, self.corners, self.shares))
        return Pixels(*there, self.rows, self.columns)

    @classmethod
    def of(cls, which: Region | np.ndarray | Tensor, size: int = SIZE, levels: int = 3) -> Pixels:
        """A region, or those where a bool ``(size, size)`` is true. ValueError for none, or a region outside."""
        if isinstance(which, tuple):
            return _of_region(which, size, levels)
        mask = torch.as_tensor(which)
        if mask.shape != (size, size) or mask.dtype != torch.bool or not mask.any():
            got = f"{mask.dtype} {tuple(mask.shape)} with {int((mask != 0).sum())} pixels"
            raise ValueError(f"pixels: got {got}, expected bool ({size}, {size}), one of them at least true")
        return _between(mask, levels)


@lru_cache(maxsize=8)
def _of_region(region: Region, size: int, levels: int) -> Pixels:
    top, left, bottom, right = region
    if not (0 <= top < bottom <= size and 0 <= left < right <= size):
        raise ValueError(f"region: got {region}, expected 0 <= top < bottom <= {size}, left and right likewise")
    with torch.inference_mode(False):  # kept: those who train may use them after those who only draw
        mask = torch.zeros(size, size, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return _between(mask, levels)


def _between(mask: Tensor, levels: int) -> Pixels:
    """The pixels of a mask and, level by level, those of the coarser picture that they lie between."""
    places, corners, shares = [], [], []
    finest = mask.nonzero().T
    for level in range(levels):
        size = len(mask)
        rows, columns = mask.nonzero().T
        places.append(torch.stack([(2 * columns + 1) / size - 1, (2 * rows + 1) / size - 1], 1))
        if level == levels - 1:
            corners.append(torch.empty(4, 0, dtype=torch.long))
            shares.append(torch.empty(4, 0))
            break
        half, near, far = size // 2, 0.75, 0.25  # a finer middle lies a quarter of a coarser pixel off the coarser one
        ways = []
        for at in (rows, columns):
            other = (torch.div(at, 2, rounding_mode="floor") + 2 * (at % 2) - 1).clamp(0, half - 1)
            ways.append(((torch.div(at, 2, rounding_mode="floor"), near), (other, far)))
        wanted = torch.zeros(half, half, dtype=torch.bool)
        four = [(y, x, a * b) for y, a in ways[0] for x, b in ways[1]]
        for y, x, _ in four:
            wanted[y, x] = True
        number = torch.full((half, half), -1).masked_scatter(wanted, torch.arange(int(wanted.sum())))
        corners.append(torch.stack([number[y, x] for y, x, _ in four]))
        shares.append(torch.stack([torch.full(y.shape, share) for y, _, share in four]))
        mask = wanted
    return Pixels(tuple(places[::-1]), tuple(corners[::-1]), tuple(shares[::-1]), *finest)
