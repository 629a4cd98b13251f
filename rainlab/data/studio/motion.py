"""How characters move, and the capsules and joints of every moment: walking, turning, waving, pure functions of time.

World axes: x to the right of the picture, y down, z towards the viewer; lengths in units of half the picture's height.
The body's own axes are the world's before it turns by `yaw`; it then faces the viewer, its right side (_r) at negative
x. All in float64: what a picture shows is exact to far less than a pixel however late in a stream it is.
"""

import math

import torch

from rainlab.data.studio.people import HEADWEAR, PARTS, Lots

GROUND = 0.88  # y of the ground; the picture reaches from -1 to 1
ANKLE = 0.06  # height of the ankles above it
SIDES = (("_r", -1.0), ("_l", 1.0))
JOINTS = tuple(
    (
        "nose neck shoulder_r elbow_r wrist_r shoulder_l elbow_l wrist_l hip_r knee_r ankle_r hip_l knee_l "
        "ankle_l eye_r eye_l ear_r ear_l"
    ).split()
)  # OpenPose's order
# A detector drops what the head hides: these are seen while they lie this far (in head radii) before its centre.
HIDDEN_BEHIND = {"nose": -0.1, "eye_r": 0.0, "eye_l": 0.0, "ear_r": -0.35, "ear_l": -0.35}
FACING = math.radians(40)  # a motion that faces the camera begins within this of it,
LIMIT = math.radians(80)  # and stays within this, but for the share that turns all the way round
TURNING = 0.25
SKULL, CHIN = 0.93, 0.66  # radii of a head with a chin, above and below, in those of one without,
FORWARD, DROP = 0.14, 0.30  # how far it lies before the middle of its hair, and how far its chin goes with a nod
TURNS_WITH_HEAD = {"head", "ear_r", "ear_l", *HEADWEAR}


def movement(seeds, time, facing=False):
    """Angles in radians, and shifts in units of length, of b endless motions.

    seeds int64 (b,), time float64 (f,) or (b, f) in seconds; facing: the body begins (time 0) facing the camera within
    FACING, and stays within LIMIT of it in all but a quarter of the motions, which turn all the way round.
    Returns a dict of float64 (b, f).
    """
    lots = Lots(seeds)

    def draw(name, low=0.0, high=1.0):
        return lots(name, low, high)[:, None]

    def swing(name, slow, fast):
        """A sine wave with a rate between slow and fast, in Hz."""
        return torch.sin(2 * math.pi * (draw(name + " rate", slow, fast) * time + draw(name + " phase")))

    spins = draw("spins") < (TURNING if facing else 0.45)
    spin = torch.where(spins, draw("spin", 0.3, 1.2) * torch.sign(draw("spin way", -1, 1)), 0.0)
    sway, swayed = draw("sway", 0.3, 1.1), swing("sway", 0.1, 0.4)
    if facing:
        swayed = swayed - torch.sin(2 * math.pi * draw("sway phase"))  # zero at time 0
        yaw = FACING * draw("yaw", -1.0, 1.0) + sway * swayed
        yaw = torch.where(spin != 0, yaw + spin * time, LIMIT * torch.tanh(yaw / LIMIT))
    else:
        yaw = draw("yaw", -1.0, 1.0) + spin * time + sway * swayed
    stride = draw("stride", 0.1, 0.75) * (draw("walks") < 0.8)
    pace = 2 * math.pi * (draw("pace", 0.5, 1.1) * time + draw("pace phase"))
    arms = stride * draw("arm swing", 0.4, 1.1)
    move = {
        "yaw": yaw,
        "x": draw("x", -0.08, 0.08) + draw("drift", 0.02, 0.14) * swing("drift", 0.06, 0.25),
        "lean": draw("lean", 0.0, 0.13) * swing("lean", 0.1, 0.5),
        "tilt": draw("tilt", 0.0, 0.22) * swing("tilt", 0.1, 0.5),
        "look": draw("look", 0.0, 0.55) * swing("look", 0.1, 0.4),
    }
    for side, sign in SIDES:
        move["leg" + side] = sign * stride * torch.sin(pace)
        move["knee" + side] = 0.06 + 0.75 * stride * (1 + sign * torch.cos(pace))
        raises = torch.where(draw("raises" + side) < 0.5, draw("raise" + side, 0.3, 1.2), 0.04)
        bends = torch.where(draw("bends" + side) < 0.5, draw("bend" + side, 0.2, 0.8), 0.05)
        move["arm" + side] = draw("reach" + side, -0.2, 0.35) - sign * arms * torch.sin(pace)
        move["raise" + side] = draw("hang" + side, 0.12, 0.4) + raises * (1 + swing("raise" + side, 0.15, 0.5))
        move["elbow" + side] = draw("crook" + side, 0.1, 0.7) + bends * (1 + swing("bend" + side, 0.2, 0.8))
        move["bent up" + side] = draw("bent up" + side)
    return {name: angle.expand(len(seeds), time.shape[-1]) for name, angle in move.items()}


def stage(body, move):
    """Capsules and joints of n bodies in their poses, in world units.

    body: measures from `people`, (n, ...), and if the head is no ball "jaw", its length from the middle to a narrower
    chin in head radii; move: angles from `movement`, (n,), and then "nod". Returns a dict for the
    PARTS, with start, end (n, P, 3), radius (n, P, 2) and flat, shear, blunt, roll (n, P) as `raster.shapes` takes
    them; the JOINTS (n, 18, 3); and bool (n, 18): not hidden by the head.
    """
    joints = _skeleton(body, move)
    on_head = _head_frame(body, move, joints["head"])
    for side, sign in SIDES:
        joints["ear" + side], joints["eye" + side] = on_head(sign, 0.12, -0.02), on_head(sign * 0.39, 0.12, 0.91)
    joints["nose"] = on_head(0, 0.3, 0.95)
    parts = _head(body, move, joints, on_head) | _trunk(body, joints) | _limbs(body, joints)
    cos, sin = move["yaw"].cos()[:, None], move["yaw"].sin()[:, None]

    def turn(points):
        x, y, z = points.unbind(-1)
        return torch.stack([x * cos + z * sin + move["x"][:, None], y, z * cos - x * sin], -1)

    table = torch.stack([parts[name] for name in PARTS], 1)
    roll = move["yaw"][:, None] + move["look"][:, None] * torch.tensor([name in TURNS_WITH_HEAD for name in PARTS])
    # An elliptical cylinder seen from any side is a round one: wider or narrower, rolled by another angle, and sheared.
    deep, c, s = table[..., 8], roll.cos(), roll.sin()
    spread = c * c + deep * deep * s * s
    capsules = {
        "start": turn(table[..., 0:3]),
        "end": turn(table[..., 3:6]),
        "radius": table[..., 6:8] * spread.sqrt()[..., None],
        "blunt": table[..., 9],
        "flat": deep / spread,
        "shear": (deep * deep - 1) * s * c / spread,
        "roll": torch.atan2(deep * s, c),
    }
    points = turn(torch.stack([joints[name] for name in JOINTS], 1))
    before = (points[..., 2] - turn(joints["head"][:, None])[..., 2]) / body["head"][:, None]
    return capsules, points, before > torch.tensor([HIDDEN_BEHIND.get(name, -math.inf) for name in JOINTS])


def _point(x, y, z):
    """Coordinates, numbers or tensors (n,), as one tensor (n, 3), or (3,) of numbers."""
    return torch.stack(torch.broadcast_tensors(*(torch.as_tensor(v, dtype=torch.float64) for v in (x, y, z))), -1)


def _capsule(start, end, radius, radius2, deep=1.0, blunt=1.0):
    """One row (n, 10) of the table of parts; deep: thickness from front to back as a share of the width."""
    numbers = (torch.as_tensor(v, dtype=torch.float64).expand(len(start)) for v in (radius, radius2, deep, blunt))
    return torch.cat([start, end, torch.stack(list(numbers), 1)], 1)


def _skeleton(body, move):
    """Joints (n, 3) in the body's own axes: pelvis, chest, head and the limbs'."""
    legs = {}
    for side, _ in SIDES:
        hip, shin = move["leg" + side], move["leg" + side] - move["knee" + side]
        thigh = body["leg"][:, None] * _point(0, hip.cos(), hip.sin())
        legs[side] = thigh, thigh + body["leg"][:, None] * _point(0, shin.cos(), shin.sin())
    reach = torch.maximum(legs["_r"][1][:, 1], legs["_l"][1][:, 1])  # the lower foot stands on the ground
    lean, tilt, wide = move["lean"], move["tilt"], body["wide"]
    pelvis = _point(0, GROUND - ANKLE - reach, 0)
    chest = pelvis + body["trunk"][:, None] * _point(lean.sin(), -lean.cos(), 0)
    head = chest + _point(0.3 * lean + tilt * body["head"], -0.08 - 0.93 * body["head"], 0.02)
    joints = {"pelvis": pelvis, "chest": chest, "head": head}
    for side, sign in SIDES:
        fore, out, bend, up = (move[name + side] for name in ("arm", "raise", "elbow", "bent up"))
        upper = _point(sign * out.sin(), out.cos() * fore.cos(), out.cos() * fore.sin())
        ahead = _point(0, -up.sin(), up.cos())  # the elbow bends this way, as far as it is across the upper arm
        ahead = ahead - (ahead * upper).sum(-1, keepdim=True) * upper
        ahead = ahead / ahead.norm(dim=-1, keepdim=True)
        shoulder = chest + _point(sign * (wide + 0.01), 0.045, 0)
        elbow = shoulder + body["arm"][:, None] * upper
        wrist = elbow + body["fore"][:, None] * (bend.cos()[:, None] * upper + bend.sin()[:, None] * ahead)
        hip = pelvis + _point(sign * 0.58 * wide, 0, 0)
        joints |= {
            "shoulder" + side: shoulder,
            "elbow" + side: elbow,
            "wrist" + side: wrist,
            "hip" + side: hip,
            "knee" + side: hip + legs[side][0],
            "ankle" + side: hip + legs[side][1],
        }
    joints["neck"] = 0.5 * (joints["shoulder_r"] + joints["shoulder_l"])
    return joints


def _head_frame(body, move, head):
    """A function from points of the head's own axes (numbers or (n,), in head radii) to the body's, (n, 3)."""
    cos_look, sin_look, cos_tilt, sin_tilt = (f(move[k]) for k in ("look", "tilt") for f in (torch.cos, torch.sin))

    nod = move.get("nod")  # about the head's own axis, from ear to ear

    def on_head(x, y, z, nods=True):
        if nod is not None and nods:
            y, z = y * nod.cos() - z * nod.sin(), z * nod.cos() + y * nod.sin()
        x, z = x * cos_look + z * sin_look, z * cos_look - x * sin_look
        return head + body["head"][:, None] * _point(x * cos_tilt - y * sin_tilt, x * sin_tilt + y * cos_tilt, z)

    return on_head


def _head(body, move, joints, on_head):
    """Head, neck, ears, hair and hat."""
    r = body["head"]
    parts = {
        "head": _skull(body, move, on_head),
        "neck": _capsule(joints["chest"], joints["head"], 0.062 * body["thick"], 0.062 * body["thick"]),
    }
    for side, _ in SIDES:
        parts["ear" + side] = _capsule(joints["ear" + side], joints["ear" + side], 0.19 * r, 0.19 * r)
    for name, row in zip(HEADWEAR, body["headwear"].unbind(1), strict=True):
        x, y, z, x2, y2, z2, r1, r2, deep = row.unbind(1)
        nods = name != "cap"  # of which the face would disappear
        parts[name] = _capsule(on_head(x, y, z, nods), on_head(x2, y2, z2, nods), r1 * r, r2 * r, deep)
    return parts


def _skull(body, move, on_head):
    if "jaw" in body:
        chin = body["jaw"] - DROP * move["nod"].sin()
        # both ends lie equally far before the middle: a head that looks aside does not tilt
        ends = (on_head(0, y, FORWARD, nods=False) for y in (-0.12, chin))
        return _capsule(*ends, SKULL * body["head"], CHIN * body["head"])
    return _capsule(on_head(0, -0.07, 0), on_head(0, 0.08, 0), body["head"], body["head"] * 0.97)


def _trunk(body, joints):
    """Torso, hips, skirt, backpack and scarf; what a body does not wear has negative radii."""
    chest, pelvis, wide, deep = joints["chest"], joints["pelvis"], body["wide"], body["deep"]
    hem = 0.25 * pelvis + 0.375 * (joints["knee_r"] + joints["knee_l"])
    back = chest - _point(0, 0, wide * deep + 0.06)
    skirt, pack, scarf = body["skirt"], body["pack"], body["scarf"]
    return {
        "torso": _capsule(chest + _point(0, 0.055, 0), pelvis - _point(0, 0.015, 0), wide, wide * 0.95, deep),
        "hips": _capsule(pelvis - _point(0, 0.02, 0), pelvis + _point(0, 0.03, 0), wide * 0.99, wide * 0.97, deep),
        "skirt": _capsule(pelvis - _point(0, 0.06, 0), hem, skirt * wide, skirt * wide * 1.65, deep, 4.0),
        "pack": _capsule(back + _point(0, 0.10, 0), back + _point(0, 0.26, 0), 0.12 * pack, 0.135 * pack),
        "scarf": _capsule(
            chest + _point(-0.05, -0.04, 0.02), chest + _point(0.05, -0.04, 0.02), 0.1 * scarf, 0.1 * scarf
        ),
        "scarf2": _capsule(
            chest + _point(0.06, 0.02, 0.12), chest + _point(0.08, 0.22, 0.15), 0.045 * scarf, 0.055 * scarf, 1.0, 2.0
        ),
    }


def _limbs(body, joints):
    """Arms, hands, legs and feet."""
    parts, k = {}, body["thick"]
    for side, sign in SIDES:
        shoulder, elbow, wrist, hip, knee, ankle = (
            joints[name + side] for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        )
        toe = ankle + _point(sign * 0.015, 0.022, 0.085)
        parts |= {
            "arm" + side: _capsule(shoulder, elbow, 0.068 * k, 0.056 * k),
            "fore" + side: _capsule(elbow, wrist, 0.056 * k, 0.050 * k),
            "hand" + side: _capsule(wrist, wrist + 0.15 * (wrist - elbow), 0.062 * k, 0.056 * k),
            "thigh" + side: _capsule(hip, knee, 0.092 * k, 0.074 * k),
            "shin" + side: _capsule(knee, ankle, 0.074 * k, 0.060 * k),
            "foot" + side: _capsule(ankle - _point(0, 0, 0.01), toe, 0.064 * k, 0.058 * k),
        }
    return parts
