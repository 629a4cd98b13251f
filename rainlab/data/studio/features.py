"""The features of a face, eyes, brows, nose and mouth: from a pose to curves, from these to colours and landmarks.

All lie on the head's surface, in coordinates that its picture keeps as it turns: x from one side (-1) to the other (1),
y down from the middle, in head radii about. A name that ends in _r belongs to the character's own right, at negative x.
Per pixel under the same rule as `raster`: exactly rounded operations only.
"""

from dataclasses import dataclass

import torch

from rainlab.data.studio.expression import POSE, TURN
from rainlab.data.studio.paint import FACE, disc, over

OF_SIDE = tuple(
    "eye_x eye_y eye_w top bottom iris_x iris_y iris_w iris_h brow_x brow_y brow_w brow_tilt brow_arch corner".split()
)
SHARED = tuple(
    "red green blue hair_red hair_green hair_blue mouth_y mouth_w upper lower nose_y blush glasses nod".split()
)
SIDES = (("_r", "_right", -1.0), ("_l", "_left", 1.0))
FEATURES = (*SHARED, *(name + side for name in OF_SIDE for side, _, _ in SIDES))
"""What a face is painted from. top, bottom: how far below the corners of an eye the middles of its lids' edges lie;
upper, lower: the same of the lips' inner edges; corner: how far a corner of the mouth lies below ``mouth_y``;
nod: as for `nodded`; brow_tilt, brow_arch: how far the outer end of a brow lies above its middle, and the middle above
both ends."""
LEFT_OUT = ("brows", "eyes", "mouth")
SKIN, IRIS, LID, BROW, UPPER, LOWER = range(6)  # what a point of the head moves with
LASH, HAIR, LIP = 0.050, 0.045, 0.026  # half the thickness of a lash, a brow and a lip's line
NOD = 0.85  # how far from its axis the front of a head lies, for a nod
INSIDE, TONGUE, TEETH = (0.52, 0.12, 0.18), (0.91, 0.43, 0.45), (0.98, 0.98, 0.98)


def arc(x):
    """The shape of lids, lips and brows: 1 in the middle, 0 at -1 and 1, below that outside."""
    return 1 - x * x * (0.4 + 0.6 * x * x)


def nodded(nod, x):
    """How far a face with its chin up by ``nod``, a row of FEATURES, lies above its place at x across the head.

    A head turns about one axis on its surface, its own; about the axis through its ears it is this that moves the face.
    """
    return nod * (1 - x * x).clamp(min=0).sqrt()


def table(looks, pose):
    """Rows FEATURES of n faces, float64 ``(44, n)``.

    looks: the characters' rows FACE of `paint`, ``(14, n)``; pose: ``(n, 45)``.
    """
    look = dict(zip(FACE, looks.double(), strict=True))
    at = dict(zip(POSE, pose.unbind(-1), strict=True))
    made = {name: look[name] for name in ("red", "green", "blue", "blush", "glasses")}
    made |= {"hair_" + name: 0.7 * look["brow_" + name] for name in ("red", "green", "blue")}
    made |= {"nose_y": 0.36 + 0 * look["eye_y"], "mouth_y": 0.68 + 0 * look["eye_y"]}
    number, most = TURN["nod"]
    made["nod"] = NOD * (most * at[number]).sin()
    width, height = 1.95 * look["eye_w"], 1.40 * look["eye_h"]
    # opening of the mouth by THA4's morphs: share of the width, and the middles of the upper and lower lip's edges
    shapes = {"aaa": (1.0, -0.10, 0.30), "iii": (1.25, -0.03, 0.10), "uuu": (0.45, -0.06, 0.13),
              "eee": (1.15, -0.07, 0.18), "ooo": (0.62, -0.14, 0.24), "delta": (0.85, -0.16, 0.08)}  # fmt: skip
    most = sum(at["mouth_" + name] for name in shapes).clamp(min=1)
    share = {name: at["mouth_" + name] / most for name in shapes}
    smile = 0.030 * look["smile"]
    made["mouth_w"] = (0.10 + 0.75 * look["mouth_w"]) * (1 + sum(share[k] * (w - 1) for k, (w, _, _) in shapes.items()))
    rest = smile * (1 - sum(share.values()))
    made["upper"] = rest + sum(share[k] * top for k, (_, top, _) in shapes.items())
    made["lower"] = rest + sum(share[k] * low for k, (_, _, low) in shapes.items())
    for side, name, sign in SIDES:
        one = {kind: at[f"eye_{kind}{name}"] for kind in ("wink", "happy_wink", "surprised", "relaxed", "unimpressed",
                                                          "raised_lower_eyelid")}  # fmt: skip
        top, bottom = -height, 0.62 * height
        for kind, upper, lower in (
            ("surprised", -1.25, 0.72), ("relaxed", -0.45, 0.62), ("unimpressed", -0.28, 0.50),
            ("raised_lower_eyelid", None, 0.22), ("happy_wink", -0.42, -0.42), ("wink", 0.50, 0.50),
        ):  # fmt: skip
            if upper is not None:
                top = top + one[kind] * (upper * height - top)
            bottom = bottom + one[kind] * (lower * height - bottom)
        small = 1 - 0.45 * at["iris_small" + name]
        brow = {kind: at[f"eyebrow_{kind}{name}"] for kind in ("troubled", "angry", "lowered", "raised", "happy",
                                                               "serious")}  # fmt: skip
        made |= {
            "eye_x" + side: sign * (look["eye_x"] + 0.05),
            "eye_y" + side: 0.06 + 0.5 * (look["eye_y"] - 0.14),
            "eye_w" + side: width,
            "top" + side: top,
            "bottom" + side: torch.maximum(bottom, top),
            "iris_x" + side: sign * (look["eye_x"] + 0.03) + 0.25 * width * at["iris_rotation_y"],
            "iris_y" + side: 0.02 + 0.5 * (look["eye_y"] - 0.14) - 0.22 * height * at["iris_rotation_x"],
            "iris_w" + side: 0.62 * width * small,
            "iris_h" + side: 0.86 * height * small,
            "brow_x" + side: sign * (look["eye_x"] + 0.06) + 0 * top,
            "brow_y" + side: -0.40 + 0.10 * brow["lowered"] + 0.06 * (brow["angry"] + brow["serious"])
            - 0.14 * brow["raised"] - 0.07 * brow["happy"] - 0.04 * brow["troubled"],
            "brow_w" + side: 0.25 + 0 * top,
            "brow_tilt" + side: 0.11 * brow["angry"] + 0.05 * brow["serious"] - 0.13 * brow["troubled"],
            "brow_arch" + side: 0.05 + 0.08 * brow["happy"] + 0.03 * brow["raised"] - 0.05 * brow["serious"],
            "corner" + side: 0.5 * made["upper"].clamp(max=0) - smile
            + 0.10 * (at["mouth_lowered_corner" + name] - at["mouth_raised_corner" + name])
            - (0.08 * at["mouth_smirk"] if side == "_l" else 0),
        }  # fmt: skip
    return torch.stack(torch.broadcast_tensors(*(made[name] for name in FEATURES)))


class Curves:
    """The features' curves at points x, y ``(m,)`` of the heads that ``look``, rows FEATURES ``(m,)``, describes."""

    def __init__(self, look, x, y):
        self.look, self.x, self.y = look, x, y
        self.right = x < 0

    def own(self, name):
        """A number of the side that a point lies on."""
        return torch.where(self.right, self.look[name + "_r"], self.look[name + "_l"])

    def eye(self):
        """Across an eye (-1 to 1 between its corners), and how far below the edges of the upper and lower lid."""
        across, down = (self.x - self.own("eye_x")) / self.own("eye_w"), self.y - self.own("eye_y")
        bow = arc(across)
        return across, down - self.own("top") * bow, down - self.own("bottom") * bow

    def iris(self):
        """Place in the iris, a disc of radius 1."""
        return ((self.x - self.own("iris_x")) / self.own("iris_w"), (self.y - self.own("iris_y")) / self.own("iris_h"))

    def brow(self):
        """Along a brow, from its inner end (-1) to the outer one (1), and how far below its middle line."""
        along = (self.x - self.own("brow_x")) / self.own("brow_w") * torch.where(self.right, -1.0, 1.0)
        line = self.own("brow_y") - self.own("brow_tilt") * along - self.own("brow_arch") * arc(along)
        return along, self.y - line

    def mouth(self):
        """Across the mouth, and how far below the upper and the lower lip's inner edge."""
        across = self.x / self.look["mouth_w"]
        down, bow = self.y - self.look["mouth_y"] - self.own("corner") * across * across, arc(across)
        return across, down - self.look["upper"] * bow, down - self.look["lower"] * bow

    def back(self, kind, place):
        """The point (x, y) of the head that has this ``place`` on a feature: the inverse of what ``of`` says."""
        u, v = place
        if kind == IRIS:
            return self.own("iris_x") + u * self.own("iris_w"), self.own("iris_y") + v * self.own("iris_h")
        if kind == LID:
            return self.own("eye_x") + u * self.own("eye_w"), self.own("eye_y") + v + self.own("top") * arc(u)
        if kind == BROW:
            line = self.own("brow_y") - self.own("brow_tilt") * u - self.own("brow_arch") * arc(u)
            return self.own("brow_x") + u * self.own("brow_w") * torch.where(self.right, -1.0, 1.0), v + line
        edge = self.look["upper" if kind == UPPER else "lower"]
        return u * self.look["mouth_w"], v + self.look["mouth_y"] + self.own("corner") * u * u + edge * arc(u)

    def of(self, kind):
        """A point's place on a feature of this kind, which it keeps as the face moves."""
        if kind == IRIS:
            return self.iris()
        if kind == LID:
            return self.eye()[:2]
        if kind == BROW:
            return self.brow()
        across, below_upper, below_lower = self.mouth()
        return across, below_upper if kind == UPPER else below_lower


@dataclass(frozen=True)
class Painter:
    """Paints faces with some of LEFT_OUT left out; a function as `paint` calls it for the head's surface."""

    without: frozenset = frozenset()

    def __call__(self, colour, look, x, y, z, px):
        """Colours (three planes ``(m,)``) of points (x, y) whose normals point z to the front; px: pixels a radius."""
        y = y + nodded(look["nod"], x)
        front, c = (z * 4).clamp(0, 1), Curves(look, x, y)
        skin = [0.80 * p for p in colour]
        colour = over(colour, (0.96, 0.42, 0.42), disc(x.abs() - 0.56, y - 0.42, 0.20, 0.11, px * 0.4) * look["blush"])
        nose = y - look["nose_y"]
        colour = over(colour, skin, disc(x + 0.012, nose, 0.045, 0.035, px) * front)
        colour = over(colour, (1.0, 1.0, 1.0), disc(x - 0.02, nose + 0.06, 0.022, 0.030, px) * 0.5 * front)
        if "eyes" not in self.without:
            colour = self._eyes(colour, look, c, front, px)
        if "brows" not in self.without:
            along, below = c.brow()
            half = HAIR * (1.1 - 0.45 * along)  # thinner outside
            colour = over(colour, _hair(look), _line(below, half, px) * _within(along, c.own("brow_w"), px) * front)
        if "mouth" not in self.without:
            colour = self._mouth(colour, look, c, front, px)
        side, low = x.abs() - 0.44, y - 0.06
        rims = disc(side, low, 0.40, 0.40, px) - disc(side, low, 0.34, 0.34, px)
        worn = torch.maximum(disc(x, low, 0.12, 0.045, px), rims) * look["glasses"]
        return over(colour, (0.12, 0.12, 0.16), worn * front)

    def _eyes(self, colour, look, c, front, px):
        across, below_upper, below_lower = c.eye()
        width, height = c.own("eye_w"), below_upper - below_lower  # height: between the lids, here
        ball = (0.5 + torch.minimum(below_upper, -below_lower) * px).clamp(0, 1) * (height * px).clamp(0, 1) * front
        ball = ball * _within(across, width, px)
        hair = _hair(look)
        white = [0.97 - 0.16 * (1 - below_upper * 6).clamp(0, 1) * k for k in (1.0, 1.0, 0.75)]  # under the lid
        colour = over(colour, white, ball)
        u, v = c.iris()
        iris = [look[n] for n in ("red", "green", "blue")]
        light = (0.5 + 0.5 * v).clamp(0, 1)  # lighter below
        glow = [0.35 * p + light * (0.45 * p + 0.38) for p in iris]
        w, h = c.own("iris_w"), c.own("iris_h")
        small = torch.minimum(w, h) * px
        colour = over(colour, [0.30 * p for p in iris], _round(u, v, 1.0, small) * ball)
        colour = over(colour, glow, _round(u, v, 0.84, small) * ball)
        colour = over(colour, [0.12 * p for p in iris], _round(u, v + 0.10, 0.46, small) * ball)
        colour = over(colour, (1.0, 1.0, 1.0), _round(u + 0.34, v + 0.42, 0.30, small) * ball)
        colour = over(colour, (1.0, 1.0, 1.0), _round(u - 0.36, v - 0.42, 0.15, small) * ball)
        outer = across * torch.where(c.right, -1.0, 1.0)
        slope = c.own("top") * across * (0.8 + 2.4 * across * across) / width
        steep = (1 + slope * slope).sqrt()
        lash = _line(below_upper / steep, LASH * (1 + 0.5 * outer), px) * _within(across / 1.02, width, px)
        slope = c.own("bottom") * across * (0.8 + 2.4 * across * across) / width
        lower = _line(below_lower / (1 + slope * slope).sqrt(), 0.018, px) * _within(across, width, px) * 0.55
        crease = _line(below_upper + 0.13, 0.016, px) * _within(across / 0.8, width, px) * 0.40
        for alpha in (crease, lower, lash):
            colour = over(colour, hair, alpha * front)
        return colour

    def _mouth(self, colour, look, c, front, px):
        across, below_upper, below_lower = c.mouth()
        width = look["mouth_w"]
        opened = (0.5 + torch.minimum(below_upper, -below_lower) * px).clamp(0, 1)
        opened = opened * ((below_upper - below_lower) * px).clamp(0, 1) * _within(across, width, px) * front
        colour = over(colour, INSIDE, opened)
        colour = over(colour, TONGUE, opened * (0.5 + (below_lower + 0.10) * px).clamp(0, 1))
        colour = over(colour, TEETH, opened * (0.5 + (0.045 - below_upper) * px).clamp(0, 1))
        slope = (2 * c.own("corner") * across - look["upper"] * across * (0.8 + 2.4 * across * across)) / width
        upper = _line(below_upper / (1 + slope * slope).sqrt(), LIP, px)
        slope = (2 * c.own("corner") * across - look["lower"] * across * (0.8 + 2.4 * across * across)) / width
        lower = _line(below_lower / (1 + slope * slope).sqrt(), LIP, px)
        lips = torch.maximum(upper, lower) * _within(across / 1.05, width, px)
        return over(colour, (0.50, 0.14, 0.17), lips * front)


def parts(look, x, y, z, without=frozenset()):
    """Which of SKIN … LOWER each point moves with, uint8 ``(m,)``: the topmost that is painted there."""
    c = Curves(look, x, y)
    code = torch.zeros(len(x), dtype=torch.uint8)
    front = z > 0
    across, below_upper, below_lower = c.eye()
    u, v = c.iris()
    eye = front & ("eyes" not in without) & (across.abs() < 1.02)
    code[eye & (below_upper > 0) & (below_lower < 0) & (u * u + v * v < 1)] = IRIS
    code[eye & (below_upper.abs() < LASH)] = LID
    along, below = c.brow()
    code[front & ("brows" not in without) & (along.abs() < 1) & (below.abs() < HAIR)] = BROW
    across, below_upper, below_lower = c.mouth()
    mouth = front & ("mouth" not in without) & (across.abs() < 1.05) & (below_upper > -LIP) & (below_lower < LIP)
    code[mouth & (below_upper < -below_lower)] = UPPER
    code[mouth & (below_upper >= -below_lower)] = LOWER
    return code


def points(look):
    """The 68 landmarks on the heads' surfaces: float64 (n, 68, 2), x and y; look: rows FEATURES ``(n,)``."""
    zero = torch.zeros_like(look["mouth_y"])

    def at(x, y):
        return torch.stack([zero + x, zero + y], -1)

    turns = torch.linspace(0, 1, 17, dtype=torch.float64)
    across = [
        -0.97 * torch.cos(torch.pi * t) for t in turns
    ]  # the jaw is an outline: a nod does not move it on the head
    jaw = [
        at(x, 0.05 + 1.16 * torch.sin(torch.pi * t) + nodded(look["nod"], x))
        for x, t in zip(across, turns, strict=True)
    ]
    brows, eyes = [], []
    for side, sign in (("_r", -1.0), ("_l", 1.0)):
        c = Curves(look, zero + sign, zero)
        for u in (1, 0.5, 0, -0.5, -1) if side == "_r" else (-1, -0.5, 0, 0.5, 1):
            brows.append(torch.stack(c.back(BROW, (zero + u, zero)), -1))
        x, y, w = (look[name + side] for name in ("eye_x", "eye_y", "eye_w"))
        for u, lid in ((-1, "top"), (-0.4, "top"), (0.4, "top"), (1, "top"), (0.4, "bottom"), (-0.4, "bottom")):
            eyes.append(torch.stack([x + u * w, y + look[lid + side] * arc(torch.tensor(float(u)))], -1))
    y = look["nose_y"]
    nose = [at(0, y + d) for d in (-0.34, -0.22, -0.11, 0.0)]
    nose += [at(x, y + 0.09 - 0.3 * abs(x)) for x in (-0.10, -0.05, 0.0, 0.05, 0.10)]

    def lip(u, kind, out):
        c = Curves(look, zero + (u or 1e-9), zero)
        return torch.stack(c.back(kind, (zero + u, zero + out)), -1)

    outer = [lip(u, UPPER, -2 * LIP * (abs(u) < 1)) for u in (-1, -0.6, -0.25, 0, 0.25, 0.6, 1)]
    outer += [lip(u, LOWER, 2 * LIP) for u in (0.6, 0.25, 0, -0.25, -0.6)]
    inner = [lip(u, UPPER, 0) for u in (-0.9, -0.4, 0, 0.4, 0.9)] + [lip(u, LOWER, 0) for u in (0.4, 0, -0.4)]
    return torch.stack([*jaw, *brows, *nose, *eyes, *outer, *inner], 1)


def _hair(look):
    return [look["hair_" + name] for name in ("red", "green", "blue")]


def _line(distance, half, px):
    """How much of a pixel a line covers whose middle is this far away."""
    return (0.5 + (half - distance.abs()) * px).clamp(0, 1)


def _within(across, width, px):
    """Between -1 and 1 of a coordinate whose unit is ``width`` long."""
    return (0.5 + (1 - across.abs()) * width * px).clamp(0, 1)


def _round(u, v, radius, px):
    """A disc in its own units, of which one is px pixels long."""
    return (0.5 + (radius * radius - u * u - v * v) * 0.5 / radius * px).clamp(0, 1)
