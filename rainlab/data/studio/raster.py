"""Tapered capsules in, pictures with exact depth and optical flow out.

A figure is P tapered capsules per frame, given in pixels (x right, y down, z towards the viewer; the centre of pixel
(row i, column j) is the point x=j, y=i). A point of a capsule's surface has three material coordinates that it keeps
while the capsule moves: `t` in [0, 1] along the axis, `e` in [-1, 1] out into the end caps (in radii), and the angle
around the axis. Textures are functions of these alone, and the flow moves them to the next frame's capsule, so that
picture and flow agree by construction.

Per pixel only + - * / sqrt, floor, comparisons and clamps are used, one kernel each: these are exactly rounded, so
that neither the batch nor the processor's instruction set changes them. (`lerp`, `addcmul`, `sum`, sin, asin are not;
what enters a picture through them, once a capsule, may differ in its last bit between processors.)
"""

from dataclasses import dataclass

import torch

NOTHING = 255  # stands for the background where capsules have their numbers
GEOMETRY = ("x", "y", "z", "dx", "dy", "length", "dz", "r", "dr", "flat", "shear", "blunt", "sin", "cos")


@dataclass(frozen=True)
class Shapes:
    """P capsules in n frames: `geometry` float32 (14, n, P), rows named in GEOMETRY, and `roll` float64 (n, P).

    dx, dy: the axis' unit direction in the picture; length: its length there; dz, dr: what z and the radius gain
    along it; sin, cos: of the roll. The rest as for `shapes`.
    """

    geometry: torch.Tensor
    roll: torch.Tensor

    def frames(self, part):
        """The shapes of some frames, by their numbers (m,)."""
        return Shapes(self.geometry[:, part], self.roll[part])


def shapes(start, end, radius, flat, shear, blunt, roll):
    """Shapes from float64 start, end (n, P, 3), radius (n, P, 2), all in pixels, and (n, P) each of the others.

    radius: at both ends; one that is not positive leaves the capsule out. flat, shear: the surface stands
    flat * r * cos(angle) + shear * r * sin(angle) before the axis. blunt: end caps are r / blunt high. roll: by how
    many radians the material is turned about the axis; at 0 its angle 0 faces the viewer, and a quarter turn is to
    the right of an axis that points down.
    """
    step = end - start
    step[..., 1] += 1e-4  # an axis that points at the viewer still needs a direction
    length = (step[..., 0] ** 2 + step[..., 1] ** 2).sqrt()
    axis = [*start.unbind(-1), step[..., 0] / length, step[..., 1] / length, length, step[..., 2]]
    shape = [radius[..., 0], radius[..., 1] - radius[..., 0], flat, shear, blunt]
    return Shapes(torch.stack([*axis, *shape, roll.sin(), roll.cos()]).float(), roll)


def _boxes(g, height, width):
    """First rows and columns (n, P) of the capsules' boxes in the picture, and P box sizes: the largest frame's."""
    x, y, dx, dy, length, r, dr = (g[GEOMETRY.index(k)] for k in ("x", "y", "dx", "dy", "length", "r", "dr"))
    there = r > 0
    ends = []
    for p, d, limit in ((y, dy, height), (x, dx, width)):
        q = p + d * length
        low = (torch.minimum(p - r, q - r - dr) - 0.5).ceil().clamp(0, limit)
        high = (torch.maximum(p + r, q + r + dr) + 1.5).floor().clamp(0, limit)
        ends.append((low, (high - low).clamp(min=0) * there))
    empty = (ends[0][1] == 0) | (ends[1][1] == 0)
    firsts, sizes = [], []
    for (low, span), limit in zip(ends, (height, width), strict=True):
        size = span.masked_fill(empty, 0).amax(0)
        firsts.append(torch.minimum(low, limit - size).long())
        sizes.append(size.long().tolist())
    return firsts, list(zip(*sizes, strict=True))


def cover(figure, height, width):
    """The two foremost surfaces of every pixel: dicts front, back of `k` uint8, `a` coverage, `z`, each (n, h·w).

    Of what lies behind the front one the most opaque is kept, the nearer one of equals.
    """
    g = figure.geometry
    n = g.shape[1]
    (top, left), sizes = _boxes(g, height, width)
    empty = {
        "k": torch.full((n, height * width), NOTHING, dtype=torch.uint8),
        "a": torch.zeros(n, height * width),
        "z": torch.full((n, height * width), -1e9),
    }
    front, back = empty, {name: plane.clone() for name, plane in empty.items()}
    for k, (rows, columns) in enumerate(sizes):
        if not rows:
            continue
        i, j = top[:, k, None] + torch.arange(rows), left[:, k, None] + torch.arange(columns)
        where = (i[:, :, None] * width + j[:, None]).view(n, -1)
        c = dict(zip(GEOMETRY, g[:, :, k, None, None], strict=True))
        qx, qy = j[:, None].float() - c["x"], i[:, :, None].float() - c["y"]
        along = qx * c["dx"] + qy * c["dy"]
        inner = along.clamp(min=0).minimum(c["length"])
        across = qx * c["dy"] - qy * c["dx"]
        over = (along - inner) * c["blunt"]
        t = inner / c["length"]
        r = c["r"] + t * c["dr"]
        d2 = over * over + across * across
        a = (r + 0.5 - d2.sqrt()).clamp(0, 1)
        z = c["z"] + t * c["dz"] + c["flat"] * (r * r - d2).clamp(min=0).sqrt() + c["shear"] * across
        a, z = a.view(n, -1), z.view(n, -1)
        old, under = ({name: layer[name].gather(1, where) for name in "kaz"} for layer in (front, back))
        ahead = (a > 0) & (z > old["z"])
        new = {"k": torch.full((), k, dtype=torch.uint8), "a": a, "z": z}
        second = {name: torch.where(ahead, old[name], new[name]) for name in "kaz"}
        better = (second["a"] > under["a"]) | ((second["a"] == under["a"]) & (second["z"] > under["z"]))
        for name in "kaz":
            front[name].scatter_(1, where, torch.where(ahead, new[name], old[name]))
            back[name].scatter_(1, where, torch.where(better, second[name], under[name]))
    return front, back


def winner(front, back):
    """The surface that owns each pixel, uint8 (n, h·w), NOTHING where the background does, and its z."""
    first, second = front["a"] >= 0.5, back["a"] >= 0.5
    nothing = torch.full((), NOTHING, dtype=torch.uint8)
    k = torch.where(first, front["k"], torch.where(second, back["k"], nothing))
    return k, torch.where(first, front["z"], back["z"])


def surface(g, px, py):
    """Material coordinates (t, e, sin, cos of the angle seen from here) of the points px, py of capsules g."""
    qx, qy = px - g["x"], py - g["y"]
    along, across = qx * g["dx"] + qy * g["dy"], qx * g["dy"] - qy * g["dx"]
    inner = along.clamp(min=0).minimum(g["length"])
    t = inner / g["length"]
    r = g["r"] + t * g["dr"]
    e = ((along - inner) * g["blunt"] / r).clamp(-1, 1)
    s = (across / (r * (1 - e * e).sqrt()).clamp(min=1e-3)).clamp(-1, 1)
    return t, e, s, (1 - s * s).sqrt()


def place(g, t, e, s):
    """Where in the picture the surface point with these coordinates lies: the inverse of `surface`."""
    r = g["r"] + t * g["dr"]
    along, across = t * g["length"] + e * r / g["blunt"], s * (r * (1 - e * e).sqrt())
    return g["x"] + along * g["dx"] + across * g["dy"], g["y"] + along * g["dy"] - across * g["dx"]


def turned(s, c, sin, cos):
    """Sine and cosine of an angle less another one."""
    return s * cos - c * sin, c * cos + s * sin


def flow(figure, owner, now, then, height, width):
    """Exact motion of what is seen in frames `now` (m,) to frames `then` (m,).

    Returns float32 (m, h·w, 2) in pixels (x, y), and bool (m, h·w): the surface point is still seen in `then`: inside
    the picture, on the side that faces the viewer, and the pixel nearest to it belongs to the same capsule.
    """
    m, pixels = len(now), height * width
    g, count = figure.geometry, figure.geometry.shape[2]
    k = owner[now].view(-1)
    at = (k != NOTHING).nonzero()[:, 0]
    pair, pixel = at // pixels, at % pixels
    capsule = k[at].long()
    first = dict(zip(GEOMETRY, g.flatten(1)[:, now[pair] * count + capsule], strict=True))
    last = dict(zip(GEOMETRY, g.flatten(1)[:, then[pair] * count + capsule], strict=True))
    turn = figure.roll[now] - figure.roll[then]
    sin, cos = (f(turn).float().view(-1)[pair * count + capsule] for f in (torch.sin, torch.cos))
    t, e, s, c = surface(first, (pixel % width).float(), (pixel // width).float())
    s_then, c_then = turned(s, c, sin, cos)
    (x0, y0), (x1, y1) = place(first, t, e, s), place(last, t, e, s_then)
    motion = torch.zeros(m * pixels, 2)
    motion[at] = torch.stack([x1 - x0, y1 - y0], 1)
    j, i = ((pixel % width).float() + x1 - x0 + 0.5).floor(), ((pixel // width).float() + y1 - y0 + 0.5).floor()
    inside = (j >= 0) & (j < width) & (i >= 0) & (i < height)
    target = then[pair] * pixels + (i.clamp(0, height - 1) * width + j.clamp(0, width - 1)).long()
    seen = owner[then].view(-1) == NOTHING
    seen[at] = inside & (c_then >= 0) & (owner.view(-1)[target] == k[at])
    return motion.view(m, pixels, 2), seen.view(m, pixels)
