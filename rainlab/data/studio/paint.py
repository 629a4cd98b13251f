"""The colours of the studio: textures, faces and light on the surfaces `raster` found, and the backdrop behind them.

Per pixel under the same rule as `raster`: exactly rounded operations only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rainlab.data.studio.raster import GEOMETRY, surface, turned

LIGHT = (-0.42, -0.56, 0.71)  # direction to the light: upper left, in front
COOL = (1.0, 0.95, 0.84)  # share of the shade that red, green and blue take: shadows turn slightly blue
TEXTURE = tuple(
    "red green blue red2 green2 blue2 red3 green3 blue3 rings stripes checks bias rate turns gain "
    "span cap split".split()
)
FACE = tuple("red green blue brow_red brow_green brow_blue eye_x eye_y eye_w eye_h mouth_w smile blush glasses".split())
CHEST = tuple("red green blue badge zip straps".split())
BACKDROP = tuple("red green blue red2 green2 blue2 down across glow floor bands".split())


@dataclass(frozen=True)
class Looks:
    """What b characters wear, as float32 tables whose rows are named above: `texture` (19, b, P) of every capsule,
    `face` (14, b) on capsule `head`, `chest` (6, b) on capsule `torso`, and `backdrop` (11, b) behind them.

    features: the names of the rows of `face` and what paints them, where that is another face than `FACE`.
    """

    texture: torch.Tensor
    face: torch.Tensor
    chest: torch.Tensor
    backdrop: torch.Tensor
    head: int
    torso: int
    features: tuple[tuple[str, ...], Callable] | None = None


def picture(figure, looks, clip, behind, layers, size, scale):
    """Paint n frames, uint8 (n, h, w, 3).

    figure: Shapes of the frames; clip (n,): which character each frame shows; behind: float32 (3, n, h·w), such as
    `backdrop` makes; layers: front and back from `raster.cover`; scale: pixels per unit length.
    """
    front, back = layers
    # Where two surfaces cross they share the pixels within half a pixel of depth: no jagged seams.
    share = back["a"] * (0.5 - (front["z"] - back["z"])).clamp(0, 0.5)
    first = front["a"] * (1 - share)
    second = (1 - first) * back["a"]
    canvas = (behind * (1 - first - second)).flatten(1)
    for layer, weight in ((back, second), (front, first)):
        weight = weight.view(-1)
        at = (weight > 0).nonzero()[:, 0]
        colour = _shade(figure, looks, clip, at, layer["k"].view(-1)[at].long(), size, scale)
        for plane, c in zip(canvas, colour, strict=True):
            plane[at] = plane[at] + weight[at] * c
    return (canvas * 255 + 0.5).clamp(0, 255).byte().view(3, len(clip), *size).permute(1, 2, 3, 0).contiguous()


def _shade(figure, looks, clip, at, k, size, scale):
    """Three colour planes (m,) of capsules k (m,) at the flat pixel numbers `at` (m,)."""
    pixels, count = size[0] * size[1], figure.geometry.shape[2]
    frame, pixel = at // pixels, at % pixels
    person = clip[frame]
    g = dict(zip(GEOMETRY, figure.geometry.flatten(1)[:, frame * count + k], strict=True))
    look = dict(zip(TEXTURE, looks.texture.flatten(1)[:, person * count + k], strict=True))
    t, e, s, c = surface(g, (pixel % size[1]).float(), (pixel // size[1]).float())
    s_own, c_own = turned(s, c, g["sin"], g["cos"])
    u = t * look["span"] + e * look["cap"]

    ring, stripe = wave(u * look["rate"]), wave(_turns(s_own, c_own) * look["turns"])
    mix = look["rings"] * ring + look["stripes"] * stripe + look["checks"] * ring * stripe + look["bias"]
    mix = (0.5 + mix * (look["gain"] * scale).clamp(1, 12)).clamp(0, 1)
    end = (0.5 + (u - look["split"]) * scale).clamp(0, 1)
    colour = [look[n] + mix * (look[n + "2"] - look[n]) for n in ("red", "green", "blue")]
    colour = over(colour, [look[n + "3"] for n in ("red", "green", "blue")], end)

    round_off = (1 - e * e).sqrt()
    rows, features = looks.features or (FACE, _face)
    for capsule, names, table, decorate in (
        (looks.head, rows, looks.face, features),
        (looks.torso, CHEST, looks.chest, _chest),
    ):
        on = (k == capsule).nonzero()[:, 0]
        worn = dict(zip(names, table[:, person[on]], strict=True))
        down = (u - 0.5 * look["span"])[on] / look["cap"][on]
        part = decorate([p[on] for p in colour], worn, s_own[on] * round_off[on], down, c_own[on], g["r"][on])
        for plane, p in zip(colour, part, strict=True):
            plane[on] = p

    side, facing = s * round_off, c * round_off
    nx, ny = side * g["dy"] + e * g["dx"], e * g["dy"] - side * g["dx"]
    lit = LIGHT[0] * nx + LIGHT[1] * ny + LIGHT[2] * facing
    edge = 1 - facing
    dark = 0.26 * (1 - lit) + 0.16 * edge * edge * edge - 0.05
    return [p * (1 - cool * dark) for p, cool in zip(colour, COOL, strict=True)]


def _face(colour, look, x, y, z, px):
    """Eyes, brows, mouth, blush and glasses at the points (x, y, z) of the unit sphere; z: front, px: pixels a unit."""
    front = (z * 4).clamp(0, 1)
    side, low = x.abs() - look["eye_x"], y - look["eye_y"]
    w, h = look["eye_w"], look["eye_h"]
    iris = [look[n] for n in ("red", "green", "blue")]
    brow = [look["brow_" + n] for n in ("red", "green", "blue")]
    rims = disc(side, low, 0.32, 0.32, px) - disc(side, low, 0.24, 0.24, px)
    bridge = disc(x, low, 0.2, 0.05, px)
    marks = (  # from below to above
        ((0.95, 0.40, 0.40), disc(x.abs() - 0.60, y - 0.44, 0.22, 0.13, px * 0.4) * look["blush"]),
        ((0.98, 0.98, 1.00), disc(side, low, w * 1.3, h * 1.12, px)),
        (iris, disc(side + 0.02, low, w, h, px)),
        ([0.4 * n for n in iris], disc(side + 0.02, low - 0.01, w * 0.6, h * 0.6, px)),
        ((1.0, 1.0, 1.0), disc((x - 0.05).abs() - look["eye_x"], low + 0.42 * h, w * 0.42, h * 0.32, px)),
        (brow, disc(side, low + h + 0.13, w * 1.3, 0.045, px)),
        ((0.60, 0.18, 0.20), disc(x, y - 0.58 + look["smile"] * x * x, look["mouth_w"], 0.06, px)),
        ((0.10, 0.10, 0.14), torch.maximum(bridge, rims) * look["glasses"]),
    )
    for mark, alpha in marks:
        colour = over(colour, mark, alpha * front)
    return colour


def _chest(colour, look, x, y, z, px):
    """A badge, a zip or a backpack's straps on the torso; x, z: sine and cosine of the angle, y: down, in radii."""
    front = (z * 5).clamp(0, 1)
    worn = [look[n] for n in ("red", "green", "blue")]
    colour = over(colour, worn, disc(x, y + 0.25, 0.40, 0.40, px) * look["badge"] * front)
    colour = over(colour, worn, (0.5 + (0.10 - x.abs()) * px).clamp(0, 1) * look["zip"] * front)
    strap = (0.5 + (0.13 - (x.abs() - 0.62).abs()) * px).clamp(0, 1) * (z * 5 + 2).clamp(0, 1)
    return over(colour, worn, strap * look["straps"])


def backdrop(look, shadow, size):
    """Five kinds of two-coloured backdrop and the soft shadow on the ground: float32 (3, n, h·w).

    look: rows BACKDROP of n frames; shadow (4, n): centre and half-axes in pixels.
    """
    height, width = size
    pixel = torch.arange(height * width)
    x, y = (pixel % width).float(), (pixel // width).float()
    across, down = (x + 0.5) / width, (y + 0.5) / height
    glow = 1 - ((across - 0.5) * (across - 0.5) + (down - 0.45) * (down - 0.45)) * 2.5
    floor = ((down - 0.72) * height * 0.5 + 0.5).clamp(0, 1) * (1.3 - down)
    bands = (0.5 + wave(across * 3) * 2).clamp(0, 1) * 0.35
    b = dict(zip(BACKDROP, look[:, :, None], strict=True))
    mix = b["down"] * down + b["across"] * across + b["glow"] * glow + b["floor"] * floor + b["bands"] * bands
    mix = mix.clamp(0, 1)
    dx, dy = (x - shadow[0, :, None]) / shadow[2, :, None], (y - shadow[1, :, None]) / shadow[3, :, None]
    dark = (1 - dx * dx - dy * dy).clamp(min=0)
    dark = 0.42 * dark * (2 - dark)
    lit = [1 - cool * dark for cool in COOL]
    colour = [b[n] + mix * (b[n + "2"] - b[n]) for n in ("red", "green", "blue")]
    return torch.stack([c * brightness for c, brightness in zip(colour, lit, strict=True)])


def over(colour, top, alpha):
    return [a + alpha * (b - a) for a, b in zip(colour, top, strict=True)]


def disc(x, y, width, height, px):
    """How much of each pixel an ellipse of half-axes width, height around the origin covers; px: pixels per unit."""
    x, y = x / width, y / height
    least = torch.minimum(torch.as_tensor(width), torch.as_tensor(height))
    return (0.5 + (1 - x * x - y * y) * 0.5 * least * px).clamp(0, 1)


def wave(x):
    """Triangle wave of period 1, from 1 over -1 back to 1."""
    return (x - x.floor() - 0.5).abs() * 4 - 1


def _turns(s, c):
    """The angle with this sine and cosine in turns, in [-1/4, 3/4), within 0.003: a cubic fit on each quarter."""
    x = s / (s.abs() + c.abs())
    y = x.abs()
    x = x * (1 - 0.363 * (1 - y) * (1 - 2 * y))
    return torch.where(c >= 0, x, 2 - x) * 0.25
