"""Attention of PoseAnimate's frames to each other (DCAM), character and background apart (MGDM): sections 3.3 and 3.4.

In the up blocks a frame attends to the source picture, the frame before and itself. Masks of the character come from
what attention says, and keep character and background from attending to one another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from rainlab.method.unet import attend

THRESHOLD = 0.3  # of a cross-attention map, as a share of its maximum: prompt-to-prompt's


@dataclass
class Look:
    """What attention layers are told in a pass over ``f`` frames (frame 0 is the source), ``groups`` times over.

    ``masks`` ``(f, h, w)`` at the latents' size, 1 is the character; None: not apart. ``maps`` collects what cross-
    attention says, ``(f, n)`` from each layer, of the first of the groups; and ``carried`` what part of each place's
    attention to the source falls on ``source``, its mask ``(1, h, w)``, likewise.
    """

    weights: tuple[float, float, float] | None = None  # None: every frame attends to itself
    groups: int = 1
    masks: Tensor | None = None
    source: Tensor | None = None
    maps: list[Tensor] = field(default_factory=list)
    carried: list[Tensor] = field(default_factory=list)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Self-attention ``(groups·f, heads, n, d)`` of an up block."""
        if self.weights is None:
            return attend(q, k, v, None)
        masks = None if self.masks is None else resized(self.masks, q.shape[2])
        parts = [*zip(*(x.chunk(self.groups) for x in (q, k, v)), strict=True)]
        if self.source is not None:
            (q, k, _), there = parts[0], resized(self.source, q.shape[2])[:, None, :, None].to(q.dtype)
            share = attend(q, k[:1].expand_as(q), there.expand(*q.shape[:-1], 1), None)
            self.carried.append(share[..., 0].mean(1).detach())
        return torch.cat([dual_consistency(*part, self.weights, masks) for part in parts])

    def saw(self, q: Tensor, k: Tensor, tokens: slice | None) -> None:
        """Cross-attention ``(groups·f, heads, n, d)`` to ``(groups·f, heads, l, d)``; ``tokens``: the character's.

        None: there is one token, and every place attends to it; told apart by how much against a token of zeros.
        """
        q, k = (x.chunk(self.groups)[0] for x in (q, k))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        shares = scores.sigmoid()[..., 0] if tokens is None else scores.softmax(-1)[..., tokens].sum(-1)
        self.maps.append(shares.mean(1).detach())


def dual_consistency(
    q: Tensor, k: Tensor, v: Tensor, weights: tuple[float, float, float], masks: Tensor | None = None
) -> Tensor:
    """Attention of frames ``(f, heads, n, d)`` to frame 0, the frame before and themselves (equations 7 to 9).

    masks: ``(f, n)``, 1 is the character: keys and values of the rest are zero, and the other way round. Frame 0 is
    the source, and attends to itself.
    """

    def fused(k: Tensor, v: Tensor) -> Tensor:
        seen = (lambda x: x[:1].expand_as(x)), (lambda x: torch.cat([x[:1], x[:-1]])), (lambda x: x)
        return sum(w * attend(q, of(k), of(v), None) for w, of in zip(weights, seen, strict=True))

    if masks is None:
        made = fused(k, v)
    else:
        m = masks[:, None, :, None].to(q.dtype)
        made = m * fused(m * k, m * v) + (1 - m) * fused((1 - m) * k, (1 - m) * v)
    return torch.cat([attend(q[:1], k[:1], v[:1], None), made[1:]])


def resized(masks: Tensor, count: int) -> Tensor:
    """Masks ``(f, h, w)`` at the size of a layer of ``count`` places: ``(f, count)``, 0 or 1."""
    f, height, width = masks.shape
    factor = round((height * width / count) ** 0.5)
    if (height // factor) * (width // factor) != count:
        raise ValueError(f"masks: got {height}×{width}, expected a whole multiple of a layer of {count} places")
    return (F.avg_pool2d(masks[None].float(), factor)[0] >= 0.5).float().reshape(f, count)


def average(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The mean of maps ``(f, n)`` of layers of different sizes, ``(f, h, w)``."""
    height, width = size
    total = torch.zeros(len(maps[0]), height, width, device=maps[0].device)
    for one in maps:
        factor = round((height * width / one.shape[1]) ** 0.5)
        if one.shape[1] != (height // factor) * (width // factor):
            expected = f"{height}×{width} divided by a whole number; take pictures of a multiple of 64 pixels"
            raise ValueError(f"maps: got a layer of {one.shape[1]} places, expected {expected}")
        small = one.reshape(len(one), 1, height // factor, width // factor).float()
        total += F.interpolate(small, size=size, mode="bilinear", align_corners=False)[:, 0]
    return total / len(maps)


def seen_masks(maps: list[Tensor], size: tuple[int, int], threshold: float = THRESHOLD) -> Tensor:
    """Where the character is, ``(f, h, w)`` of 0 and 1, by the mean of cross-attention maps of layers and steps.

    Prompt-to-prompt's way: cut at a share of the way from the least to the greatest value.
    """
    total = average(maps, size)
    low, high = (bound(total.flatten(1), 1).values[:, None, None] for bound in (torch.min, torch.max))
    return ((total - low) >= threshold * (high - low).clamp(min=1e-12)).float()
