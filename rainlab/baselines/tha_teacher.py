"""Talking Head Anime's teachers: five networks that move any character, which students learn from (mode 07).

    eyebrow_decomposer ─▶ eyebrow_morphing_combiner ─▶ face_morpher ─▶ body_morpher ─▶ upscaler
      brows off the face    brows in their pose          eyes, mouth     turn, 256²      turn, 512²

Pictures are ``(n, 4, h, w)`` as :func:`rainlab.baselines.tha.from_picture` makes them, poses ``(n, 45)``. All say where
a pixel is taken from (*grid*, in half pictures), which colour else it has, and how much of that (*alpha*).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.baselines.tha import SIZE
from rainlab.data.studio.expression import POSE
from rainlab.method import pretrained

BROWS, FACE = slice(0, 12), slice(12, 39)  # of a pose
TURN = slice(39, 45)
BROW_SIZE, FACE_SIZE, BODY_SIZE = 128, 192, 256
BROW_CORNER, FACE_CORNER = (64, 192), (32, 160)  # row and column where their pictures lie in the whole
NETWORKS = ("eyebrow_decomposer", "eyebrow_morphing_combiner", "face_morpher", "body_morpher", "upscaler")


def blend(alpha: Tensor, colour: Tensor, picture: Tensor) -> Tensor:
    """``alpha`` of a colour over a picture."""
    return colour * alpha + picture * (1 - alpha)


def move(picture: Tensor, grid: Tensor) -> Tensor:
    """A picture whose pixels are taken from ``grid`` ``(n, 2, h, w)`` away, in half pictures."""
    (height, width), like = picture.shape[-2:], {"dtype": picture.dtype, "device": picture.device}
    across, down = ((2 * torch.arange(n, **like) + 1) / n - 1 for n in (width, height))
    still = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    return F.grid_sample(picture, still + grid.permute(0, 2, 3, 1), "bilinear", "border", align_corners=False)


# -- networks of convolutions (Talking Head Anime 3) -----------------------------------------------------------------


def _conv(inputs: int, outputs: int, kernel: int = 3, up: bool = False) -> nn.Sequential:
    kind, stride = nn.ConvTranspose2d if up else nn.Conv2d, 2 if kernel == 4 else 1
    conv = kind(inputs, outputs, kernel, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.InstanceNorm2d(outputs, affine=True), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.resnet_path = nn.Sequential(*_conv(width, width), *_conv(width, width)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.resnet_path(x)


class Coder(nn.Module):
    """Down three times, six blocks with the pose, up three times: features ``(n, 64, h, w)``."""

    def __init__(self, inputs: int, pose: int, widths: Sequence[int] = (64, 128, 256, 512), blocks: int = 6):
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.downsample_blocks = nn.ModuleList([_conv(inputs, widths[0]), *(_conv(a, b, 4) for a, b in pairs)])
        middle = [_Residual(widths[-1]) for _ in range(blocks - 1)]
        self.bottleneck_blocks = nn.ModuleList([_conv(widths[-1] + pose, widths[-1]), *middle])
        self.upsample_blocks = nn.ModuleList(_conv(b, a, 4, up=True) for a, b in pairs[::-1])

    def features(self, x: Tensor, pose: Tensor | None = None) -> Tensor:
        for block in self.downsample_blocks:
            x = block(x)
        if pose is not None:
            x = torch.cat([x, pose[:, :, None, None].expand(-1, -1, *x.shape[-2:])], 1)
        for block in (*self.bottleneck_blocks, *self.upsample_blocks):
            x = block(x)
        return x


def _alpha() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(64, 1, 3, padding=1), nn.Sigmoid())


def _colour() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(64, 4, 3, padding=1), nn.Tanh())


def _grid() -> nn.Conv2d:
    return nn.Conv2d(64, 2, 3, padding=1, bias=False)


class Layers(NamedTuple):
    """A face taken apart."""

    brows: Tensor
    brows_alpha: Tensor
    brows_colour: Tensor
    background: Tensor
    background_alpha: Tensor
    background_colour: Tensor


class EyebrowDecomposer(nn.Module):
    """Brows and what is behind them, of a picture ``(n, 4, 128, 128)``."""

    def __init__(self):
        super().__init__()
        self.body = Coder(4, 0)
        self.background_layer_alpha, self.background_layer_color_change = _alpha(), _colour()
        self.eyebrow_layer_alpha, self.eyebrow_layer_color_change = _alpha(), _colour()

    def forward(self, picture: Tensor) -> Layers:
        x = self.body.features(picture)
        behind, colour = self.background_layer_alpha(x), self.background_layer_color_change(x)
        alpha, else_ = self.eyebrow_layer_alpha(x), self.eyebrow_layer_color_change(x)
        return Layers(blend(alpha, picture, else_), alpha, else_, blend(behind, colour, picture), behind, colour)


class Brows(NamedTuple):
    """A face whose brows have moved."""

    combined: Tensor  # by an alpha of its own
    combine_alpha: Tensor
    picture: Tensor  # by the brows' own alpha: what is used
    brows: Tensor
    alpha: Tensor
    colour: Tensor
    warped: Tensor
    grid: Tensor


class EyebrowMorphingCombiner(nn.Module):
    """Layers and 12 numbers of a pose -> the face with its brows in that pose."""

    def __init__(self):
        super().__init__()
        self.body = Coder(8, 12)
        self.morphed_eyebrow_layer_grid_change = _grid()
        self.morphed_eyebrow_layer_alpha, self.morphed_eyebrow_layer_color_change = _alpha(), _colour()
        self.combine_alpha = _alpha()

    def forward(self, background: Tensor, brows: Tensor, pose: Tensor) -> Brows:
        x = self.body.features(torch.cat([background, brows], 1), pose)
        grid = self.morphed_eyebrow_layer_grid_change(x)
        alpha, colour = self.morphed_eyebrow_layer_alpha(x), self.morphed_eyebrow_layer_color_change(x)
        warped = move(brows, grid)
        moved, whole = blend(alpha, colour, warped), self.combine_alpha(x)

        def over(share: Tensor) -> Tensor:  # colours alone: the face's alpha stays
            return torch.cat([blend(share, moved[:, :3], background[:, :3]), background[:, 3:]], 1)

        return Brows(over(whole), whole, over((moved[:, 3:] + 1) / 2), moved, alpha, colour, warped, grid)


class Face(NamedTuple):
    """A face whose eyes and mouth have moved: the mouth and the irises first, then the lids."""

    picture: Tensor
    eye_alpha: Tensor
    eye_colour: Tensor
    before_eyes: Tensor
    mouth_alpha: Tensor
    mouth_colour: Tensor
    warped: Tensor
    grid: Tensor


class FaceMorpher(Coder):
    """A picture ``(n, 4, 192, 192)`` and 27 numbers of a pose -> the face in that pose."""

    def __init__(self):
        super().__init__(4, 27)
        self.iris_mouth_grid_change = _grid()
        self.iris_mouth_color_change, self.iris_mouth_alpha = _colour(), _alpha()
        self.eye_color_change, self.eye_alpha = _colour(), _alpha()

    def forward(self, picture: Tensor, pose: Tensor) -> Face:
        x = self.features(picture, pose)
        grid, alpha, colour = self.iris_mouth_grid_change(x), self.iris_mouth_alpha(x), self.iris_mouth_color_change(x)
        warped = move(picture, grid)
        before = blend(alpha, colour, warped)
        eyes, lids = self.eye_alpha(x), self.eye_color_change(x)
        return Face(blend(eyes, lids, before), eyes, lids, before, alpha, colour, warped, grid)


# -- UNets with attention (section 3.1 of Talking Head Anime 4) ------------------------------------------------------


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(32, width), width)


class Block(nn.Module):
    """Two convolutions, scaled and shifted by what is told of time and pose; ``change``: to twice or half the size."""

    def __init__(self, inputs: int, outputs: int, told: int, change: str = ""):
        super().__init__()
        self.change = change
        self.norm0, self.conv0 = _norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.cond0_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, 2 * outputs))
        self.cond1_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, 2 * outputs))
        self.norm1, self.conv1 = _norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, time: Tensor, pose: Tensor) -> Tensor:
        h = self.norm1(self.conv0(self._resized(F.silu(self.norm0(x)))))
        for told in (self.cond0_layers(time), self.cond1_layers(pose)):
            scale, shift = told[:, :, None, None].chunk(2, 1)
            h = h * (1 + scale) + shift
        return self.skip(self._resized(x)) + self.conv1(F.silu(h))

    def _resized(self, x: Tensor) -> Tensor:
        if self.change == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.change == "up" else x


class Look(nn.Module):
    """Self-attention of 8 heads over a picture."""

    def __init__(self, width: int, heads: int = 8):
        super().__init__()
        self.heads, self.norm = heads, _norm(width)
        self.qkv, self.conv = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for t in self.qkv(self.norm(x)).chunk(3, 1)
        )
        made = F.scaled_dot_product_attention(q, k, v)
        return x + self.conv(made.transpose(2, 3).flatten(1, 2).reshape(x.shape))


class _Wrapped(nn.Module):
    """Published names have another step here."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class UNet(nn.Module):
    """A picture and the six numbers of a pose that turn head and body -> 7 planes."""

    def __init__(self, width: int, factors: Sequence[int], told: int = 256):
        super().__init__()
        self.time_embed = nn.Sequential(nn.Identity(), nn.Linear(width, told), nn.SiLU(), nn.Linear(told, told))
        self.cond_embed = nn.Sequential(nn.Linear(6, told), nn.SiLU(), nn.Linear(told, told))
        self.first_conv = nn.Conv2d(4, width, 3, padding=1)
        widths, last = [width * factor for factor in factors], len(factors) - 1
        self.down_blocks, skips, now = nn.ModuleList(), [width], width
        for i, wide in enumerate(widths):
            level = nn.Module()
            level.res_blocks = nn.ModuleList([Block(now, wide, told)])
            level.attention_blocks = nn.ModuleList([Look(wide)] if i == last else [])
            skips.append(wide)
            if i < last:
                level.downsample = Block(wide, wide, told, "down")
                skips.append(wide)
            self.down_blocks.append(level)
            now = wide
        middle = [Block(now, now, told) if i % 2 == 0 else _Wrapped(Look(now)) for i in range(7)]
        self.middle_blocks, self.up_blocks = nn.ModuleList(middle), nn.ModuleList()
        for i, wide in reversed(list(enumerate(widths))):
            level = nn.Module()
            level.resnet_blocks = nn.ModuleList(Block(inputs + skips.pop(), wide, told) for inputs in (now, wide))
            level.attention_blocks = nn.ModuleList([Look(wide), Look(wide)] if i == last else [])
            if i:
                level.upsample = Block(wide, wide, told, "up")
            self.up_blocks.append(level)
            now = wide
        self.last = nn.Sequential(_norm(now), nn.SiLU(), nn.Conv2d(now, 7, 3, padding=1))

    def forward(self, picture: Tensor, pose: Tensor, more: Tensor | float = 0.0) -> Tensor:
        """``more``: added behind the first convolution."""
        half = self.time_embed[1].in_features // 2
        still = torch.cat([torch.ones(half), torch.zeros(half)]).to(picture).expand(len(picture), -1)  # time 0
        told = self.time_embed(still), self.cond_embed(pose)
        kept = [self.first_conv(picture) + more]
        for level in self.down_blocks:
            x = level.res_blocks[0](kept[-1], *told)
            for look in level.attention_blocks:
                x = look(x)
            kept.append(x)
            if hasattr(level, "downsample"):
                kept.append(level.downsample(x, *told))
        x = kept[-1]
        for block in self.middle_blocks:
            x = block.module(x) if isinstance(block, _Wrapped) else block(x, *told)
        for level in self.up_blocks:
            for i, block in enumerate(level.resnet_blocks):
                x = block(torch.cat([x, kept.pop()], 1), *told)
                for look in level.attention_blocks[i : i + 1]:
                    x = look(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x, *told)
        return self.last(x)


class Turned(NamedTuple):
    """A character that has turned."""

    picture: Tensor
    alpha: Tensor
    warped: Tensor
    grid: Tensor
    direct: Tensor


def turned(planes: Tensor, picture: Tensor) -> Turned:
    direct, grid, alpha = planes.split((4, 2, 1), 1)
    alpha, warped = alpha.sigmoid(), move(picture, grid)
    return Turned(blend(alpha, direct, warped), alpha, warped, grid, direct)


class BodyMorpher(nn.Module):
    """A picture ``(n, 4, 256, 256)`` turned."""

    def __init__(self):
        super().__init__()
        self.body = UNet(64, (1, 2, 4, 4, 4))

    def forward(self, picture: Tensor, pose: Tensor) -> Turned:
        return turned(self.body(picture, pose), picture)


class Upscaler(nn.Module):
    """The same at 512×512, told what came out at half the size."""

    def __init__(self):
        super().__init__()
        self.body = UNet(32, (1, 2, 4, 8, 8, 8))
        self.coarse_image_conv = nn.Conv2d(10, 32, 3, padding=1)

    def forward(self, picture: Tensor, coarse: Tensor, grid: Tensor, pose: Tensor) -> Turned:
        """coarse: the turned picture enlarged; grid: likewise."""
        seen = torch.cat([coarse, move(picture, grid), grid], 1)
        return turned(self.body(picture, pose, self.coarse_image_conv(seen)), picture)


# -- all of them -----------------------------------------------------------------------------------------------------


class Posed(NamedTuple):
    """What the five networks make of a character and a pose, last to first."""

    upscaled: Turned
    with_face: Tensor  # (n, 4, 512, 512), before it turns
    body: Turned
    face: Face
    brows: Brows
    layers: Layers


class Teacher(nn.Module):
    """The five networks, one after the other."""

    def __init__(self):
        super().__init__()
        self.eyebrow_decomposer = EyebrowDecomposer()
        self.eyebrow_morphing_combiner = EyebrowMorphingCombiner()
        self.face_morpher, self.body_morpher, self.upscaler = FaceMorpher(), BodyMorpher(), Upscaler()

    def forward(self, character: Tensor, pose: Tensor) -> Posed:
        """character: ``(n, 4, 512, 512)``; pose: ``(n, 45)``. ValueError for other shapes."""
        if character.shape[1:] != (4, SIZE, SIZE) or pose.shape != (len(character), len(POSE)):
            got = f"{tuple(character.shape)} and {tuple(pose.shape)}"
            raise ValueError(f"got {got}, expected (n, 4, {SIZE}, {SIZE}) and (n, {len(POSE)})")
        layers = self.eyebrow_decomposer(_cut(character, BROW_CORNER, BROW_SIZE))
        brows = self.eyebrow_morphing_combiner(layers.background, layers.brows, pose[:, BROWS])
        inside = tuple(b - f for b, f in zip(BROW_CORNER, FACE_CORNER, strict=True))
        front = _pasted(_cut(character, FACE_CORNER, FACE_SIZE), brows.picture, inside)
        face = self.face_morpher(front, pose[:, FACE])
        whole = _pasted(character, face.picture, FACE_CORNER)
        half = F.interpolate(whole, size=(BODY_SIZE, BODY_SIZE), mode="bilinear", align_corners=False)
        body = self.body_morpher(half, pose[:, TURN])
        large = (F.interpolate(x, size=(SIZE, SIZE), mode="bilinear") for x in (body.picture, body.grid))
        return Posed(self.upscaler(whole, *large, pose[:, TURN]), whole, body, face, brows, layers)


def _cut(picture: Tensor, corner: tuple[int, int], size: int) -> Tensor:
    top, left = corner
    return picture[:, :, top : top + size, left : left + size]


def _pasted(picture: Tensor, part: Tensor, corner: tuple[int, int]) -> Tensor:
    picture = picture.clone()
    _cut(picture, corner, part.shape[-1]).copy_(part)
    return picture


def load(folder: str | Path) -> Teacher:
    """The published teacher: a folder with ``eyebrow_decomposer.pt`` and so on, one file for each of NETWORKS.

    Raises:
        FileNotFoundError: a file is not there. ValueError: it is damaged, or holds another network's weights.
    """
    teacher = Teacher()
    for name, file in files(Path(folder)):
        network, held = getattr(teacher, name), pretrained.mapped(file)
        own = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
        if odd := own.items() ^ {key: tuple(tensor.shape) for key, tensor in held.items()}.items():
            key = min(odd)[0]
            raise ValueError(f"{file}: got other weights than those of {name}, {key} differs; are files mixed up?")
        network.load_state_dict(held)
    return teacher.eval().requires_grad_(False)


def files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of each network. FileNotFoundError for the first that is not there."""
    for name in NETWORKS:
        if not (file := folder / f"{name}.pt").exists():
            raise FileNotFoundError(
                f"{file} is not there; the teacher's five files come with talking-head-anime-4-demo (data/tha4)"
            )
        yield name, file
