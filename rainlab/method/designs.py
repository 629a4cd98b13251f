"""Other ways to show a denoising network the reference: what AnimateAnyone compares its ReferenceNet with (Table 3).

``model.design`` of a preset chooses one; everything else, training and sampling, is the same code:

    reference    the reference network's states enter self-attention, the image encoder's token cross-attention (RAIN)
    clip         the token alone
    controlnet   a ControlNet (Zhang et al., arXiv 2302.05543) told the reference, whose features are added in place
    both         token and ControlNet

Published ControlNets are copies of a network that is trained already, whose copy then learns. Here both learn together
from the beginning, so that every design gets the same training; and the hint is the reference's latents, not a picture.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.config import ModelConfig, UNetConfig
from rainlab.method.context import build_context
from rainlab.method.unet import Condition, UNet

DESIGNS = {
    "clip": "image encoder",
    "controlnet": "ControlNet",
    "both": "image encoder and ControlNet",
    "reference": "image encoder and reference network",
}
HINT = "hint"  # what a bank of this name holds is for the ControlNet


class NoReference(nn.Module):
    """In place of the reference network: nothing of it is looked at."""

    def bank(self, latents: Tensor, context: Tensor) -> dict[str, Tensor]:
        return {}


class NoContext(nn.Module):
    """In place of the image encoder: a token of zeros ``(b, 1, d)``."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.new_zeros(len(pictures), 1, self.dim)


class Hint(nn.Module):
    """In place of the reference network: the reference's latents as a ControlNet's hint, ``(b, channels[0], h, w)``."""

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        width = cfg.channels[0]
        self.conv_in, self.conv_out = (nn.Conv2d(i, width, 3, padding=1) for i in (cfg.latent_channels, width))
        _start_at_zero(self.conv_out)

    def bank(self, latents: Tensor, context: Tensor) -> dict[str, Tensor]:
        return {HINT: self.conv_out(F.silu(self.conv_in(latents)))}


class ControlledUNet(UNet):
    """A denoising network with a ControlNet: a second encoder, whose outputs are added to skips and middle."""

    def __init__(self, cfg: UNetConfig):
        super().__init__(cfg)
        encoder = UNet(replace(cfg, motion=False, guidance_dim=None, out=False))
        self.control = nn.Module()
        self.control.conv_in, self.control.down_blocks = encoder.conv_in, encoder.down_blocks
        self.control.mid_block = encoder.mid_block
        widths = [cfg.channels[0]]  # of the skips: two layers a level, and what leads down from it
        for number, width in enumerate(cfg.channels):
            widths += [width] * (3 if number < len(cfg.channels) - 1 else 2)
        self.control.zeros = nn.ModuleList(nn.Conv2d(width, width, 1) for width in [*widths, cfg.channels[-1]])
        for conv in self.control.zeros:
            _start_at_zero(conv)

    def _backbone(self, x: Tensor, pose: Tensor | None, cond: Condition, more: list[Tensor] | None = None) -> Tensor:
        hint = (cond.reference or {}).get(HINT)
        if hint is None:
            return super()._backbone(x, pose, cond)
        if cond.reference_keep is not None:
            hint = torch.where(cond.reference_keep[:, None, None, None], hint, 0.0)
        y = self.control.conv_in(x) + hint.repeat_interleave(cond.frames, 0)
        seen = self._encode(y, self.control.down_blocks, cond)
        seen.append(self.control.mid_block(seen[-1], cond))
        return super()._backbone(x, pose, cond, [zero(y) for zero, y in zip(self.control.zeros, seen, strict=True)])


def _start_at_zero(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


def denoiser(cfg: ModelConfig, channels: int, *, motion: bool, guidance: bool) -> UNet:
    """A fresh denoising network for latents of so many channels. ValueError for an unknown ``model.design``."""
    if cfg.design not in DESIGNS:
        raise ValueError(f"model.design: got {cfg.design!r}, expected one of {', '.join(DESIGNS)}")
    kind = ControlledUNet if cfg.design in ("controlnet", "both") else UNet
    return kind(cfg.unet(channels, motion=motion, guidance=guidance))


def reference(cfg: ModelConfig, channels: int) -> nn.Module:
    """A fresh reference network, or what is in its place."""
    if cfg.design == "reference":
        return UNet(cfg.unet(channels, out=False))
    return NoReference() if cfg.design == "clip" else Hint(cfg.unet(channels))


def context(cfg: ModelConfig) -> nn.Module:
    """The context encoder of a configuration, or none."""
    return NoContext(cfg.cross_attention_dim) if cfg.design == "controlnet" else build_context(cfg)
