"""Pose pictures in the DWPose/OpenPose convention: keypoints in, coloured skeleton on black out.

The 18 points, in OpenPose order: nose, neck, Rsho, Relb, Rwri, Lsho, Lelb, Lwri, Rhip, Rkne, Rank, Lhip, Lkne, Lank,
Reye, Leye, Rear, Lear; R and L are the person's own right and left.
"""

import torch

POINTS = ("nose neck Rsho Relb Rwri Lsho Lelb Lwri Rhip Rkne Rank Lhip Lkne Lank Reye Leye Rear Lear").split()
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
         (1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
COLOURS = ((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
           (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
           (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85))


def draw(keypoints, size, hands=None, face=None):
    kp = torch.as_tensor(keypoints, dtype=torch.float32)
    lead = kp.shape[:-2]
    kp = kp.reshape(-1, 18, 3)
    h, w = size
    width = max(4 * min(h, w) / 512, 0.9)
    canvas = torch.zeros(len(kp), 3, h, w)
    x = torch.arange(w, dtype=torch.float32).view(1, 1, w)
    y = torch.arange(h, dtype=torch.float32).view(1, h, 1)

    def paint(distance, seen, colour):
        alpha = ((0.5 - distance).clamp(0, 1) * seen.view(-1, 1, 1))[:, None]
        canvas.add_(alpha * (torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1) - canvas))

    for (i, j), colour in zip(LIMBS, COLOURS, strict=False):
        a, b = kp[:, i], kp[:, j]
        seen = (a[:, 2] > 0.3) & (b[:, 2] > 0.3)
        c = (a + b) / 2
        d = (b - a)[:, :2]
        length = (d * d).sum(1).sqrt().clamp(min=1e-3)
        d = d / length[:, None]
        qx, qy = x - c[:, 0].view(-1, 1, 1), y - c[:, 1].view(-1, 1, 1)
        dx, dy = d[:, 0].view(-1, 1, 1), d[:, 1].view(-1, 1, 1)
        ra = (length / 2).clamp(min=width).view(-1, 1, 1)
        u, v = (qx * dx + qy * dy) / ra, (qy * dx - qx * dy) / width
        k0 = (u * u + v * v).sqrt()
        k1 = ((u / ra) ** 2 + (v / width) ** 2).sqrt().clamp(min=1e-6)
        paint(k0 * (k0 - 1) / k1, seen, colour)
    canvas.mul_(0.6)
    for i, colour in enumerate(COLOURS):
        p = kp[:, i]
        qx, qy = x - p[:, 0].view(-1, 1, 1), y - p[:, 1].view(-1, 1, 1)
        paint((qx * qx + qy * qy).sqrt() - width, p[:, 2] > 0.3, colour)
    return canvas.round().byte().permute(0, 2, 3, 1).reshape(*lead, h, w, 3)
