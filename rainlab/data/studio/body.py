"""Clips of procedural characters in motion with exact ground truth: frames, key points, mask, depth and optical flow.

The centre of pixel (row i, column j) is the point x=j, y=i; x and y in pixels are meant so everywhere.
"""

from dataclasses import dataclass

import torch

from rainlab.data.studio.motion import GROUND, movement, stage
from rainlab.data.studio.paint import backdrop, picture
from rainlab.data.studio.people import Lots, people
from rainlab.data.studio.raster import NOTHING, cover, flow, shapes, winner

VERSION = 1  # raised when the same seeds give other bytes
SPLITS = ("train", "val", "test")
CHUNK = 64 * 64 * 48  # pixels in work at a time: more is slower (caches) and takes more memory
REACH = 0.75  # half the width that a picture needs, and the farthest a body reaches before and behind its axis


@dataclass(frozen=True)
class BodyClips:
    """b clips of f frames, h by w pixels, and their ground truth: CPU tensors.

    frames     uint8 (b, f, h, w, 3), RGB.
    keypoints  float32 (b, f, 18, 3): x, y in pixels and confidence, of OpenPose's 18 points (R and L are the
               character's own); 0 for points outside the picture and face points on the far side of the head, else 1.
    mask       bool (b, f, h, w): the character covers at least half of the pixel.
    depth      float32 (b, f, h, w): like MiDaS, 1 is near; 0 is the background, the character within [0.05, 1].
    flow       float32 (b, f-1, h, w, 2): where the surface point seen in frame t goes until t+1, in pixels (x, y).
               The background stands still; the shadow is part of it.
    visible    bool (b, f-1, h, w): that point can still be seen in frame t+1.
    """

    frames: torch.Tensor
    keypoints: torch.Tensor
    mask: torch.Tensor
    depth: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor


def split_seeds(split, count, start=0):
    """Seeds start … start + count - 1 of a split ("train", "val", "test"): int64 (count,).

    A seed's remainder by 3 names its split, so that no seed is in two of them. ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    return 3 * torch.arange(start, start + count) + SPLITS.index(split)


def render(
    identity_seeds, motion_seeds, frames=16, size=(64, 48), fps=12.0, start=0, still=False, facing=False, pause=None
):
    """Render b clips, one for each pair of an identity seed (who) and a motion seed (how it moves).

    identity_seeds, motion_seeds: b integers each (sequence or tensor); size: (height, width), best as 4:3; fps: frames
    per second; start: number of the first frame in the endless motion, so that later calls continue earlier ones
    without a seam; still: hold the pose of frame `start` in all frames; facing: motions that begin facing the camera
    (see `motion.movement`); pause: b whole numbers, how many frames of its motion a clip leaves out after its first.

    Returns BodyClips. On one machine the same seeds give the same bytes whatever else is in the batch and wherever the
    motion is cut; on another one the same frames to one grey level in 99.9 % of the values (between torch's AVX-512,
    AVX2 and plain kernels no difference was found in any output of 16 clips at two sizes).
    Raises ValueError for seeds that do not pair up, sizes below 16 pixels, fewer than one frame, or fps not positive.
    """
    who, how = (torch.as_tensor(s, dtype=torch.int64).view(-1) for s in (identity_seeds, motion_seeds))
    height, width = size
    if len(who) != len(how) or not len(who):
        raise ValueError(f"got {len(who)} identity and {len(how)} motion seeds; expected equally many, at least one")
    if min(height, width) < 16 or frames < 1 or fps <= 0:
        raise ValueError(
            f"got size {size}, {frames} frames, fps {fps}; expected (height, width) of at least 16 each, "
            "at least one frame, and fps > 0"
        )
    clip = torch.arange(len(who)).repeat_interleave(frames)
    number = start + torch.arange(frames, dtype=torch.float64) * (not still)
    if pause is not None:
        number = number + torch.as_tensor(pause)[:, None] * (torch.arange(frames) > 0)
    move = {name: angles.reshape(-1) for name, angles in movement(how, number / fps, facing).items()}
    measures, looks = people(who)
    body = {name: value[clip] for name, value in measures.items()}
    capsules, points, seen = stage(body, move)

    scale, centre = _camera(size)
    pixels = {name: capsules[name] * scale + centre for name in ("start", "end")}
    figure = shapes(**{**capsules, **pixels, "radius": capsules["radius"] * scale})
    ground = torch.full_like(move["x"], GROUND)
    shadow = torch.stack([move["x"], ground, 2.4 * body["wide"], 0.75 * body["wide"]]) * scale
    shadow[:2] += centre[:2, None]

    at_once = max(1, CHUNK // (height * width))
    pictures, owners, depths = [], [], []
    for part in torch.arange(len(clip)).split(at_once):
        some = figure.frames(part)
        layers = cover(some, height, width)
        owner, z = winner(*layers)
        owners.append(owner)
        depths.append((0.5 + z * (0.5 / (REACH * scale))).clamp(0.05, 1) * (owner != NOTHING))
        behind = backdrop(looks.backdrop[:, clip[part]], shadow[:, part].float(), size)
        pictures.append(picture(some, looks, clip[part], behind, layers, size, scale))
    owner = torch.cat(owners)
    now = torch.arange(len(clip)).view(-1, frames)[:, :-1].reshape(-1)
    motion = torch.zeros(len(now), height * width, 2)
    visible = torch.zeros(len(now), height * width, dtype=torch.bool)
    for part in torch.arange(len(now)).split(at_once):
        motion[part], visible[part] = flow(figure, owner, now[part], now[part] + 1, height, width)
    shape = (len(who), frames, height, width)
    return BodyClips(
        frames=torch.cat(pictures).view(*shape, 3),
        keypoints=_keypoints(points * scale + centre, seen, size).view(len(who), frames, 18, 3),
        mask=(owner != NOTHING).view(shape),
        depth=torch.cat(depths).view(shape),
        flow=motion.view(len(who), frames - 1, height, width, 2),
        visible=visible.view(len(who), frames - 1, height, width),
    )


def pauses(motion_seeds, low, high):
    """How many frames each motion's clip leaves out after its first, between low and high: int64 (b,)."""
    return Lots(motion_seeds)("pause", low, high + 1).long()


def keypoints(measures, move, size):
    """Key points of n characters in given poses, without rendering: float32 (n, 18, 3) as in BodyClips.

    measures: from `people`; move: angles and shifts like those of `motion.movement`, float64 (n,); size: (height,
    width) of the picture.
    """
    _, points, seen = stage(measures, move)
    scale, centre = _camera(size)
    return _keypoints(points * scale + centre, seen, size)


def _camera(size):
    """Pixels per unit of length, and where the world's origin is in the picture, float64 (3,)."""
    height, width = size
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2, 0], dtype=torch.float64)
    return min(height / 2, width / (2 * REACH)), centre


def _keypoints(points, seen, size):
    """Float32 (n, 18, 3): x, y and confidence: 0 if hidden or if the nearest pixel is off the picture."""
    x, y = points[..., 0], points[..., 1]
    inside = (x >= -0.5) & (x < size[1] - 0.5) & (y >= -0.5) & (y < size[0] - 0.5)
    return torch.stack([x, y, seen & inside], -1).float()
