"""Numbers as sines and cosines: time steps, the guidance strength ω, and the slots of the window."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of time steps, ``(n,) -> (n, dim)``: [cos, sin], divisor dim/2 (as SD 1.5)."""
    half = dim // 2
    rate = torch.exp(-math.log(10000.0) * torch.arange(half, device=timesteps.device, dtype=torch.float32) / half)
    angle = timesteps[:, None].float() * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def guidance_embedding(guidance: Tensor, dim: int = 512) -> Tensor:
    """Embedding of ω, ``(n,) -> (n, dim)``: of ω·1000, [sin, cos], divisor dim/2 - 1, zero-padded to odd ``dim``.

    ω is the strength of classifier-free guidance v_null + ω (v - v_null), passed raw (diffusers' LCM passes ω - 1).
    """
    angle = guidance[:, None] * 1000.0 * guidance_rates(dim, guidance)
    return torch.nn.functional.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, dim % 2))


def guidance_rates(dim: int, like: Tensor | None = None) -> Tensor:
    """How fast the columns of :func:`guidance_embedding` turn with ω·1000, ``(dim // 2,)``, 1 … 1e-4, float32.

    ``like``: a tensor whose type and device are wanted instead.
    """
    like = torch.zeros(0) if like is None else like
    index = torch.arange(dim // 2, dtype=like.dtype, device=like.device)
    return torch.exp(index * -(math.log(10000.0) / (dim // 2 - 1)))


def sinusoid(length: int, dim: int) -> Tensor:
    """Positional encoding of the motion modules: ``(length, dim)``, sine in even and cosine in odd columns."""
    position = torch.arange(length)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    pe = torch.zeros(length, dim)
    pe[:, 0::2], pe[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
    return pe
