"""Pose pictures in the DWPose/OpenPose convention: key points in, a coloured skeleton on black out.

After `draw_bodypose`, `draw_handpose` and `draw_facepose` of DWPose (github.com/IDEA-Research/DWPose, `util.py`), which
go back to ControlNet's OpenPose annotator; the same order, colours and thicknesses, but antialiased and vectorised, so
that a picture of 64 pixels says as much as one of 512. The centre of pixel (row i, column j) is the point x=j, y=i.
"""

import colorsys

import torch

# The 18 body points; R and L are the person's own right and left.
POINTS = tuple("nose neck Rsho Relb Rwri Lsho Lelb Lwri Rhip Rkne Rank Lhip Lkne Lank Reye Leye Rear Lear".split())
# fmt: off
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
         (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
           (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
           (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))  # limb i and point i have colour i
# fmt: on
DIMMED = 0.6  # limbs are drawn at this brightness, points at full
FINGERS = tuple((0 if k % 4 == 1 else k - 1, k) for k in range(1, 21))  # bones of a hand: four to a finger
FINGER_COLOURS = tuple(tuple(255 * c for c in colorsys.hsv_to_rgb(k / 20, 1, 1)) for k in range(20))
HAND_COLOUR, FACE_COLOUR = (0, 0, 255), (255, 255, 255)
CONFIDENT = 0.3  # DWPose leaves out points below this score
# Half the thickness in a picture whose shorter side is 512 pixels, and the least one, in pixels, that is still seen.
LIMB, POINT, FINGER, KNUCKLE, FACE = (4, 0.9), (4, 1.1), (1, 0.5), (4, 0.7), (3, 0.6)
CHUNK = 64 * 64 * 48  # pixels in work at a time


def draw(keypoints, size, hands=None, face=None):
    """Draw bodies, and on request hands and faces: uint8 (..., h, w, 3) RGB on black.

    keypoints: float (..., 18, 3), tensor or array: x, y in pixels and confidence, in the order of POINTS. hands:
    (..., 2, 21, 3) and face: (..., 68, 3) likewise, with the same leading dimensions. Points less confident than 0.3
    are left out, with the limbs that end there. size: (height, width).
    Raises ValueError for other shapes.
    """
    height, width = size
    keypoints = _checked("keypoints", keypoints, (18, 3))
    leading = keypoints.shape[:-2]
    bodies = keypoints.reshape(-1, 18, 3)
    hands = None if hands is None else _checked("hands", hands, (2, 21, 3), leading).reshape(-1, 2, 21, 3)
    face = None if face is None else _checked("face", face, (68, 3), leading).reshape(-1, 68, 3)
    pictures = torch.empty(len(bodies), height, width, 3, dtype=torch.uint8)
    for part in torch.arange(len(bodies)).split(max(1, CHUNK // (height * width))):
        canvas = _Canvas(len(part), height, width)
        body = bodies[part]
        for (a, b), colour in zip(LIMBS, COLOURS, strict=False):
            canvas.limb(body[:, a], body[:, b], LIMB, colour)
        canvas.planes *= DIMMED
        for k, colour in enumerate(COLOURS):
            canvas.line(body[:, k], body[:, k], POINT, colour)
        for hand in () if hands is None else hands[part].unbind(1):
            for (a, b), colour in zip(FINGERS, FINGER_COLOURS, strict=True):
                canvas.line(hand[:, a], hand[:, b], FINGER, colour)
            for point in hand.unbind(1):
                canvas.line(point, point, KNUCKLE, HAND_COLOUR)
        for point in () if face is None else face[part].unbind(1):
            canvas.line(point, point, FACE, FACE_COLOUR)
        pictures[part] = canvas.pictures()
    return pictures.view(*leading, height, width, 3)


def _checked(name, points, shape, leading=None):
    points = torch.as_tensor(points, dtype=torch.float32)
    count = len(shape)
    if tuple(points.shape[-count:]) != shape or (leading is not None and points.shape[:-count] != leading):
        wanted = "..." if leading is None else ", ".join(map(str, leading))
        raise ValueError(f"{name} has shape {tuple(points.shape)}; expected ({wanted}, {', '.join(map(str, shape))})")
    return points


class _Canvas:
    """n black pictures, as float planes (3, n, h·w) of 0 … 255, to paint one shape after another over all at once."""

    def __init__(self, count, height, width):
        self.size, self.unit = (height, width), min(height, width) / 512
        self.planes = torch.zeros(3, count, height * width)

    def limb(self, a, b, thickness, colour):
        """An ellipse with its long axis from a to b, each (n, 3)."""
        self._paint(a, b, thickness, colour, _outside_ellipse)

    def line(self, a, b, thickness, colour):
        """A line of even thickness with round ends; a disc where a is b."""
        self._paint(a, b, thickness, colour, _outside_line)

    def pictures(self):
        return self.planes.round().byte().view(3, -1, *self.size).permute(1, 2, 3, 0)

    def _paint(self, a, b, thickness, colour, outside):
        """Only a box around the shape is touched: as large for all pictures as the largest needs it."""
        radius = max(thickness[0] * self.unit, thickness[1])
        seen = (a[:, 2] >= CONFIDENT) & (b[:, 2] >= CONFIDENT)
        a, b = (torch.where(seen[:, None], p[:, :2], -9.0) for p in (a, b))
        corner, extent = [], []
        for axis, limit in ((1, self.size[0]), (0, self.size[1])):
            low = (torch.minimum(a[:, axis], b[:, axis]) - radius - 1).floor().clamp(0, limit)
            high = (torch.maximum(a[:, axis], b[:, axis]) + radius + 2).ceil().clamp(0, limit)
            extent.append(int(((high - low) * seen).amax()))
            corner.append(low.clamp(max=limit - extent[-1]).long()[:, None])
        if not all(extent):
            return
        y, x = (c + torch.arange(e) for c, e in zip(corner, extent, strict=True))
        where = (y[:, :, None] * self.size[1] + x[:, None]).view(len(a), -1)
        middle, half = (a + b)[:, :, None, None] / 2, (b - a)[:, :, None, None] / 2
        x, y = x[:, None] - middle[:, 0], y[:, :, None] - middle[:, 1]
        length = (half * half).sum(1).sqrt()
        dx, dy = torch.where(length > 0, half[:, 0] / length, 1.0), torch.where(length > 0, half[:, 1] / length, 0.0)
        distance = outside(x * dx + y * dy, y * dx - x * dy, length, radius)
        alpha = ((0.5 - distance).clamp(0, 1) * seen[:, None, None]).view(len(a), -1)
        for plane, c in zip(self.planes, colour, strict=True):
            under = plane.gather(1, where)
            plane.scatter_(1, where, under + alpha * (c - under))


def _outside_line(along, across, length, radius):
    """Distance from the edge of a line of half-length `length` and half-thickness `radius`; negative inside."""
    over = (along.abs() - length).clamp(min=0)
    return (over * over + across * across).sqrt() - radius


def _outside_ellipse(along, across, length, radius):
    """Distance, to first order, from an ellipse with half-axes `length` and `radius`; negative inside."""
    x, y = along / length.clamp(min=radius), across / radius
    square = x * x + y * y
    x, y = x / length.clamp(min=radius), y / radius
    return (square.sqrt() - 1) * ((square + 1e-6) / (x * x + y * y + 1e-6 / radius**2)).sqrt()
