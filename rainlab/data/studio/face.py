"""Clips of procedural anime faces that speak, blink and look about, with exact ground truth.

The studio's characters from near, with a chin and a face that moves. Landmarks, mask and flow are read off the same
curves and surfaces that are painted, so they agree with the picture. The centre of pixel (row i, column j) is x=j, y=i.
"""

from dataclasses import dataclass, replace

import torch

from rainlab.data.studio import features
from rainlab.data.studio.body import CHUNK
from rainlab.data.studio.expression import POSE, TURN, check_pose, expressions
from rainlab.data.studio.motion import stage
from rainlab.data.studio.paint import TEXTURE, backdrop, picture
from rainlab.data.studio.people import HEADWEAR, people
from rainlab.data.studio.raster import GEOMETRY, NOTHING, cover, flow, place, shapes, surface, turned, winner

VERSION = 2  # raised when the same seeds give other bytes
HEAD = 0.29  # the head's radius as a share of the picture's height
CENTRE = 0.47  # how far down the picture the head's middle is at rest
SKULL, JAW, CAP = -0.12, 0.36, 0.80  # the head's ends in head radii, and how many of them its coordinates count outside
HAIRLINE = (0.0, -0.02, 0.0, 0.0, -0.16, -0.02, 0.0, -0.03)  # how the cap of hair makes way for a face with a chin,
FULL_HAIR = (0.0, -0.16, -0.22, 0.0, -0.16, -0.22, 0.0, 0.0)  # and how a larger one does besides
AT_REST = {"raise_r": 0.2, "raise_l": 0.2, "elbow_r": 0.3, "elbow_l": 0.3}
BREATH = 0.012  # how far breathing lifts the body, as a share of the picture's height


@dataclass(frozen=True)
class FaceClips:
    """b clips of f frames, h by w pixels, and their ground truth: CPU tensors.

    frames     uint8 (b, f, h, w, 3), RGB.
    pose       float32 (b, f, 45), what moves the face: `expression.POSE`.
    landmarks  float32 (b, f, 68, 2): x, y in units of the picture, in the order of :mod:`rainlab.data.landmarks`, whose
               ``to_anime(landmarks, ())`` makes the 26 of them.
    seen       bool (b, f, 68): on the side of the head that faces us.
    mask       bool (b, f, h, w): the character covers at least half of the pixel.
    flow       float32 (b, f-1, h, w, 2): where the point seen in frame t goes until t+1, in pixels (x, y): with an
               iris, an upper lid, a brow or a lip, or else with the surface. The backdrop stands still.
    visible    bool (b, f-1, h, w): that point can still be seen in frame t+1.
    """

    frames: torch.Tensor
    pose: torch.Tensor
    landmarks: torch.Tensor
    seen: torch.Tensor
    mask: torch.Tensor
    flow: torch.Tensor
    visible: torch.Tensor


def render(identity_seeds, motion_seeds=None, frames=16, size=(64, 64), fps=12.0, start=0, pose=None, without=()):
    """Render b clips, one for each identity seed (who) and motion seed (how the face moves).

    identity_seeds, motion_seeds: b integers each; size: (height, width); fps, start: as `body.render` has them; pose:
    poses (b, f, 45) in place of a motion; without: some of "brows", "eyes" and "mouth", to be left out of the picture.

    Returns FaceClips. On one machine the same seeds give the same bytes whatever else is in the batch.
    Raises ValueError for seeds that do not pair up, a motion and a pose, a pose of another shape, sizes below 16
    pixels, fewer than one frame, fps not positive, or another name in ``without``.
    """
    who = torch.as_tensor(identity_seeds, dtype=torch.int64).view(-1)
    height, width = _checked(size)
    if frames < 1 or fps <= 0:
        raise ValueError(f"got {frames} frames, fps {fps}; expected at least 1 frame, fps > 0")
    if pose is not None and motion_seeds is not None:
        raise ValueError("got motion seeds and a pose; expected one of them, since both say how the face moves")
    if unknown := set(without) - set(features.LEFT_OUT):
        raise ValueError(f"without: got {sorted(unknown)}, expected some of {', '.join(features.LEFT_OUT)}")
    if pose is None:
        how = torch.as_tensor(() if motion_seeds is None else motion_seeds, dtype=torch.int64).view(-1)
        if len(who) != len(how) or not len(who):
            raise ValueError(f"got {len(who)} identity and {len(how)} motion seeds; expected equally many, not none")
        pose = expressions(how, (start + torch.arange(frames, dtype=torch.float64)) / fps)
    pose = check_pose(pose, len(who))
    frames = pose.shape[1]
    clip, looks, figure, shadow = _scene(who, pose, size, frozenset(without))

    pictures, owners, parts = [], [], []
    for some in torch.arange(len(clip)).split(max(1, CHUNK // (height * width))):
        drawn = figure.frames(some)
        layers = cover(drawn, height, width)
        owner, _ = winner(*layers)
        owners.append(owner)
        parts.append(_parts(drawn, looks, owner, some, size))
        behind = backdrop(looks.backdrop[:, some], shadow[:, some].float(), size)
        pictures.append(picture(drawn, looks, some, behind, layers, size, torch.ones(())))
    owner, parts = torch.cat(owners), torch.cat(parts)
    now = torch.arange(len(clip)).view(-1, frames)[:, :-1].reshape(-1)
    motion, visible = flow(figure, owner, now, now + 1, height, width)
    _move_features(motion, visible, figure, looks, owner, parts, now, size)
    points, seen = _landmarks(figure, looks, size)
    shape = (len(who), frames, height, width)
    return FaceClips(
        frames=torch.cat(pictures).view(*shape, 3),
        pose=pose.float(),
        landmarks=points.view(*shape[:2], 68, 2),
        seen=seen.view(*shape[:2], 68),
        mask=(owner != NOTHING).view(shape),
        flow=motion.view(len(who), frames - 1, height, width, 2),
        visible=visible.view(len(who), frames - 1, height, width),
    )


def landmarks(identity_seeds, pose, size=(64, 64)):
    """The 68 points of faces and whether they face us, as FaceClips has them, without rendering; as for `render`."""
    who = torch.as_tensor(identity_seeds, dtype=torch.int64).view(-1)
    pose = check_pose(pose, len(who))
    _checked(size)
    shape = pose.shape[:2]
    _, looks, figure, _ = _scene(who, pose, size, frozenset())
    points, seen = _landmarks(figure, looks, size)
    return points.view(*shape, 68, 2), seen.view(*shape, 68)


def _checked(size):
    if len(size) != 2 or min(size) < 16:
        raise ValueError(f"got size {size}; expected (height, width) of 16 pixels at least")
    return size


def _scene(who, pose, size, without):
    """(which character each frame shows, Looks and Shapes of the frames, their shadows)."""
    flat = pose.reshape(-1, len(POSE))
    clip = torch.arange(len(who)).repeat_interleave(len(flat) // len(who))
    measures, looks = people(who)
    figure, shadow = _figure({name: value[clip] for name, value in measures.items()}, flat, size)
    return clip, _looks(measures, looks, flat, clip, without), figure, shadow


def _looks(measures, looks, pose, clip, without):
    """What every frame's character wears, and the features of its face: Looks of n characters, one a frame."""
    texture = looks.texture.clone()
    for name, value in (("span", JAW - SKULL), ("cap", CAP)):
        texture[TEXTURE.index(name), :, looks.head] = (value * measures["head"]).float()
    face = features.table(looks.face[:, clip], pose).float()
    of_frame = {"texture": texture[:, clip], "chest": looks.chest[:, clip], "backdrop": looks.backdrop[:, clip]}
    return replace(looks, face=face, features=(features.FEATURES, features.Painter(without)), **of_frame)


def _figure(body, pose, size):
    """Shapes of n frames, and their shadows as `paint.picture` takes them."""
    height, width = size
    at = dict(zip(POSE, pose.unbind(-1), strict=True))
    still = torch.zeros(len(pose), dtype=torch.float64)
    angles = "yaw x lean tilt look leg_r leg_l knee_r knee_l arm_r arm_l raise_r raise_l elbow_r elbow_l".split()
    move = {name: still + AT_REST.get(name, 0.0) for name in (*angles, "bent up_r", "bent up_l")}
    rest = stage(body, move)[0]["start"][:, 0]  # where the head's upper end is when nothing moves
    move |= {angle: still + most * at[name] for angle, (name, most) in TURN.items()}
    headwear = body["headwear"].clone()
    hair = headwear[:, HEADWEAR.index("cap"), :8]
    hair += torch.tensor(HAIRLINE) + (hair[:, 6:7] > 1.2) * torch.tensor(FULL_HAIR)
    nod = move["nod"].sin()
    hair[:, 1:3] += torch.stack([0.6 * nod.clamp(max=0), -0.27 * nod], 1)  # hides what a bent head shows of its crown
    capsules, _, _ = stage(body | {"jaw": still + JAW, "headwear": headwear}, move)
    scale = (HEAD * height / body["head"])[:, None]
    centre = torch.stack([still + (width - 1) / 2, CENTRE * height - BREATH * height * at["breathing"], still], -1)
    middle = rest + torch.stack([still, 0.07 * body["head"], still], -1)
    pixels = {k: (capsules[k] - middle[:, None]) * scale[..., None] + centre[:, None] for k in ("start", "end")}
    figure = shapes(**{**capsules, **pixels, "radius": capsules["radius"] * scale[..., None]})
    below = torch.stack([still + width / 2, still + 9.0 * height, still + width, still + 1.0])  # nothing of it is seen
    return figure, below


def _on_head(figure, looks, frame, px, py):
    """Where points of the picture lie on the heads of their frames: x, y and z as `features` has them."""
    g, span, cap = _head(figure, looks, frame)
    t, e, s, c = surface(g, px, py)
    s, c = turned(s, c, g["sin"], g["cos"])
    x = s * (1 - e * e).sqrt()
    return x, (t * span + e * cap - 0.5 * span) / cap + features.nodded(_nod(looks, frame), x), c


def _in_picture(figure, looks, frame, x, y):
    """The inverse: px, py, and the cosine of the angle to the viewer, below 0 on the far side."""
    g, span, cap = _head(figure, looks, frame)
    u = (y - features.nodded(_nod(looks, frame), x)) * cap + 0.5 * span
    t = (u / span).clamp(0, 1)
    e = ((u - t * span) / cap).clamp(-1, 1)
    s = (x / (1 - e * e).sqrt().clamp(min=1e-3)).clamp(-1, 1)
    s, c = turned(s, (1 - s * s).sqrt(), -g["sin"], g["cos"])
    return *place(g, t, e, s), c


def _head(figure, looks, frame):
    """Geometry of the heads of some frames, and the span and cap of their coordinates."""
    g = dict(zip(GEOMETRY, figure.geometry[:, frame, looks.head], strict=True))
    return g, *(looks.texture[TEXTURE.index(name), frame, looks.head] for name in ("span", "cap"))


def _nod(looks, frame):
    return looks.face[features.FEATURES.index("nod"), frame]


def _parts(figure, looks, owner, some, size):
    """Which feature owns each pixel of some frames, uint8 (m, h·w): `features.SKIN` for whatever is no head, too."""
    flat = (owner == looks.head).view(-1).nonzero()[:, 0]
    frame, pixel = flat // (size[0] * size[1]), flat % (size[0] * size[1])
    looks = replace(looks, texture=looks.texture[:, some], face=looks.face[:, some])
    x, y, z = _on_head(figure, looks, frame, *_xy(pixel, size))
    look = dict(zip(features.FEATURES, looks.face[:, frame], strict=True))
    codes = torch.zeros(owner.numel(), dtype=torch.uint8)
    codes[flat] = features.parts(look, x, y, z, looks.features[1].without)
    return codes.view(owner.shape)


def _xy(pixel, size):
    return (pixel % size[1]).float(), (pixel // size[1]).float()


def _move_features(motion, visible, figure, looks, owner, parts, now, size):
    """Put into ``motion`` and ``visible`` how the features move on their heads."""
    pixels = size[0] * size[1]
    flat = (owner[now] == looks.head).view(-1).nonzero()[:, 0]
    pair, pixel = flat // pixels, flat % pixels
    px, py = _xy(pixel, size)
    x, y, _ = _on_head(figure, looks, now[pair], px, py)
    code = parts[now].view(-1)[flat]
    here, there = (dict(zip(features.FEATURES, looks.face[:, now[pair] + d], strict=True)) for d in (0, 1))
    x_then, y_then = x.clone(), y.clone()
    for kind in range(features.IRIS, features.LOWER + 1):
        at = (code == kind).nonzero()[:, 0]
        before, after = ({name: row[at] for name, row in look.items()} for look in (here, there))
        spot = features.Curves(before, x[at], y[at]).of(kind)
        x_then[at], y_then[at] = features.Curves(after, x[at], y[at]).back(kind, spot)
    qx, qy, facing = _in_picture(figure, looks, now[pair] + 1, x_then, y_then)
    motion.view(-1, 2)[flat] = torch.stack([qx - px, qy - py], 1)
    j, i = (qx + 0.5).floor(), (qy + 0.5).floor()
    inside = (j >= 0) & (j < size[1]) & (i >= 0) & (i < size[0]) & (facing >= 0)
    target = (now[pair] + 1) * pixels + (i.clamp(0, size[0] - 1) * size[1] + j.clamp(0, size[1] - 1)).long()
    same = (owner.view(-1)[target] == looks.head) & (parts.view(-1)[target] == code)
    visible.view(-1)[flat] = inside & same


def _landmarks(figure, looks, size):
    """The 68 points of n frames in units of the picture, and whether they face us."""
    look = dict(zip(features.FEATURES, looks.face.double(), strict=True))
    points = features.points(look).float()
    frame = torch.arange(len(points)).repeat_interleave(68)
    x, y, facing = _in_picture(figure, looks, frame, *points.view(-1, 2).unbind(-1))
    points = (torch.stack([x, y], -1) + 0.5) / torch.tensor([size[1], size[0]])
    return points.float(), facing > 0
