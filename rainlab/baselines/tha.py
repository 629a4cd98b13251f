"""Talking Head Anime 4 (Khungurn): one character as two small networks that are drawn pixel by pixel.

A *student* is an image itself: a function of a place and a pose. The face is one network of sine layers (SIREN,
Sitzmann et al., arXiv 2006.09661) that says what colour is there. The body is drawn coarse to fine by another, which
says of every place from where in the character's picture it is taken, which colour else it has, and how much of that.

Files of published students run as they are. Where the input is the same all over a picture (the pose), it is multiplied
once and not once a pixel, and any part of a picture can be drawn alone, at the cost of its area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.data.studio.expression import POSE
from rainlab.data.video import read_rgba
from rainlab.method import pretrained
from rainlab.method.unet import pointwise

SIZE = 512
FACE = 128  # pixels, height and width of the face's picture
CORNER = (80, 192)  # where it is pasted: row and column of its upper left pixel
MORPHS = 39  # how many numbers of the pose the face depends on
OMEGA = 30.0  # of sine layers
Region = tuple[int, int, int, int]  # rows and columns: top, left, bottom, right, ends excluded
WHOLE: Region = (0, 0, SIZE, SIZE)
FILES = {"character_image_file_name": "character.png", "face_morpher_file_name": "face_morpher.pt",
         "body_morpher_file_name": "body_morpher.pt"}  # fmt: skip
Places = tuple[Tensor, Tensor]  # x of the columns (w,) and y of the rows (h,)


class Sine(nn.Module):
    """sin(30 · (W x + b)); ``linear`` is a 1×1 convolution, as in published files.

    A place and a pose among the inputs, the last of them, are multiplied once a row, a column and a picture.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor | None, places: Places | None = None, pose: Tensor | None = None) -> Tensor:
        """Features ``(h, w, c)`` or None, and for a layer told them places and a pose ``(p,)``: ``(h, w, c)``."""
        if pose is None:
            return torch.sin(OMEGA * pointwise(self.linear, x))
        weight, bias = self.linear.weight.flatten(1), self.linear.bias
        known = weight[:, -2 - len(pose) :]
        same = bias + known[:, 2:] @ pose
        x_of, y_of = places
        told = x_of[:, None] * known[:, 0] + (y_of[:, None, None] * known[:, 1] + same)
        if x is not None:
            told = told + F.linear(x, weight[:, : -2 - len(pose)])
        return torch.sin(OMEGA * told)


class FaceMorpher(nn.Module):
    """The face, RGBA ``(4, 128, 128)`` from the first 39 numbers of a pose ``(45,)``."""

    def __init__(self, width: int = 128, layers: int = 8):
        super().__init__()
        inputs = [2 + MORPHS] + [width] * (layers - 1)
        self.siren = nn.Module()
        self.siren.sine_layers = nn.ModuleList(Sine(count, width) for count in inputs)
        self.siren.last_linear = nn.Conv2d(width, 4, 1)

    def forward(self, pose: Tensor) -> Tensor:
        first, *others = self.siren.sine_layers
        x = first(None, _places((0, 0, FACE, FACE), FACE, pose), pose[:MORPHS])
        for layer in others:
            x = layer(x)
        return pointwise(self.siren.last_linear, x).permute(2, 0, 1)


class Drawn(NamedTuple):
    """What a body network makes of a region of h by w pixels."""

    blended: Tensor  # RGBA (4, h, w): the picture
    alpha: Tensor  # (1, h, w): the share of ``colour``; not bounded, neither is the picture
    colour: Tensor  # RGBA (4, h, w)
    warped: Tensor  # RGBA (4, h, w): the character's picture, as it is moved
    grid: Tensor  # (2, h, w): by how much, x and y, in half pictures


class BodyMorpher(nn.Module):
    """Face and body, at 128, 256 and 512 pixels one after the other, from the picture of a character with its face."""

    def __init__(self, widths: Sequence[Sequence[int]] = ((360, 360, 180), (180, 180, 90), (90, 90, 90))):
        super().__init__()
        self.siren_layers, before = nn.ModuleList(), 0
        for level in widths:
            inputs = (before + 2 + len(POSE), *level[:-1])
            self.siren_layers.append(nn.ModuleList(Sine(i, o) for i, o in zip(inputs, level, strict=True)))
            before = level[-1]
        self.last_linear = nn.Conv2d(before, 7, 1)

    def forward(self, picture: Tensor, pose: Tensor, region: Region = WHOLE) -> Drawn:
        """picture: RGBA ``(4, 512, 512)``; pose: ``(45,)``; region: the pixels to draw. ValueError for an empty one."""
        regions = self._regions(region)
        x = None
        for number, (layers, here) in enumerate(zip(self.siren_layers, regions, strict=True)):
            if x is not None:
                x = _finer(x, regions[number - 1], here)
            size = SIZE >> (len(regions) - 1 - number)
            x = layers[0](x, _places(here, size, pose), pose)
            for layer in layers[1:]:
                x = layer(x)
        grid, alpha, colour = pointwise(self.last_linear, x).permute(2, 0, 1).split((2, 1, 4))
        across, down = _places(region, SIZE, pose)
        still = torch.stack(torch.meshgrid(across, down, indexing="xy"))
        flow = (still + grid).permute(1, 2, 0)[None]
        warped = F.grid_sample(picture[None], flow, "bilinear", "border", align_corners=False)[0]
        return Drawn((1 - alpha) * warped + alpha * colour, alpha, colour, warped, grid)

    def _regions(self, region: Region) -> list[Region]:
        """Which pixels each level has to know, coarse to fine: those that the next one looks at."""
        top, left, bottom, right = region
        if not (0 <= top < bottom <= SIZE and 0 <= left < right <= SIZE):
            raise ValueError(f"region: got {region}, expected 0 <= top < bottom <= {SIZE}, left and right likewise")
        found = [region]
        for level in range(1, len(self.siren_layers)):
            size = SIZE >> level
            top, left = (max(x // 2 - 1, 0) for x in (top, left))
            bottom, right = (min(-(-x // 2) + 1, size) for x in (bottom, right))
            found.append((top, left, bottom, right))
        return found[::-1]


def _places(region: Region, size: int, like: Tensor) -> Places:
    """The middles of a region's pixels in a picture of ``size`` pixels, in half pictures from the centre."""
    top, left, bottom, right = region
    pixels = (torch.arange(*ends, dtype=like.dtype, device=like.device) for ends in ((left, right), (top, bottom)))
    across, down = ((2 * i + 1) / size - 1 for i in pixels)
    return across, down


def _finer(x: Tensor, known: Region, wanted: Region) -> Tensor:
    """Features ``(h, w, c)`` of a region, bilinear at twice the size, cut to the region wanted there."""
    picture = x.permute(2, 0, 1)[None]  # its memory stays as it is: channels last
    twice = F.interpolate(picture, scale_factor=2, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    top, left = (w - 2 * k for w, k in zip(wanted[:2], known[:2], strict=True))
    return twice[top : top + wanted[2] - wanted[0], left : left + wanted[3] - wanted[1]]


# -- colours ---------------------------------------------------------------------------------------------------------


def from_picture(picture: np.ndarray) -> Tensor:
    """sRGB with alpha, uint8 ``(h, w, 4)`` -> as the networks have it, linear, times alpha, -1 to 1: ``(4, h, w)``."""
    x = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255
    colour, alpha = x[:3], x[3:]
    linear = torch.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return torch.cat([linear * alpha, alpha]) * 2 - 1


def to_picture(made: Tensor, straight: bool = True) -> np.ndarray:
    """The way back: float ``(4, h, w)`` -> sRGB with alpha, uint8 ``(h, w, 4)``.

    straight: colours as a PNG file has them; False: times alpha, as they are shown on black.
    """
    x = ((made + 1) / 2).clamp(0, 1)
    colour, alpha = x[:3], x[3:]
    if straight:
        colour = torch.where(alpha > 1e-5, colour / alpha.clamp(min=1e-5), 0.0).clamp(0, 1)
    srgb = torch.where(colour <= 0.0031308, colour * 12.92, 1.055 * colour ** (1 / 2.4) - 0.055)
    return (torch.cat([srgb, alpha]).permute(1, 2, 0) * 255 + 0.5).clamp(0, 255).byte().cpu().numpy()


# -- a character -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Student:
    """A character: its picture float ``(4, 512, 512)``, and its two networks."""

    character: Tensor
    face: FaceMorpher
    body: BodyMorpher

    @torch.inference_mode()
    def draw(self, pose: Tensor, region: Region = WHOLE) -> Drawn:
        """The character in a pose ``(45,)``, or a region of the picture. ValueError for another shape."""
        pose = torch.as_tensor(pose, dtype=self.character.dtype, device=self.character.device)
        if pose.shape != (len(POSE),):
            raise ValueError(f"pose: got shape {tuple(pose.shape)}, expected ({len(POSE)},): see `expression.pose_of`")
        return self.body(self.with_face(pose), pose, region)

    def with_face(self, pose: Tensor) -> Tensor:
        """The character's picture with the face of a pose."""
        top, left = CORNER
        picture = self.character.clone()
        picture[:, top : top + FACE, left : left + FACE] = self.face(pose)
        return picture

    def frame(self, pose: Tensor, straight: bool = True) -> np.ndarray:
        """The picture of a pose, uint8 ``(512, 512, 4)``: see :func:`to_picture`."""
        return to_picture(self.draw(pose).blended, straight)


def load(folder: str | Path) -> Student:
    """A published student: a folder with ``character_model.yaml`` and what it names, or with files of the usual names.

    Raises:
        FileNotFoundError: a file is not there. ValueError: weights of another network, a picture of another size or
            without alpha, or a damaged file.
    """
    import yaml

    folder, names = Path(folder), dict(FILES)
    if (about := folder / "character_model.yaml").exists():
        told = yaml.safe_load(about.read_text("utf-8"))
        if not isinstance(told, dict) or not all(isinstance(told.get(key), str) for key in FILES):
            raise ValueError(f"{about}: got {told!r}, expected names of files under {', '.join(FILES)}")
        names = told
    image, face_file, body_file = (folder / Path(names[key]).name for key in FILES)
    for path in (image, face_file, body_file):
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; a student has a picture and two files of weights")
    picture = read_rgba(image)
    if picture.shape[:2] != (SIZE, SIZE) or picture[..., 3].min() == 255:
        kind = f"{picture.shape[1]}×{picture.shape[0]}" + ", no part transparent" * int(picture[..., 3].min() == 255)
        expected = f"{SIZE}×{SIZE}, the character on transparent ground"
        raise ValueError(f"{image}: got a picture of {kind}, expected {expected}")
    student = Student(from_picture(picture), FaceMorpher(), BodyMorpher())
    for network, file in ((student.face, face_file), (student.body, body_file)):
        held, own = pretrained.mapped(file), network.state_dict()
        if {k: v.shape for k, v in held.items()} != {k: v.shape for k, v in own.items()}:
            odd = next((k for k in own if k not in held or held[k].shape != own[k].shape), next(iter(held), None))
            name = type(network).__name__
            raise ValueError(
                f"{file}: got other weights than a {name}'s, {odd} differs; check that files aren't mixed up"
            )
        network.load_state_dict(held)
        network.eval().requires_grad_(False)
    return student
