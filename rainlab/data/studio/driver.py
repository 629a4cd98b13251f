"""Landmarks of faces with real proportions, moved by the same poses as the drawn ones: drivers with a known truth.

Stands in for what a detector (DWPose) finds on a webcam picture. A solid set of 68 points, as wide as a face is, turns
and is seen from the front; eyes, brows and mouth move on it. Irises, breath and the body's sway do nothing here.
What makes people differ are eight measures of the face, its size and its place.
"""

import math

import torch

from rainlab.data.studio.expression import BOTH, POSE, TURN, check_pose
from rainlab.data.studio.people import Lots

VERSION = 1  # raised when the same seeds and poses give other points
SIZE = 0.21  # half a face's width as a share of the picture's
EYES = (("_right", -1.0), ("_left", 1.0))


def landmarks(seeds, pose):
    """The 68 points of b people in their poses, float64 ``(b, f, 68, 2)`` in units of a square picture.

    seeds: int64 (b,), who; pose: ``(b, f, 45)`` of `expression`. ValueError for a pose of another shape.
    """
    seeds = torch.as_tensor(seeds, dtype=torch.int64).view(-1)
    pose = check_pose(pose, len(seeds))
    lots, at = Lots(seeds), dict(zip(POSE, pose.unbind(-1), strict=True))
    still = torch.zeros(pose.shape[:2], dtype=torch.float64)

    def own(name, low, high):
        return lots(name, low, high)[:, None] + still

    def point(x, y, z):
        return torch.stack([still + x, still + y, still + z], -1)

    long, eye_y, brow_y = own("long", 1.15, 1.4), own("eye y", -0.14, -0.04), own("brow y", -0.40, -0.32)
    mouth_y = 0.62 * long
    turns = [math.pi * i / 16 for i in range(17)]
    points = [point(-math.cos(a), -0.1 + long * math.sin(a) ** 0.9, -0.55 + 0.75 * math.sin(a)) for a in turns]
    brows, eyes = [], []
    eye_x, eye_w, eye_h = own("eye x", 0.38, 0.46), own("eye w", 0.14, 0.20), own("eye h", 0.045, 0.075)
    for side, sign in EYES:
        lift = 0.10 * at[f"eyebrow_raised{side}"] + 0.05 * at[f"eyebrow_happy{side}"]
        lift = (
            lift
            - 0.07 * (at[f"eyebrow_lowered{side}"] + at[f"eyebrow_angry{side}"])
            - 0.03 * at[f"eyebrow_serious{side}"]
        )
        tilt = 0.09 * at[f"eyebrow_troubled{side}"] - 0.09 * at[f"eyebrow_angry{side}"]
        row = []
        for out in (0.0, 0.25, 0.5, 0.75, 1.0):  # from the inner end to the outer one
            arch = 0.07 * (1 - (2 * out - 1) ** 2)
            row.append(point(sign * (0.18 + 0.62 * out), brow_y - lift - arch - tilt * (1 - 2 * out), 0.42 - 0.3 * out))
        brows += row[::-1] if sign < 0 else row
        opens = 1 + 0.35 * at[f"eye_surprised{side}"]
        for kind, much in (("relaxed", 0.5), ("unimpressed", 0.55), ("raised_lower_eyelid", 0.2), ("happy_wink", 1.0),
                           ("wink", 1.0)):  # fmt: skip
            opens = opens * (1 - much * at[f"eye_{kind}{side}"])
        for u, lid in ((-1, 0), (-0.4, -1.1), (0.4, -1.1), (1, 0), (0.4, 0.9), (-0.4, 0.9)):
            eyes.append(
                point(
                    sign * eye_x + u * eye_w, eye_y + lid * eye_h * opens, 0.36 - 0.25 * abs(sign * eye_x + u * eye_w)
                )
            )
    nose = [point(0, y, z) for y, z in ((-0.06, 0.46), (0.10, 0.54), (0.25, 0.62), (0.40, 0.70))]
    nose += [point(x, 0.50 - 0.2 * abs(x), 0.52 - 0.3 * abs(x)) for x in (-0.17, -0.09, 0.0, 0.09, 0.17)]
    width, opens = own("mouth w", 0.24, 0.34), still
    for vowel, wide, tall in (("aaa", 1.0, 0.36), ("iii", 1.2, 0.10), ("uuu", 0.6, 0.12), ("eee", 1.15, 0.18),
                              ("ooo", 0.7, 0.28), ("delta", 0.9, 0.16)):  # fmt: skip
        share = at["mouth_" + vowel]
        width, opens = width * (1 + share * (wide - 1)), opens + share * tall
    corner = {side: 0.07 * (at[f"mouth_lowered_corner{side}"] - at[f"mouth_raised_corner{side}"]) for side in BOTH}
    corner["_left"] = corner["_left"] - 0.06 * at["mouth_smirk"]
    lip = own("lip", 0.05, 0.09)

    def of_mouth(u, edge, out):
        """A point at u across the mouth, on the edge of the upper (-1) or lower (1) lip or outside it."""
        bow = 1 - u * u
        lower = corner["_left"] if u > 0 else corner["_right"]
        y = mouth_y + lower * u * u + bow * (opens * (0.8 if edge > 0 else -0.2)) + edge * out * lip * (1 - 0.5 * u * u)
        return point(u * width, y, 0.50 - 0.25 * u * u)

    lips = [of_mouth(u, -1, 1) for u in (-1, -0.6, -0.25, 0, 0.25, 0.6, 1)]
    lips += [of_mouth(u, 1, 1) for u in (0.6, 0.25, 0, -0.25, -0.6)]
    lips += [of_mouth(u, -1, 0) for u in (-0.9, -0.4, 0, 0.4, 0.9)] + [of_mouth(u, 1, 0) for u in (0.4, 0, -0.4)]
    solid = torch.stack([*points, *brows, *nose, *eyes, *lips], 2)
    turned = _turned(solid, at) * SIZE * (own("size", 0.9, 1.1))[..., None, None]
    middle = torch.stack([0.5 + own("x", -0.05, 0.05), 0.46 + own("y", -0.04, 0.04)], -1)
    return turned[..., :2] + middle[..., None, :]


def _turned(solid, at):
    """Points ``(b, f, 68, 3)`` after the head has nodded, looked aside and tilted, by TURN's angles."""
    angle = {name: most * at[number] for name, (number, most) in TURN.items()}
    x, y, z = solid.unbind(-1)
    nod, look, tilt = (a[..., None] for a in (angle["nod"], angle["look"] + angle["yaw"], angle["tilt"]))
    y, z = y * nod.cos() - z * nod.sin(), z * nod.cos() + y * nod.sin()
    x, z = x * look.cos() + z * look.sin(), z * look.cos() - x * look.sin()
    return torch.stack([x * tilt.cos() - y * tilt.sin(), x * tilt.sin() + y * tilt.cos(), z], -1)
