"""Who the characters are: measures, hair, clothes and colours, each from an integer hash of (seed, parameter's name),
so that no character depends on the others of its batch.

Lengths are in units of half the picture's height. A trailing _r or _l is the character's own right or left.
"""

import math
import zlib

import torch

from rainlab.studio.paint import BACKDROP, CHEST, FACE, TEXTURE, Looks

PARTS = tuple((
    "head cap fringe fringe2 back side_r side_l tail_r tail_l ear_r ear_l hat hat2 hat3 neck torso hips skirt pack "
    "scarf scarf2 arm_r fore_r hand_r arm_l fore_l hand_l thigh_r shin_r foot_r thigh_l shin_l foot_l").split())
HEADWEAR = tuple("cap fringe fringe2 back side_r side_l tail_r tail_l hat hat2 hat3".split())

# In head radii about the head's centre (x right, y down, z to the front): x y z of both ends, then both radii. Spheres
# are solid: the hairline is where the cap and the head cross. A name that ends in _ stands for a mirrored pair.
CAP = (0, -0.20, -0.20, 0, -0.04, -0.26, 1.07, 1.03)
HAIR = {
    "short": {"cap": CAP},
    "bob": {"cap": CAP, "back": (0, 0.0, -0.28, 0, 0.5, -0.25, 1.05, 0.95),
            "side_": (0.84, 0.0, 0.12, 0.86, 0.66, 0.15, 0.24, 0.20)},
    "long": {"cap": CAP, "back": (0, 0.1, -0.35, 0, 1.7, -0.45, 1.0, 0.82),
             "side_": (0.86, 0.0, 0.12, 0.92, 1.3, 0.2, 0.24, 0.14)},
    "pony": {"cap": CAP, "tail_r": (0, -0.45, -1.05, 0, 1.2, -1.5, 0.38, 0.18)},
    "twin": {"cap": CAP, "tail_": (1.02, -0.25, -0.2, 1.4, 1.4, -0.3, 0.36, 0.15)},
    "bun": {"cap": CAP, "tail_r": (0, -1.1, -0.4, 0, -1.2, -0.4, 0.46, 0.46)},
    "buns": {"cap": CAP, "tail_": (0.72, -0.95, -0.15, 0.78, -1.0, -0.15, 0.42, 0.42)},
    "afro": {"cap": (0, -0.30, -0.24, 0, -0.2, -0.26, 1.38, 1.34)},
    "crest": {"cap": CAP, "tail_r": (0, -1.0, 0.5, 0, -0.85, -0.8, 0.34, 0.30)},
}
FLAT_HAIR = 5  # styles before this one fit under a hat
FRINGE = {
    "none": {},
    "full": {"fringe": (-0.5, -0.56, 0.66, 0.5, -0.56, 0.66, 0.34, 0.34)},
    "parted": {"fringe": (-0.08, -0.82, 0.54, -0.80, -0.22, 0.50, 0.30, 0.20),
               "fringe2": (0.08, -0.82, 0.54, 0.80, -0.22, 0.50, 0.30, 0.20)},
    "swept": {"fringe": (0.45, -0.78, 0.50, -0.70, -0.34, 0.62, 0.34, 0.22),
              "fringe2": (0.5, -0.75, 0.48, 0.84, -0.2, 0.42, 0.26, 0.16)},
}
HAT = {
    "none": {},
    "cap": {"hat": (0, -0.42, -0.08, 0, -0.38, -0.10, 1.03, 1.05),
            "hat2": (-0.40, -0.52, 1.02, 0.40, -0.52, 1.02, 0.20, 0.20)},
    "beanie": {"hat": (0, -0.42, -0.10, 0, -0.38, -0.10, 1.04, 1.06),
               "hat2": (0, -1.52, -0.15, 0, -1.56, -0.15, 0.25, 0.25)},
    "bow": {"hat2": (-0.12, -1.10, 0.30, -0.52, -1.26, 0.28, 0.10, 0.24),
            "hat3": (0.12, -1.10, 0.30, 0.52, -1.26, 0.28, 0.10, 0.24)},
    "cat": {"hat2": (-0.52, -0.85, 0.0, -0.80, -1.42, 0.0, 0.34, 0.06),
            "hat3": (0.52, -0.85, 0.0, 0.80, -1.42, 0.0, 0.34, 0.06)},
    "bunny": {"hat2": (-0.32, -0.95, -0.05, -0.44, -1.62, -0.1, 0.19, 0.14),
              "hat3": (0.32, -0.95, -0.05, 0.44, -1.62, -0.1, 0.19, 0.14)},
}
SKIN = ((1.00, 0.87, 0.77), (0.95, 0.76, 0.61), (0.78, 0.55, 0.40), (0.55, 0.36, 0.25), (0.40, 0.26, 0.19))
NATURAL_HAIR = ((0.13, 0.11, 0.12), (0.30, 0.18, 0.11), (0.48, 0.28, 0.14), (0.88, 0.70, 0.38), (0.72, 0.32, 0.12),
                (0.78, 0.77, 0.78))
PATTERNS = ((0, 0, 0, -9), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 0, 0, -0.5), (0.6, 0.6, 0, -0.3))
BACKDROPS = ((1, 0, 0, 0, 0), (0.6, 0.5, 0, 0, 0), (0, 0, 1, 0, 0), (0.3, 0, 0, 1, 0), (0.7, 0, 0, 0, 1))


class Lots:
    """Independent uniform numbers by name: `lots("height", 0.9, 1.1)` is float64 (b,), one for each of b seeds."""

    def __init__(self, seeds):
        self.state = _mix(seeds)

    def __call__(self, name, low=0.0, high=1.0):
        bits = _mix(self.state + zlib.crc32(name.encode()))
        return low + (high - low) * (_shift(bits, 11).double() * 2.0**-53)

    def pick(self, name, weights):
        """Long (b,): numbers of the options, drawn with these weights."""
        edges = torch.tensor(weights, dtype=torch.float64).cumsum(0)
        return torch.bucketize(self(name) * edges[-1], edges[:-1], right=True)

    def colour(self, name, saturation, value):
        """RGB in [0, 1], float64 (b, 3), of any hue, with saturation and value from the given ranges."""
        saturation = self(name + " saturation", *saturation)[:, None]
        k = (torch.tensor((5.0, 3.0, 1.0), dtype=torch.float64) + 6 * self(name + " hue")[:, None]) % 6
        return self(name + " value", *value)[:, None] * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1))


def _shift(x, count):
    return (x >> count) & ((1 << (64 - count)) - 1)


def _mix(x):
    """SplitMix64's output function (Steele, Lea and Flood 2014) in wrapping int64."""
    x = x * -7046029254386353131 + 1013904223
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _of(options, number):
    return torch.tensor(options, dtype=torch.float64)[number]


def _headwear(hair, fringe, hat):
    """The rows above for b characters, float64 (b, parts of HEADWEAR, 8); both radii -1 where there is nothing."""
    worn = torch.tensor([0, 0, 0, 0, 0, 0, -1, -1], dtype=torch.float64).expand(len(hair), len(HEADWEAR), 8)
    for kind, number in ((HAIR, hair), (FRINGE, fringe), (HAT, hat)):
        rows = torch.zeros(len(kind), len(HEADWEAR), 8, dtype=torch.float64)
        for at, parts in enumerate(kind.values()):
            for part, row in parts.items():
                for side, sign in (("r", -1), ("l", 1)) if part.endswith("_") else (("", 1),):
                    mirrored = (sign * row[0], *row[1:3], sign * row[3], *row[4:])
                    rows[at, HEADWEAR.index(part + side)] = torch.tensor(mirrored, dtype=torch.float64)
        rows = rows[number]
        worn = torch.where(rows[..., 6:7] > 0, rows, worn)
    return worn


def people(seeds):
    """Measures and looks of b characters from int64 seeds (b,): dict of float64 tensors (b, ...), and their Looks."""
    lots = Lots(seeds)
    tall, thick, width = lots("tall", 1.0, 1.14), lots("thick", 0.9, 1.18), lots("width", 0.88, 1.14)
    leg = lots("leg", 0.23, 0.27) * tall
    hair, hat = lots.pick("hair", (3, 3, 3, 2, 2, 1, 1, 1, 1)), lots.pick("hat", (12, 3, 3, 2, 2, 1))
    hair = torch.where(((hat == 1) | (hat == 2)) & (hair >= FLAT_HAIR), 0, hair)
    bottom = lots.pick("bottom", (4, 3, 3, 2))  # trousers, shorts, skirt, dress
    pack, scarf = lots("pack") < 0.3, lots("scarf") < 0.18
    body = {
        "thigh": leg, "shin": leg, "trunk": 0.36 * tall, "arm": 0.215 * tall, "fore": 0.20 * tall,
        "head": lots("head", 0.245, 0.285), "wide": 0.155 * width, "deep": 0.125 * width, "thick": thick,
        "headwear": _headwear(hair, lots.pick("fringe", (2, 4, 3, 4)), hat),
        "skirt": torch.where(bottom >= 2, 1.0, -1.0), "pack": torch.where(pack, 1.0, -1.0),
        "scarf": torch.where(scarf, 1.0, -1.0),
    }
    return body, _looks(lots, body, hat, bottom)


def _looks(lots, body, hat, bottom):
    """Colours and patterns for the parts."""
    count = len(hat)
    tone = lots("skin") * (len(SKIN) - 1)
    low = tone.floor().long()
    skin = _of(SKIN, low) + (tone - low)[:, None] * (_of(SKIN, low + 1) - _of(SKIN, low))
    dyed = (lots("dyed") < 0.45)[:, None]
    hair = torch.where(dyed, lots.colour("hair", (0.3, 0.8), (0.4, 0.95)),
                       _of(NATURAL_HAIR, lots.pick("hair colour", (1,) * len(NATURAL_HAIR))))
    top, top2 = lots.colour("top", (0.2, 0.9), (0.35, 1.0)), lots.colour("top2", (0.1, 0.9), (0.15, 1.0))
    low_, low2 = lots.colour("bottom", (0.15, 0.85), (0.2, 0.95)), lots.colour("bottom2", (0.1, 0.9), (0.15, 1.0))
    shoe, sock = lots.colour("shoe", (0.1, 0.9), (0.15, 0.95)), lots.colour("sock", (0.0, 0.8), (0.2, 1.0))
    extra, pack = lots.colour("extra", (0.4, 0.9), (0.5, 1.0)), lots.colour("pack", (0.3, 0.9), (0.25, 0.9))
    eye = lots.colour("eye", (0.5, 0.95), (0.25, 0.6))
    texture = torch.zeros(len(TEXTURE), count, len(PARTS), dtype=torch.float64)

    def dye(parts, colour, second=None, pattern=None, third=None, split=9.0, span=0.2, cap=0.06, bands=5):
        """Set the texture of some parts; span: length of the axis, cap: radius, bands: stripes around, split: ..."""
        number, rate = pattern if pattern is not None else (torch.zeros(count, dtype=torch.long), torch.ones(count))
        gain = 1 / (4 * torch.maximum(rate, torch.as_tensor(bands / (2 * math.pi * cap))))
        columns = (*colour.T, *(colour if second is None else second).T, *(colour if third is None else third).T,
                   *_of(PATTERNS, number).T, rate, bands, gain, span, cap, split)
        for part in parts.split():
            for row, value in enumerate(columns):
                texture[row, :, PARTS.index(part)] = torch.as_tensor(value, dtype=torch.float64)

    weights = (4, 3, 3, 3, 2, 2)
    worn = lots.pick("top pattern", weights), lots("top rate", 3.2, 5.5)
    lower = lots.pick("bottom pattern", weights), lots("bottom rate", 3.2, 5.5)
    dress = (bottom == 3)[:, None]
    under, under2 = torch.where(dress, top, low_), torch.where(dress, top2, low2)
    lower = tuple(torch.where(bottom == 3, a, b) for a, b in zip(worn, lower, strict=True))

    head, wide = body["head"], body["wide"]
    dye("head ear_r ear_l neck", skin, cap=head, span=0.15 * head)
    strands = torch.full((count,), 2), torch.ones(count)
    dye(" ".join(HEADWEAR[:8]), hair, hair * 0.86, strands, cap=head, bands=7)
    hat_knit = torch.where(hat == 2, 1, 0), torch.full((count,), 6.0)
    hat_colour = torch.where((hat >= 4)[:, None], hair * 0.8, extra)
    dye("hat hat2 hat3", hat_colour, torch.where((hat == 2)[:, None], top, hat_colour), hat_knit, cap=head)
    dye("torso", top, top2, worn, span=body["trunk"] - 0.07, cap=wide)
    dye("hips", under, under2, lower, span=0.06, cap=wide)
    dye("skirt", under, under2, lower, span=0.3, cap=wide * 1.3, bands=6)
    dye("pack", pack, pack * 0.6, (strands[0] - 1, strands[1] * 5), cap=0.13, span=0.2)
    dye("scarf scarf2", extra, torch.where(dyed, hair, top2), (strands[0] - 1, strands[1] * 7), cap=0.06, span=0.16)

    arm, fore, thigh, shin = (body[n] for n in ("arm", "fore", "thigh", "shin"))
    sleeve = _of((-9.0, 0.5, 1.25, 9.0), lots.pick("sleeve", (2, 4, 2, 5))) * arm
    dye("arm_r arm_l", top, top2, worn, skin, sleeve, arm, 0.062, 2)
    dye("fore_r fore_l", top, top2, worn, skin, torch.where(sleeve > arm, sleeve - arm, -9), fore, 0.055, 2)
    dye("hand_r hand_l", skin)
    bare = (bottom > 0)[:, None]
    leg_end = _of((9.0, 0.6, -9.0, -9.0), bottom)
    dye("thigh_r thigh_l", under, under2, lower, skin, leg_end * thigh, thigh, 0.085, 3)
    sock_end = shin * (1 - _of((-9.0, 0.3, 0.75), lots.pick("sock length", (3, 2, 2))))
    dye("shin_r shin_l", torch.where(bare, skin, under), torch.where(bare, skin, under2), lower, sock, sock_end, shin,
        0.068, 3)
    dye("foot_r foot_l", shoe)

    brow = hair * 0.55
    size = lots("eye size", 0.9, 1.2)
    glasses = lots("glasses") < 0.16
    face = torch.stack([*eye.T, *brow.T, lots("eye x", 0.36, 0.44), lots("eye y", 0.08, 0.16), 0.13 * size,
                        0.19 * size, lots("mouth", 0.12, 0.24), lots("smile", -0.4, 2.2),
                        lots("blush", 0.0, 0.6), glasses.double()])
    front = lots.pick("chest", (4, 3, 2))
    straps = body["pack"] > 0
    badge = torch.where(straps[:, None], pack * 0.8, extra)
    chest = torch.stack([*badge.T, (front == 1).double() * ~straps, (front == 2).double() * ~straps, straps.double()])
    back = [lots.colour(name, (0.0, 0.33), (0.6, 1.0)) for name in ("backdrop", "backdrop2")]
    kind = _of(BACKDROPS, lots.pick("backdrop kind", (2, 2, 2, 3, 1)))
    behind = torch.stack([*back[0].T, *back[1].T, *kind.T])
    tables = (texture, face, chest, behind)
    names = (TEXTURE, FACE, CHEST, BACKDROP)
    assert all(len(t) == len(n) for t, n in zip(tables, names, strict=True))
    return Looks(*(t.float() for t in tables), head=PARTS.index("head"), torso=PARTS.index("torso"))
