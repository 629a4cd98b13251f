"""Who the characters are: measures, hair, clothes and colours, each from an integer hash of (seed, parameter's name),
so that no character depends on the others of its batch.

Lengths are in units of half the picture's height.
"""

import math
import zlib

import torch

from rainlab.data.studio.paint import Looks

# The capsules of a character. A trailing _r or _l is its own right or left.
PARTS = tuple(
    (
        "head cap fringe_r fringe_l back side_r side_l tail_r tail_l ear_r ear_l hat trim_r trim_l neck torso hips "
        "skirt pack scarf scarf2 arm_r fore_r hand_r arm_l fore_l hand_l thigh_r shin_r foot_r thigh_l shin_l foot_l"
    ).split()
)
HEADWEAR = tuple("cap fringe_r fringe_l back side_r side_l tail_r tail_l hat trim_r trim_l".split())

# In head radii about the head's centre (x right, y down, z to the front): x y z of both ends, both radii, and depth as
# a share of the width. All is solid: the hairline is where cap and head cross. A name ending in _ is a mirrored pair.
# fmt: off
CAP = (0, -0.20, -0.20, 0, -0.04, -0.26, 1.07, 1.03, 1)
HAIR = {
    "short": {"cap": CAP},
    "bob": {"cap": CAP, "back": (0, 0.0, -0.40, 0, 0.5, -0.40, 1.08, 0.98, 0.7),
            "side_": (0.84, 0.0, 0.12, 0.86, 0.66, 0.15, 0.24, 0.20, 1)},
    "long": {"cap": CAP, "back": (0, 0.1, -0.55, 0, 1.6, -0.70, 1.04, 0.86, 0.5),
             "side_": (0.86, 0.0, 0.12, 0.92, 1.3, 0.2, 0.24, 0.14, 1)},
    "pony": {"cap": CAP, "tail_r": (0, -0.45, -1.05, 0, 1.2, -1.5, 0.38, 0.18, 1)},
    "twin": {"cap": CAP, "tail_": (1.02, -0.25, -0.2, 1.4, 1.4, -0.3, 0.36, 0.15, 1)},
    "bun": {"cap": CAP, "tail_r": (0, -1.1, -0.4, 0, -1.2, -0.4, 0.46, 0.46, 1)},
    "buns": {"cap": CAP, "tail_": (0.72, -0.95, -0.15, 0.78, -1.0, -0.15, 0.42, 0.42, 1)},
    "afro": {"cap": (0, -0.30, -0.24, 0, -0.2, -0.26, 1.38, 1.34, 1)},
    "crest": {"cap": CAP, "tail_r": (0, -1.0, 0.5, 0, -0.85, -0.8, 0.34, 0.30, 1)},
}
FLAT_HAIR = 5  # styles before this one fit under a hat
FRINGE = {
    "none": {},
    "full": {"fringe_r": (-0.5, -0.56, 0.66, 0.5, -0.56, 0.66, 0.34, 0.34, 1)},
    "parted": {"fringe_": (0.08, -0.82, 0.54, 0.80, -0.22, 0.50, 0.30, 0.20, 1)},
    "swept": {"fringe_r": (0.45, -0.78, 0.50, -0.70, -0.34, 0.62, 0.34, 0.22, 1),
              "fringe_l": (0.5, -0.75, 0.48, 0.84, -0.2, 0.42, 0.26, 0.16, 1)},
}
HAT = {
    "none": {},
    "cap": {"hat": (0, -0.50, -0.08, 0, -0.44, -0.12, 1.09, 1.11, 1),
            "trim_r": (-0.36, -0.38, 1.10, 0.36, -0.38, 1.10, 0.21, 0.21, 1)},
    "beanie": {"hat": (0, -0.50, -0.10, 0, -0.44, -0.12, 1.09, 1.11, 1),
               "trim_r": (0, -1.66, -0.15, 0, -1.70, -0.15, 0.25, 0.25, 1)},
    "bow": {"trim_": (0.12, -1.10, 0.30, 0.52, -1.26, 0.28, 0.10, 0.24, 1)},
    "cat": {"trim_": (0.52, -0.85, 0.0, 0.80, -1.42, 0.0, 0.34, 0.06, 0.6)},
    "bunny": {"trim_": (0.32, -0.95, -0.05, 0.44, -1.62, -0.1, 0.19, 0.14, 0.6)},
}
SKIN = ((1.00, 0.87, 0.77), (0.95, 0.76, 0.61), (0.78, 0.55, 0.40), (0.55, 0.36, 0.25), (0.40, 0.26, 0.19))
NATURAL_HAIR = ((0.13, 0.11, 0.12), (0.30, 0.18, 0.11), (0.48, 0.28, 0.14), (0.88, 0.70, 0.38), (0.72, 0.32, 0.12),
                (0.78, 0.77, 0.78))
# fmt: on
# Weights of rings across the axis, stripes along it, checks, and a bias (against the second colour), as in `paint`.
PATTERNS = {
    "plain": (0, 0, 0, -9),
    "rings": (1, 0, 0, 0),
    "stripes": (0, 1, 0, 0),
    "checks": (0, 0, 1, 0),
    "thin rings": (1, 0, 0, -0.5),
    "diamonds": (0.6, 0.6, 0, -0.3),
}
PATTERN_WEIGHTS = (4, 3, 3, 3, 2, 2)
# Weights of the gradients down and across, the glow, the floor and the bands.
BACKDROPS = ((1, 0, 0, 0, 0), (0.6, 0.5, 0, 0, 0), (0, 0, 1, 0, 0), (0.3, 0, 0, 1, 0), (0.7, 0, 0, 0, 1))
NEVER = 9.0  # a length beyond every part's end


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


def people(seeds):
    """b characters from int64 seeds (b,): their measures, a dict of float64 (b,) and "headwear" (b, 11, 9), and Looks.

    Measures "skirt", "pack" and "scarf" are 1 where worn, else -1; "deep" is the trunk's depth as a share of its width.
    """
    lots = Lots(seeds)
    tall = lots("tall", 1.0, 1.14)
    hair, fringe = lots.pick("hair", (3, 3, 3, 2, 2, 1, 1, 1, 1)), lots.pick("fringe", (2, 4, 3, 4))
    hat = lots.pick("hat", (12, 3, 3, 2, 2, 1))
    covered = (hat == 1) | (hat == 2)
    hair, fringe = torch.where(covered & (hair >= FLAT_HAIR), 0, hair), torch.where(covered, 0, fringe)
    bottom = lots.pick("bottom", (4, 3, 3, 2))  # trousers, shorts, skirt, dress
    body = {
        "leg": lots("leg", 0.23, 0.27) * tall,
        "trunk": 0.36 * tall,
        "arm": 0.215 * tall,
        "fore": 0.20 * tall,
        "head": lots("head", 0.245, 0.285),
        "wide": 0.155 * lots("width", 0.88, 1.14),
        "deep": lots("deep", 0.72, 0.88),
        "thick": lots("thick", 0.9, 1.18),
        "headwear": _headwear((HAIR, hair), (FRINGE, fringe), (HAT, hat)),
        "skirt": torch.where(bottom >= 2, 1.0, -1.0),
        "pack": torch.where(lots("pack") < 0.3, 1.0, -1.0),
        "scarf": torch.where(lots("scarf") < 0.18, 1.0, -1.0),
    }
    skin, hair_colour = _skin(lots), _hair(lots)
    extra, pack = lots.colour("extra", (0.4, 0.9), (0.5, 1.0)), lots.colour("pack", (0.3, 0.9), (0.25, 0.9))
    clothes = _clothes(lots, body, hat, bottom, skin, hair_colour, extra, pack)
    backdrop = torch.cat(
        [
            lots.colour("backdrop", (0.0, 0.33), (0.6, 1.0)),
            lots.colour("backdrop2", (0.0, 0.33), (0.6, 1.0)),
            _pick(BACKDROPS, lots.pick("backdrop kind", (2, 2, 2, 3, 1))),
        ],
        1,
    ).T
    looks = (clothes, _face(lots, hair_colour), _chest(lots, body["pack"] > 0, extra, pack), backdrop)
    return body, Looks(*(table.float() for table in looks), head=PARTS.index("head"), torso=PARTS.index("torso"))


def _pick(options, number):
    return torch.tensor(options, dtype=torch.float64)[number]


def _headwear(*choices):
    """Rows for b characters, float64 (b, 11 parts of HEADWEAR, 9), of (table, number (b,)) pairs; radii -1: nothing."""
    worn = torch.tensor([0, 0, 0, 0, 0, 0, -1, -1, 1], dtype=torch.float64)
    for kinds, number in choices:
        rows = torch.zeros(len(kinds), len(HEADWEAR), 9, dtype=torch.float64)
        for kind, parts in enumerate(kinds.values()):
            for part, row in parts.items():
                for side, sign in (("r", -1), ("l", 1)) if part.endswith("_") else (("", 1),):
                    mirrored = (sign * row[0], *row[1:3], sign * row[3], *row[4:])
                    rows[kind, HEADWEAR.index(part + side)] = torch.tensor(mirrored, dtype=torch.float64)
        worn = torch.where(rows[number][..., 6:7] > 0, rows[number], worn)
    return worn


def _skin(lots):
    tone = lots("skin") * (len(SKIN) - 1)
    light = tone.floor().long()
    return _pick(SKIN, light) + (tone - light)[:, None] * (_pick(SKIN, light + 1) - _pick(SKIN, light))


def _hair(lots):
    natural = _pick(NATURAL_HAIR, lots.pick("hair colour", (1,) * len(NATURAL_HAIR)))
    return torch.where(lots("dyed")[:, None] < 0.45, lots.colour("hair", (0.3, 0.8), (0.4, 0.95)), natural)


def texture(span, radius, colour, second=None, pattern=("plain", 1.0), stripes=5, end=None, split=NEVER):
    """Columns of `paint.TEXTURE`, float64 (19, b), of a part with an axis of length span, and that radius.

    colour, second: (b, 3); pattern: a name or numbers (b,) of PATTERNS, and how many rings there are to a unit of
    length; stripes: how many around; end: another colour, beyond the length split.
    """
    kind, rate = pattern
    weights = torch.tensor(PATTERNS[kind]) if isinstance(kind, str) else _pick(tuple(PATTERNS.values()), kind)
    rate, radius = torch.as_tensor(rate, dtype=torch.float64), torch.as_tensor(radius, dtype=torch.float64)
    gain = 1 / (4 * torch.maximum(rate, stripes / (2 * math.pi * radius)))
    colours = (colour, colour if second is None else second, colour if end is None else end)
    columns = [c for three in colours for c in three.T]
    columns += [*weights.unbind(-1), rate, stripes, gain, span, radius, split]
    return torch.stack([torch.as_tensor(c, dtype=torch.float64).expand(len(colour)) for c in columns])


def _clothes(lots, body, hat, bottom, skin, hair, extra, pack):
    """Textures of all PARTS, float64 (19, b, P)."""
    head, wide, arm, fore, leg = (body[name] for name in ("head", "wide", "arm", "fore", "leg"))
    top, top2 = lots.colour("top", (0.2, 0.9), (0.35, 1.0)), lots.colour("top2", (0.1, 0.9), (0.15, 1.0))
    low, low2 = lots.colour("bottom", (0.15, 0.85), (0.2, 0.95)), lots.colour("bottom2", (0.1, 0.9), (0.15, 1.0))
    shoe, sock = lots.colour("shoe", (0.1, 0.9), (0.15, 0.95)), lots.colour("sock", (0.0, 0.8), (0.2, 1.0))
    upper = lots.pick("top pattern", PATTERN_WEIGHTS), lots("top rate", 3.2, 5.5)
    lower = lots.pick("bottom pattern", PATTERN_WEIGHTS), lots("bottom rate", 3.2, 5.5)
    dress, beanie, bare = bottom == 3, (hat == 2)[:, None], (bottom > 0)[:, None]  # bare: below the knees
    low, low2 = torch.where(dress[:, None], top, low), torch.where(dress[:, None], top2, low2)
    lower = tuple(torch.where(dress, u, w) for u, w in zip(upper, lower, strict=True))
    shin, shin2 = torch.where(bare, skin, low), torch.where(bare, skin, low2)
    hat_colour = torch.where((hat >= 4)[:, None], hair * 0.8, extra)  # animals' ears are of the hair's colour
    knit = torch.where(hat == 2, 1, 0), 6.0

    sleeve = _pick((-NEVER, 0.5, 1.25, NEVER), lots.pick("sleeve", (2, 4, 2, 5))) * arm
    cuff = torch.where(sleeve > arm, sleeve - arm, -NEVER)
    trouser = _pick((NEVER, 0.6, -NEVER, -NEVER), bottom) * leg
    stocking = leg * (1 - _pick((-NEVER, 0.3, 0.75), lots.pick("sock length", (3, 2, 2))))
    textures = {
        "head ear_r ear_l neck": texture(0.15 * head, head, skin),
        " ".join(HEADWEAR[:8]): texture(0.2, head, hair, hair * 0.86, ("stripes", 1.0), 7),
        "hat trim_r trim_l": texture(0.2, head, hat_colour, torch.where(beanie, top, hat_colour), knit),
        "torso": texture(body["trunk"] - 0.07, wide, top, top2, upper),
        "hips": texture(0.06, wide, low, low2, lower),
        "skirt": texture(0.3, wide * 1.3, low, low2, lower, 6),
        "pack": texture(0.2, 0.13, pack, pack * 0.6, ("rings", 5.0)),
        "scarf scarf2": texture(0.16, 0.06, extra, top2, ("rings", 7.0)),
        "arm_r arm_l": texture(arm, 0.062, top, top2, upper, 2, skin, sleeve),
        "fore_r fore_l": texture(fore, 0.055, top, top2, upper, 2, skin, cuff),
        "hand_r hand_l": texture(0.03, 0.06, skin),
        "thigh_r thigh_l": texture(leg, 0.085, low, low2, lower, 3, skin, trouser),
        "shin_r shin_l": texture(leg, 0.068, shin, shin2, lower, 3, sock, stocking),
        "foot_r foot_l": texture(0.09, 0.06, shoe),
    }
    of_part = {part: texture for parts, texture in textures.items() for part in parts.split()}
    return torch.stack([of_part[part] for part in PARTS], 2)


def _face(lots, hair):
    """Columns of `paint.FACE`, float64 (14, b)."""
    size = lots("eye size", 0.9, 1.2)
    return torch.stack(
        [
            *lots.colour("eye", (0.5, 0.95), (0.25, 0.6)).T,
            *(hair * 0.55).T,
            lots("eye x", 0.36, 0.44),
            lots("eye y", 0.10, 0.18),
            0.145 * size,
            0.22 * size,
            lots("mouth", 0.12, 0.24),
            lots("smile", -0.4, 2.2),
            lots("blush", 0.0, 0.6),
            (lots("glasses") < 0.16).double(),
        ]
    )


def _chest(lots, straps, extra, pack):
    """Columns of `paint.CHEST`, float64 (6, b): nothing, a badge or a zip; straps with a backpack."""
    front = torch.where(straps, 0, lots.pick("chest", (4, 3, 2)))
    colour = torch.where(straps[:, None], pack * 0.8, extra)
    return torch.stack([*colour.T, (front == 1).double(), (front == 2).double(), straps.double()])
