"""How a face moves: Talking Head Anime 4's pose of 45 numbers, and endless motions in it, pure functions of time.

Morphs are in [0, 1] and rotations in [-1, 1]. Left and right are the character's own.
"""

import math

import torch

from rainlab.data.studio.people import Lots

BOTH = ("_left", "_right")
POSE = (
    *(f"eyebrow_{kind}{side}" for kind in "troubled angry lowered raised happy serious".split() for side in BOTH),
    *(f"eye_{kind}{side}" for kind in "wink happy_wink surprised relaxed unimpressed raised_lower_eyelid".split()
      for side in BOTH),
    *(f"iris_small{side}" for side in BOTH),
    *(f"mouth_{kind}" for kind in "aaa iii uuu eee ooo delta".split()),
    *(f"mouth_{way}_corner{side}" for way in ("lowered", "raised") for side in BOTH),
    "mouth_smirk",
    "iris_rotation_x", "iris_rotation_y", "head_x", "head_y", "neck_z", "body_y", "body_z", "breathing",
)  # fmt: skip
"""The names of the numbers, in THA4's order. Positive rotations: x up, y to the character's left, z to the picture's
right."""
TURN = {"look": ("head_y", 0.55), "nod": ("head_x", 0.30), "tilt": ("neck_z", 0.45), "yaw": ("body_y", 0.3),
        "lean": ("body_z", 0.10)}  # fmt: skip
"""Angles of the body's motion by a number of the pose, and what it is at 1: radians, the tilt in its own unit."""
VOWELS = tuple(name for name in POSE if name.startswith("mouth_") and "corner" not in name and name != "mouth_smirk")
MOODS = ("troubled", "angry", "lowered", "raised", "happy", "serious")
BLINK = 0.22  # seconds that a blink takes


def pose_of(values, count=1):
    """A pose ``(count, 45)`` float64 from a dict of name -> number or ``(count,)``; what is not named is 0.

    Raises ValueError for a name that is not in POSE.
    """
    if unknown := set(values) - set(POSE):
        raise ValueError(f"pose: got {sorted(unknown)}, expected names of POSE, such as {POSE[12]} or head_y")
    pose = torch.zeros(count, len(POSE), dtype=torch.float64)
    for name, value in values.items():
        pose[:, POSE.index(name)] = torch.as_tensor(value, dtype=torch.float64)
    return pose


def check_pose(pose, count):
    """``pose`` as float64 ``(count, f, 45)``; ValueError for another shape, or none at all."""
    pose = torch.as_tensor(pose, dtype=torch.float64)
    if pose.ndim != 3 or len(pose) != count or pose.shape[2] != len(POSE) or not pose.numel():
        expected = f"({count}, frames, {len(POSE)}), one face and one frame at least"
        raise ValueError(f"pose: got shape {tuple(pose.shape)}, expected {expected}")
    return pose


def expressions(seeds, time):
    """Poses of b endless motions: float64 ``(b, f, 45)``. seeds int64 (b,), time float64 (f,) in seconds.

    A face blinks every few seconds, speaks in phrases, changes its mood, looks about and turns its head.
    """
    lots = Lots(seeds)

    def draw(name, low=0.0, high=1.0):
        return lots(name, low, high)[:, None]

    def phase(name, slow, fast):
        return draw(name + " rate", slow, fast) * time + draw(name + " phase")

    def swing(name, slow, fast):
        """A sine wave with a rate between slow and fast, in Hz."""
        return torch.sin(2 * math.pi * phase(name, slow, fast))

    def now_and_then(name, slow, fast, share):
        """Between 0 and 1, and above 0 for a share of the time: smooth hills, every period one of another height."""
        turn = phase(name, slow, fast)
        number = turn.floor()
        hill = torch.sin(math.pi * ((turn - number) / share).clamp(0, 1))
        return hill * hill * Lots(seeds[:, None] * 8191 + number.long())(name)

    made = {}
    turn = phase("blink", 0.25, 0.5)
    since = (turn - turn.floor()) / draw("blink rate", 0.25, 0.5)  # seconds
    blink = (2 * (1 - (2 * since / BLINK - 1).abs())).clamp(0, 1)
    smiling = draw("blinks happily") < 0.2
    held = (4 * now_and_then("wink", 0.05, 0.15, 0.4) - 1.5).clamp(0, 1)  # one eye, longer than a blink
    for side, odd in zip(BOTH, (draw("winks left") < 0.5, draw("winks left") >= 0.5), strict=True):
        shut = torch.maximum(blink, odd * held)
        made[f"eye_happy_wink{side}"] = torch.where(smiling, shut, 0.0)
        made[f"eye_wink{side}"] = torch.where(smiling, 0.0, shut)
        for name, slow, fast in (("surprised", 0.06, 0.2), ("relaxed", 0.05, 0.2), ("unimpressed", 0.05, 0.15),
                                 ("raised_lower_eyelid", 0.05, 0.15)):  # fmt: skip
            made[f"eye_{name}{side}"] = now_and_then(name, slow, fast, 0.5)
        for mood in MOODS:
            own, shared = (now_and_then(mood + which, 0.05, 0.25, 0.6) for which in (side, ""))
            made[f"eyebrow_{mood}{side}"] = torch.where(draw("uneven") < 0.3, own, shared)
        made[f"iris_small{side}"] = 0.6 * now_and_then("iris", 0.04, 0.12, 0.4)
        made[f"mouth_raised_corner{side}"] = now_and_then("smile", 0.06, 0.25, 0.8)
        made[f"mouth_lowered_corner{side}"] = now_and_then("sad", 0.05, 0.2, 0.4)
    made["mouth_smirk"] = now_and_then("smirk", 0.05, 0.15, 0.4)
    speaks = (1.6 * swing("phrase", 0.15, 0.4) + 0.6).clamp(0, 1)  # in phrases, with pauses between
    syllable = phase("syllable", 2.2, 3.6)
    number = syllable.floor()
    opens = torch.sin(math.pi * (syllable - number)) * speaks
    which = Lots(seeds[:, None] * 8191 + number.long()).pick("vowel", (3, 2, 1, 2, 2, 1))
    for i, vowel in enumerate(VOWELS):
        made[vowel] = torch.where(which == i, opens, 0.0)
    glance = torch.tanh(3 * swing("glance", 0.1, 0.35)) * now_and_then("glances", 0.1, 0.4, 0.7)
    made["iris_rotation_y"], made["iris_rotation_x"] = glance, 0.7 * swing("look up", 0.1, 0.3)
    for name, low, high, slow, fast in (
        ("head_x", 0.1, 0.8, 0.1, 0.45), ("head_y", 0.2, 1.0, 0.08, 0.4), ("neck_z", 0.1, 0.9, 0.08, 0.35),
        ("body_y", 0.0, 0.6, 0.05, 0.2), ("body_z", 0.0, 0.8, 0.05, 0.2),
    ):  # fmt: skip
        made[name] = draw(name, low, high) * swing(name, slow, fast)
    made["breathing"] = 0.5 + 0.5 * swing("breath", 0.2, 0.35)
    flat = [made[name].expand(len(seeds), len(time)).reshape(-1) for name in POSE]
    return torch.stack(flat, -1).view(len(seeds), len(time), len(POSE))
