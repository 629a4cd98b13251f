"""Clips of procedural characters in motion with exact ground truth: `render` gives frames, key points, mask, depth, flow.

World axes: x to the right of the picture, y down, z towards the viewer; the picture is 2 units high and the centre of
pixel (row i, column j) is the image point (x=j, y=i). A trailing _r or _l is the character's own right or left: a
character that faces the viewer has its right hand at the picture's left.
"""

import math
from dataclasses import dataclass

import torch

from rainlab.studio.paint import picture
from rainlab.studio.people import HEADWEAR, PARTS, Lots, people
from rainlab.studio.raster import NOTHING, cover, flow, shapes, winner

SPLITS = ("train", "val", "test")
GROUND = 0.88  # y of the ground under the feet
ANKLE = 0.06  # height of the ankles over it
CHUNK = 64 * 64 * 48  # pixels rendered at a time


@dataclass(frozen=True)
class BodyClips:
    """b clips of f frames with their ground truth (torch, CPU)."""

    frames: torch.Tensor
    keypoints: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor


def split_seeds(split, count, start=0):
    """Seeds number start … start + count - 1 of a split."""
    return 3 * torch.arange(start, start + count) + SPLITS.index(split)


def movement(seeds, time):
    """Joint angles in radians (and shifts) at times (b, f) in seconds: dict of float64 (b, f)."""
    lots = Lots(seeds)

    def draw(name, low=0.0, high=1.0):
        return lots(name, low, high)[:, None]

    def sway(name, slow, fast):
        """A sine of random rate in Hz and phase."""
        return torch.sin(2 * math.pi * (draw(name + " rate", slow, fast) * time + draw(name + " phase")))

    spin = torch.where(draw("spins") < 0.4, draw("spin", 0.25, 1.0) * torch.sign(draw("spin way", -1, 1)), 0.0)
    move = {"yaw": draw("yaw", -1.0, 1.0) + spin * time + draw("sway", 0.1, 0.8) * sway("sway", 0.08, 0.35),
            "x": draw("x", -0.06, 0.06) + 0.07 * sway("drift", 0.05, 0.2),
            "lean": 0.09 * sway("lean", 0.1, 0.4),
            "tilt": draw("tilt", 0, 0.2) * sway("tilt", 0.1, 0.4),
            "look": draw("look", 0, 0.55) * sway("look", 0.1, 0.4)}
    stride = draw("stride", 0.0, 0.65) * (draw("walks") < 0.8)
    step = 2 * math.pi * (draw("step rate", 0.5, 1.1) * time + draw("step phase"))
    swing = stride * draw("arm swing", 0.4, 1.1)
    for side, sign in (("_r", -1.0), ("_l", 1.0)):
        move["leg" + side] = sign * stride * torch.sin(step)
        move["knee" + side] = 0.06 + 0.75 * stride * (1 + sign * torch.cos(step))
        raised = torch.where(draw("raises" + side) < 0.45, draw("raise" + side, 0.3, 1.15), 0.04)
        bends = torch.where(draw("bends" + side) < 0.5, draw("bend" + side, 0.2, 0.8), 0.05)
        move["swing" + side] = -sign * swing * torch.sin(step) + draw("reach" + side, -0.2, 0.35)
        move["raise" + side] = draw("hang" + side, 0.12, 0.4) + raised * (1 + sway("raise" + side, 0.12, 0.4))
        move["bend" + side] = draw("crook" + side, 0.1, 0.7) + bends * (1 + sway("bend" + side, 0.2, 0.8))
        move["up" + side] = draw("up" + side, 0.0, 1.0)
    return move


def _v(x, y, z):
    return torch.stack(torch.broadcast_tensors(x, y, z), -1)


def stage(body, move):
    """Put the bodies into their poses.

    body: measures, (n, …) of n frames; move: angles (n,). Returns the ends (n, P, 3) ×2, radii (n, P, 2), flat, shear,
    roll (n, P) of the PARTS and the 18 joints (n, 18, 3) with their confidence (n, 18), in world units.
    """
    zero = torch.zeros_like(move["yaw"])
    one = zero + 1
    cos, sin = move["yaw"].cos(), move["yaw"].sin()

    def turn(p):
        return _v(p[..., 0] * cos + p[..., 2] * sin, p[..., 1], p[..., 2] * cos - p[..., 0] * sin)

    joints, drop = {}, {}
    for side, sign in (("_r", -1.0), ("_l", 1.0)):
        leg, shin = move["leg" + side], move["leg" + side] - move["knee" + side]
        joints["knee" + side] = body["thigh"][:, None] * _v(sign * 0.05 + zero, leg.cos(), leg.sin())
        joints["ankle" + side] = joints["knee" + side] + body["shin"][:, None] * _v(zero, shin.cos(), shin.sin())
        drop[side] = joints["ankle" + side][:, 1]
    pelvis = _v(zero, GROUND - ANKLE - torch.maximum(drop["_r"], drop["_l"]), zero)
    lean = _v(move["lean"].sin(), -move["lean"].cos(), zero)
    chest = pelvis + body["trunk"][:, None] * lean
    r = body["head"]
    head = chest + _v(0.3 * move["lean"] + move["tilt"] * r, -0.08 - 0.93 * r, zero + 0.02)

    parts = {}

    def add(name, a, b, r1, r2, deep=None, roll=None):
        """deep: depth as a share of the width, of elliptical parts."""
        parts[name] = (a, b, r1 + zero, r2 + zero, one if deep is None else deep, move["yaw"] if roll is None else roll)

    # the head's own frame: turned by `look`, tilted, turned with the body
    cl, sl, ct, st = move["look"].cos(), move["look"].sin(), move["tilt"].cos(), move["tilt"].sin()

    def on_head(p):
        """Points (…, 3) in head radii -> body frame."""
        x, y, z = (torch.as_tensor(q, dtype=torch.float64) for q in p)
        x, z = x * cl + z * sl, z * cl - x * sl
        return head + r[:, None] * _v(x * ct - y * st, x * st + y * ct, z)

    gaze = move["yaw"] + move["look"]
    add("head", on_head((zero, zero - 0.07, zero)), on_head((zero, zero + 0.08, zero)), r, r * 0.97, roll=gaze)
    rows = body["headwear"]
    for part, row in zip(HEADWEAR, rows.unbind(1), strict=True):
        radii = torch.where(row[:, 6:] > 0, row[:, 6:] * r[:, None], -1.0)
        add(part, on_head(row[:, :3].T), on_head(row[:, 3:6].T), radii[:, 0], radii[:, 1], roll=gaze)
    for side, sign in (("_r", -1.0), ("_l", 1.0)):
        ear = on_head((zero + sign, zero + 0.12, zero - 0.02))
        add("ear" + side, ear, ear + _v(zero, 0.02 * one, zero), 0.19 * r, 0.17 * r, roll=gaze)
        joints["ear" + side] = ear
        joints["eye" + side] = on_head((zero + sign * 0.39, zero + 0.12, zero + 0.91))
    joints["nose"] = on_head((zero, zero + 0.3, zero + 0.95))

    wide, oval = body["wide"], body["deep"] / body["wide"]
    th = body["thick"]
    add("neck", chest, head, 0.062 * th, 0.062 * th)
    add("torso", chest + _v(zero, 0.055 + zero, zero), pelvis - _v(zero, 0.015 + zero, zero), wide, wide * 0.95, oval)
    add("hips", pelvis - _v(zero, 0.02 + zero, zero), pelvis + _v(zero, 0.03 + zero, zero), wide * 0.99, wide * 0.97,
        oval)
    knees = pelvis + 0.5 * (joints["knee_r"] + joints["knee_l"])
    sk = body["skirt"]
    add("skirt", pelvis - _v(zero, 0.06 + zero, zero), pelvis * 0.35 + knees * 0.65, wide * 0.9 * sk, wide * 1.45 * sk,
        oval)
    back = _v(zero, zero, -body["deep"] - 0.06)
    add("pack", chest + _v(zero, 0.10 + zero, zero) + back, chest + _v(zero, 0.26 + zero, zero) + back,
        0.12 * body["pack"], 0.135 * body["pack"])
    sc = body["scarf"]
    add("scarf", chest + _v(-0.05 + zero, zero - 0.04, zero + 0.02), chest + _v(0.05 + zero, zero - 0.04, zero + 0.02),
        0.10 * sc, 0.10 * sc)
    add("scarf2", chest + _v(0.06 + zero, zero + 0.02, zero + 0.12), chest + _v(0.08 + zero, zero + 0.22, zero + 0.15),
        0.045 * sc, 0.055 * sc)

    for side, sign in (("_r", -1.0), ("_l", 1.0)):
        shoulder = chest + _v(sign * (wide + 0.015), zero + 0.045, zero)
        hip = pelvis + _v(sign * 0.58 * wide, zero + 0.02, zero)
        a, b, e, up = (move[k + side] for k in ("swing", "raise", "bend", "up"))
        upper = _v(sign * b.sin(), b.cos() * a.cos(), b.cos() * a.sin())
        bend = _v(zero, -up.sin(), up.cos())
        bend = bend - (bend * upper).sum(-1, keepdim=True) * upper
        lower = e.cos()[:, None] * upper + e.sin()[:, None] * bend / bend.norm(dim=-1, keepdim=True)
        elbow = shoulder + body["arm"][:, None] * upper
        wrist = elbow + body["fore"][:, None] * lower
        knee, ankle = hip + joints["knee" + side], hip + joints["ankle" + side]
        add("arm" + side, shoulder, elbow, 0.068 * th, 0.056 * th)
        add("fore" + side, elbow, wrist, 0.056 * th, 0.050 * th)
        add("hand" + side, wrist, wrist + 0.03 * lower, 0.062 * th, 0.056 * th)
        add("thigh" + side, hip, knee, 0.092 * th, 0.074 * th)
        add("shin" + side, knee, ankle, 0.074 * th, 0.060 * th)
        toe = ankle + _v(zero + sign * 0.015, zero + 0.022, zero + 0.085)
        add("foot" + side, ankle + _v(zero, zero + 0.005, zero - 0.01), toe, 0.064 * th, 0.058 * th)
        joints |= {"shoulder" + side: shoulder, "elbow" + side: elbow, "wrist" + side: wrist, "hip" + side: hip,
                   "knee" + side: knee, "ankle" + side: ankle}
    joints["neck"] = 0.5 * (joints["shoulder_r"] + joints["shoulder_l"])

    shift = _v(move["x"], zero, zero)
    columns = []
    for name in PARTS:
        a, b, r1, r2, deep, roll = parts[name]
        c, s = roll.cos(), roll.sin()
        spread = (c * c + deep * deep * s * s).sqrt()  # an ellipse seen from its roll is as wide as this
        flat, shear = deep / spread**2, (deep * deep - 1) * s * c / spread**2
        columns.append((turn(a) + shift, turn(b) + shift, torch.stack([r1, r2], -1) * spread[:, None], flat, shear,
                        torch.atan2(deep * s, c)))
    capsules = [torch.stack(c, 1) for c in zip(*columns, strict=True)]
    names = ["nose", "neck"] + [j + s for s in ("_r", "_l") for j in ("shoulder", "elbow", "wrist")]
    names += [j + s for s in ("_r", "_l") for j in ("hip", "knee", "ankle")]
    names += ["eye_r", "eye_l", "ear_r", "ear_l"]
    points = torch.stack([turn(joints[n]) + shift for n in names], 1)
    seen = torch.ones(points.shape[:2])
    ahead = (points[..., 2] - turn(head)[:, None, 2]) / r[:, None]
    for column, least in ((0, -0.1), (14, 0.0), (15, 0.0), (16, -0.35), (17, -0.35)):
        seen[:, column] = ahead[:, column] > least
    return capsules, points, seen


def render(identity_seeds, motion_seeds, frames=16, size=(64, 48), fps=12.0, start=0, still=False):
    identity_seeds, motion_seeds = torch.as_tensor(identity_seeds), torch.as_tensor(motion_seeds)
    b, (h, w) = len(identity_seeds), size
    time = (start + torch.arange(frames, dtype=torch.float64) * (not still)) / fps
    body, looks = people(identity_seeds)
    clip = torch.arange(b).repeat_interleave(frames)
    move = {k: v.expand(b, frames).reshape(-1) for k, v in movement(motion_seeds, time.expand(b, -1)).items()}
    (a, e, radius, flat, shear, roll), points, seen = stage({k: v[clip] for k, v in body.items()}, move)
    scale = min(h / 2, w / 1.5)
    centre = torch.tensor([(w - 1) / 2, (h - 1) / 2, 0], dtype=torch.float64)
    figure = shapes(a * scale + centre, e * scale + centre, radius * scale, flat, shear, roll)
    points = points * scale + centre
    inside = (points[..., 0].round() >= 0) & (points[..., 0].round() < w) & (points[..., 1].round() >= 0) & (
        points[..., 1].round() < h)
    keypoints = torch.cat([points[..., :2], (seen * inside)[..., None]], -1).float()
    ground = torch.stack([move["x"] * scale + centre[0], (GROUND * scale + centre[1]).expand(len(clip)),
                          body["wide"][clip] * 2.4 * scale, body["wide"][clip] * 0.75 * scale]).float()
    n, step = b * frames, max(1, CHUNK // (h * w))
    pictures, owners, depths = [], [], []
    for i in range(0, n, step):
        s = slice(i, i + step)
        part = type(figure)(figure.geometry[:, s].contiguous(), figure.roll[s])
        layers = cover(part, h, w)
        k, z = winner(*layers)
        owners.append(k)
        depths.append(torch.where(k == NOTHING, torch.zeros(()), (0.5 + z * (0.5 / (0.75 * scale))).clamp(0.05, 1)))
        pictures.append(picture(part, looks, clip[s], ground[:, s], layers, size, scale))
    owner = torch.cat(owners)
    now = (torch.arange(b)[:, None] * frames + torch.arange(frames - 1)).view(-1)
    moved = [flow(figure, owner, at, at + 1, h, w) for at in now.split(step)]
    motion = torch.cat([m for m, _ in moved]).view(b, frames - 1, h, w, 2)
    visible = torch.cat([v for _, v in moved]).view(b, frames - 1, h, w)
    return BodyClips(torch.cat(pictures).view(b, frames, h, w, 3), keypoints.view(b, frames, 18, 3),
                     (owner != NOTHING).view(b, frames, h, w), torch.cat(depths).view(b, frames, h, w), motion, visible)
