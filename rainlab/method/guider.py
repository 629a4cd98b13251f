"""Pose guider: a small convolutional network from condition pictures to features added after ``conv_in``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PoseGuider(nn.Module):
    """Maps ``(b, f, 3, H, W)`` in [0, 1] to ``(b, f, channels, H/s, W/s)`` with s = 2^(len(widths) - 1) (section 4.4).

    The published guider has widths (16, 32, 96, 256), s = 8. ``conv_out`` starts at zero (ControlNet's zero
    convolution, as in AnimateAnyone), so that training begins from the unguided network.
    """

    def __init__(self, channels: int = 320, widths: tuple[int, ...] = (16, 32, 96, 256)):
        super().__init__()
        self.scale = 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for width, wider in zip(widths[:-1], widths[1:], strict=True):
            self.blocks.append(nn.Conv2d(width, width, 3, padding=1))
            self.blocks.append(nn.Conv2d(width, wider, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, condition: Tensor) -> Tensor:
        if condition.ndim != 5 or condition.shape[2] != 3 or any(n % self.scale for n in condition.shape[3:]):
            raise ValueError(
                f"condition: got shape {tuple(condition.shape)}, expected (b, f, 3, H, W) with H and W "
                f"multiples of {self.scale}, values in [0, 1]"
            )
        x = F.silu(self.conv_in(condition.flatten(0, 1)))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x).unflatten(0, condition.shape[:2])
