"""Streets of the studio: trees, lamps and rocks, a character that walks among them, and a camera; with exact depth.

For style transfer (section 5.3): a scene can be drawn in a *style*, and what it looks like in that style is known for
every frame. Depth is what drives a model; who and what is there, and the style, come from its reference.
"""

import math
from dataclasses import dataclass, replace

import torch

from rainlab.data.studio.body import CHUNK
from rainlab.data.studio.motion import GROUND, movement, stage
from rainlab.data.studio.paint import picture, wave
from rainlab.data.studio.people import PARTS, Lots, people, texture
from rainlab.data.studio.raster import NOTHING, cover, flow, shapes, winner

VERSION = 1  # raised when the same seeds give other bytes
HORIZON, EYE = -0.15, 1.03  # where the horizon is and how high the camera stands, in half pictures
WALL = 7.0  # distance of the row of houses that ends the street, in half pictures; the character is 1 to 2 away
NEAR = 0.7  # nothing is drawn nearer to the camera than this
SPREAD = 3.0  # how far apart things stand in depth, in the half pictures that are a unit there: hides crossings
# Capsules of a thing that stands on the ground: both ends (x right, y down, z to the front), both radii, whose colour.
# fmt: off
THINGS = {
    "tree": ((0, 0, 0, 0, -0.9, 0, 0.10, 0.08, "wood"), (-0.16, -1.15, 0, 0.2, -1.25, 0, 0.40, 0.36, "leaf"),
             (0.02, -1.55, 0, 0, -1.5, 0, 0.34, 0.34, "leaf")),
    "pine": ((0, 0, 0, 0, -0.4, 0, 0.09, 0.09, "wood"), (0, -0.45, 0, 0, -1.0, 0, 0.42, 0.18, "leaf"),
             (0, -0.95, 0, 0, -1.6, 0, 0.32, 0.03, "leaf")),
    "bush": ((-0.22, -0.14, 0, 0.2, -0.16, 0, 0.24, 0.22, "leaf"),
             (0, -0.32, 0.02, 0.05, -0.34, 0, 0.20, 0.18, "leaf")),
    "lamp": ((0, 0, 0, 0, -1.5, 0, 0.045, 0.035, "iron"), (0, -1.6, 0, 0, -1.62, 0, 0.13, 0.13, "paint")),
    "rock": ((-0.12, -0.06, 0, 0.14, -0.08, 0, 0.20, 0.24, "stone"),
             (0.02, -0.20, 0.05, 0.06, -0.2, 0, 0.17, 0.15, "stone")),
    "pillar": ((-0.06, 0, 0, -0.06, -0.5, 0, 0.16, 0.15, "paint"),
               (-0.06, -0.62, 0, -0.06, -0.64, 0, 0.2, 0.2, "stone")),
}
# fmt: on
COUNT, MOST = 7, 3  # things in a street, and capsules of one
ROUND = 10.0  # after so many half pictures the street is the same again
STYLES = {
    "plain": {},
    "comic": {"levels": 3.0, "outline": 1.0},
    "duotone": {"palette": 1.0, "levels": 4.0},
    "etching": {"palette": 1.0, "outline": 1.0, "hatching": 1.0},
}
"""What a style does: ``palette`` (0 to 1) replaces colours by a palette's, by how bright they are; ``levels`` of
brightness that are left (0: all); ``outline`` draws the edges of things; ``hatching`` draws shade as lines."""
LIGHTNESS = (0.30, 0.59, 0.11)  # of red, green and blue


@dataclass(frozen=True)
class Scenes:
    """b clips of f frames, h by w pixels, and their ground truth: CPU tensors.

    frames     uint8 (b, f, h, w, 3), RGB, in the clip's style.
    depth      float32 (b, f, h, w), *inverse* depth as MiDaS estimates it, brought to [0, 1]: 1 is near, 0 the far end.
    mask       bool (b, f, h, w): something stands there, no ground or wall.
    flow       float32 (b, f-1, h, w, 2): where the point seen in frame t goes until t+1, in pixels (x, y).
    visible    bool (b, f-1, h, w): that point can still be seen in frame t+1.
    """

    frames: torch.Tensor
    depth: torch.Tensor
    mask: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor


def render(seeds, frames=16, size=(64, 64), fps=12.0, start=0, moving=False, styles=None, pause=None):
    """Render b clips, one for each seed: which street, which character, how it walks and in which style it is drawn.

    seeds: b integers; size: (height, width); fps, start, pause: as `body.render` has them; moving: whether the camera
    passes along the street and goes to and fro, or stands, bool or bool (b,); styles: b seeds of styles, or a name of
    STYLES for all of them; None: the same seeds.

    Returns Scenes. On one machine the same seeds give the same bytes whatever else is in the batch.
    Raises ValueError for no seeds, sizes below 16 pixels, fewer than one frame, fps not positive, or another style.
    """
    seeds = torch.as_tensor(seeds, dtype=torch.int64).view(-1)
    height, width = size
    if not len(seeds) or min(size) < 16 or frames < 1 or fps <= 0:
        expected = "one seed, 16 pixels and one frame at least, fps > 0"
        raise ValueError(f"got {len(seeds)} seeds, size {size}, {frames} frames, fps {fps}; expected {expected}")
    look = style(seeds if styles is None else styles, len(seeds))
    number = start + torch.arange(frames, dtype=torch.float64).expand(len(seeds), frames)
    if pause is not None:
        number = number + torch.as_tensor(pause)[:, None] * (number > start)
    time = number / fps
    clip = torch.arange(len(seeds)).repeat_interleave(frames)
    camera = _camera(seeds, time, moving)
    figure, looks, scale = _figure(seeds, time, clip, camera, size)

    pictures, owners, depths = [], [], []
    ground = _ground(seeds, camera, size)
    for part in torch.arange(len(clip)).split(max(1, CHUNK // (height * width))):
        layers = cover(figure.frames(part), height, width)
        owner, z = winner(*layers)
        behind, far = _behind(ground, clip[part], part, size)
        distance = torch.where(owner == NOTHING, far, -z / (SPREAD * 0.5 * height))
        inverse = (1 / distance.clamp(min=NEAR) - 1 / WALL) / (1 / NEAR - 1 / WALL)
        plain = picture(figure.frames(part), looks, clip[part], behind, layers, size, scale)
        pictures.append(_styled(plain, owner, {name: value[clip[part]] for name, value in look.items()}))
        owners.append(owner)
        depths.append(inverse.clamp(0, 1).float())
    owner = torch.cat(owners)
    now = torch.arange(len(clip)).view(-1, frames)[:, :-1].reshape(-1)
    motion, visible = flow(figure, owner, now, now + 1, height, width)
    _move_ground(motion, visible, ground, owner, now, size)
    shape = (len(seeds), frames, height, width)
    return Scenes(
        frames=torch.cat(pictures).view(*shape, 3),
        depth=torch.cat(depths).view(shape),
        mask=(owner != NOTHING).view(shape),
        flow=motion.view(len(seeds), frames - 1, height, width, 2),
        visible=visible.view(len(seeds), frames - 1, height, width),
    )


def style(which, count):
    """Numbers of ``count`` clips' styles, float32 (b,) each, and "dark", "middle" and "light" (b, 3), a palette.

    which: seeds (b,), or a name of STYLES. ValueError for another name, or another number of seeds.
    """
    named = isinstance(which, str)
    if named and which not in STYLES:
        raise ValueError(f"styles: got {which!r}, expected one of {', '.join(STYLES)}, or a seed for each clip")
    seeds = [7 * [*STYLES].index(which)] * count if named else which
    lots = Lots(torch.as_tensor(seeds, dtype=torch.int64).view(-1))
    if len(lots.state) != count:
        raise ValueError(f"styles: got {len(lots.state)} seeds, expected {count}, one for each clip")
    drawn = {
        "palette": (lots("palette") < 0.5).double(),
        "levels": torch.tensor([0.0, 3.0, 4.0, 6.0])[lots.pick("levels", (3, 1, 1, 1))].double(),
        "outline": (lots("outline") < 0.4).double(),
        "hatching": (lots("hatching") < 0.3).double(),
    }
    if named:
        drawn = {name: torch.full_like(drawn[name], STYLES[which].get(name, 0.0)) for name in drawn}
    colours = {
        "dark": lots.colour("dark", (0.3, 0.9), (0.10, 0.30)),
        "middle": lots.colour("middle", (0.3, 0.9), (0.5, 0.75)),
        "light": lots.colour("light", (0.05, 0.4), (0.9, 1.0)),
    }
    return {name: value.float() for name, value in (drawn | colours).items()}


def _camera(seeds, time, moving):
    """Where the cameras are: how far along the street and into it, float64 (n,) each."""
    lots = Lots(seeds)

    def draw(name, low, high):
        return lots(name, low, high)[:, None] + 0 * time

    speed = draw("camera speed", 0.5, 1.1) * torch.where(draw("camera way", 0, 1) < 0.5, -1.0, 1.0)
    swing = torch.sin(2 * math.pi * (draw("camera rate", 0.08, 0.2) * time + draw("camera phase", 0, 1)))
    moves = torch.as_tensor(moving).view(-1, 1).double()
    along = draw("camera x", -0.5, 0.5) + moves * speed * time
    into = draw("camera z", 0.0, 0.2) + moves * 0.3 * swing
    return along.reshape(-1), into.reshape(-1)


def _figure(seeds, time, clip, camera, size):
    """(Shapes of n frames, Looks of b clips with a texture for every capsule, pixels a unit length half the way in)."""
    lots, (measures, looks) = Lots(seeds), people(seeds)
    body, (along, into) = {name: value[clip] for name, value in measures.items()}, camera
    move = {name: angles.reshape(-1) for name, angles in movement(seeds, time).items()}
    walker, _, _ = stage(body, move)
    on_ground = torch.tensor([0.0, GROUND, 0.0], dtype=torch.float64)
    parts = [walker | {k: walker[k] - on_ground for k in ("start", "end")}]
    x, far = lots("walker", -0.6, 0.6)[clip] + 0.25 * move["x"], lots("walker far", 1.15, 1.7)[clip] - into
    places, textures = [(x, far)], [looks.texture.double()]
    colours = {name: lots.colour(name, (0.2, 0.8), (0.25, 0.8)) for name in ("wood", "leaf", "iron", "paint", "stone")}
    for number in range(COUNT):
        shade = lots(f"shade {number}", 0.8, 1.2)[:, None]
        rows, painted = _thing(lots.pick(f"thing {number}", (1,) * len(THINGS)), colours, shade)
        big, rows = lots(f"big {number}", 0.7, 1.2)[clip][:, None, None], rows[clip]
        radius = torch.where(rows[..., 6:8] > 0, rows[..., 6:8] * big, -1.0)
        one = torch.ones_like(rows[..., 0])
        ends = {"start": rows[..., 0:3] * big, "end": rows[..., 3:6] * big}
        parts.append(ends | {"radius": radius, "blunt": one, "flat": one, "shear": 0 * one, "roll": 0 * one})
        x = lots(f"x {number}", -ROUND / 4, ROUND / 4)[clip]
        x = x + ROUND * ((along - x) / ROUND).round()  # what is left behind stands ahead, too: a street without end
        far = (1.3 + 3.6 * number / COUNT + 0.4 * lots(f"far {number}"))[clip] - into
        places.append((x, far))
        textures.append(painted)
    capsules = {k: torch.cat([part[k] for part in parts], 1) for k in parts[0]}
    each = [part["blunt"].shape[1] for part in parts]
    x, far = (
        torch.cat([place[i][:, None].expand(-1, count) for place, count in zip(places, each, strict=True)], 1)
        for i in (0, 1)
    )
    unit, near, nothing = 0.5 * size[0], far.clamp(min=NEAR), torch.zeros_like(x)
    here = torch.stack([x - along[:, None], nothing + EYE, nothing], -1)
    sunk = torch.stack([nothing, nothing + HORIZON, -SPREAD * near], -1)
    middle = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2, 0.0], dtype=torch.float64)
    pixels = {k: ((capsules[k] + here) / near[..., None] + sunk) * unit + middle for k in ("start", "end")}
    radius = torch.where((far > NEAR)[..., None], capsules["radius"] * unit / near[..., None], -1.0)
    figure = shapes(**{**capsules, **pixels, "radius": radius})
    return figure, replace(looks, texture=torch.cat(textures, 2).float()), torch.tensor(unit / 2)


def _thing(kind, colours, shade):
    """Capsules (b, MOST, 8) and textures (19, b, MOST) of b things in a shade (b, 1); radii of -1: no capsule."""
    rows = torch.zeros(len(THINGS), MOST, 8, dtype=torch.float64)
    rows[..., 6:] = -1
    for i, capsules in enumerate(THINGS.values()):
        for j, capsule in enumerate(capsules):
            rows[i, j] = torch.tensor(capsule[:8], dtype=torch.float64)
    columns = []
    for j in range(MOST):
        own = [capsules[j][8] if j < len(capsules) else "stone" for capsules in THINGS.values()]
        table = torch.stack([colours[name] for name in own])[kind, torch.arange(len(kind))] * shade
        columns.append(texture(0.6, 0.3, table, table * 0.82, ("stripes", 1.0), 5))
    return rows[kind], torch.stack(columns, 2)


def _ground(seeds, camera, size):
    """What `_behind` and `_move_ground` need: the cameras, and colours of ground, wall and sky (b, 3) each."""
    lots = Lots(seeds)
    names = {"ground": ((0.1, 0.5), (0.5, 0.8)), "wall": ((0.05, 0.5), (0.55, 0.9)), "sky": ((0.1, 0.5), (0.8, 1.0))}
    return camera, {name: lots.colour(name, *ranges).float() for name, ranges in names.items()}


def _places(camera, size):
    """Of every pixel's line of sight: where it meets ground or wall, x and distance, float64 (n, h·w), and which."""
    height, width = size
    along, into = (value[:, None] for value in camera)
    pixel = torch.arange(height * width)
    right = ((pixel % width).double() - (width - 1) / 2) / (0.5 * height)
    down = (torch.div(pixel, width, rounding_mode="floor").double() - (height - 1) / 2) / (0.5 * height) - HORIZON
    wall = WALL - into
    met = torch.where(down > 1e-3, EYE / down.clamp(min=1e-3), 1e3)
    ground = met < wall
    far = torch.where(ground, met, wall)
    return right * far + along, far, ground, down * far


def _behind(ground, clip, part, size):
    """Planes (3, m, h·w) of ground, wall and sky, and how far away they are (m, h·w)."""
    (along, into), colours = ground
    x, far, on_ground, down = _places((along[part], into[part]), size)
    colour = {name: value[clip].T[:, :, None] for name, value in colours.items()}
    z = far + into[part][:, None]
    tiles = wave(x * 0.7) * wave(z * 0.7)
    fade = (1.2 / far).clamp(max=1)
    floor = [c * (0.9 + 0.22 * (2.5 * tiles).clamp(-1, 1) * fade).float() for c in colour["ground"]]
    roof = -1.4 - 0.5 * (wave(x * 0.21) > 0.1) - 0.4 * (wave(x * 0.093 + 0.3) > 0)  # of houses that stand in a row
    windows = ((wave(x * 0.9) > 0.2) & (wave(down * 0.9 + 0.2) > 0.2) & (down > roof + 0.25)).float()
    house = (down > roof).float()
    lit = house * (1 - 0.35 * windows)
    above = [lit * w + (1 - house) * s for w, s in zip(colour["wall"], colour["sky"], strict=True)]
    return torch.stack([torch.where(on_ground, f, a) for f, a in zip(floor, above, strict=True)]).float(), far.float()


def _move_ground(motion, visible, ground, owner, now, size):
    """Put into ``motion`` and ``visible`` how ground and wall move as the camera does."""
    height, width = size
    (along, into), _ = ground
    x, far, _, down = _places((along[now], into[now]), size)
    then = (far + (into[now] - into[now + 1])[:, None]).clamp(min=1e-2)
    px = (x - along[now + 1][:, None]) / then * 0.5 * height + (width - 1) / 2
    py = (HORIZON + down / then) * 0.5 * height + (height - 1) / 2
    pixel = torch.arange(height * width)
    step = torch.stack([px - pixel % width, py - torch.div(pixel, width, rounding_mode="floor")], -1).float()
    j, i = (px + 0.5).floor().long(), (py + 0.5).floor().long()
    inside = (j >= 0) & (j < width) & (i >= 0) & (i < height)
    target = i.clamp(0, height - 1) * width + j.clamp(0, width - 1)
    bare = owner[now] == NOTHING
    motion[bare] = step[bare]
    visible[bare] = (inside & (owner[now + 1].gather(1, target) == NOTHING))[bare]


def _styled(frames, owner, look):
    """Frames uint8 (m, h, w, 3) in the styles ``look``, of m frames; owner (m, h·w): whose pixel it is."""
    m, height, width = frames.shape[:3]
    colour = [plane / 255 for plane in frames.float().unbind(-1)]
    own = {name: value[:, None, None] for name, value in look.items()}
    palette, levels, outline, hatching = (own[name] for name in ("palette", "levels", "outline", "hatching"))
    light = sum(share * plane for share, plane in zip(LIGHTNESS, colour, strict=True))
    steps = levels.clamp(min=1)
    coarse = torch.where(levels > 0, ((light * steps).floor() + 0.5) / steps, light)
    ratio = coarse / light.clamp(min=0.02)
    low, high = (2 * coarse).clamp(max=1), (2 * coarse - 1).clamp(min=0)
    made = []
    for c, plane in enumerate(colour):
        dark, middle, bright = (own[name][..., c] for name in ("dark", "middle", "light"))
        toned = dark + low * (middle - dark) + high * (bright - middle)
        made.append((plane * ratio).clamp(0, 1) * (1 - palette) + palette * toned)
    number = (owner.int() - len(PARTS)).clamp(min=-1) // MOST  # -1: the character; beyond COUNT: nothing
    thing = number.view(m, height, width)
    edge = torch.zeros(m, height, width)
    edge[:, :, :-1] += (thing[:, :, 1:] != thing[:, :, :-1]).float()
    edge[:, :-1] += (thing[:, 1:] != thing[:, :-1]).float()
    i, j = torch.arange(height)[:, None], torch.arange(width)
    lines = ((i + j) % 4 == 0).float() * (coarse < 0.55) + ((i - j) % 4 == 0).float() * (coarse < 0.32)
    ink = (outline * edge.clamp(max=1) + hatching * lines).clamp(max=1)
    black = [0.08 + 0.5 * palette * own["dark"][..., c] for c in range(3)]
    made = [plane + ink * (ink_colour - plane) for plane, ink_colour in zip(made, black, strict=True)]
    return (torch.stack(made, -1) * 255 + 0.5).clamp(0, 255).byte()
