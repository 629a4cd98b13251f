"""Live2Diff (Xing et al., arXiv 2407.08701): attention to the past alone, whose keys and values are kept.

As in StreamDiffusion every call denoises p frames, one at each noise level. The motion modules let each of them attend
to earlier frames *at its own level*, of which a cache holds the first ones for good (the anchor of the style) and the
newest of the others. A frame never sees a later one, so it need not wait for any.

Differs from the paper as :mod:`rainlab.baselines.stream_diffusion` does, and: the anchor is the stream's own first
frames, not frames denoised together beforehand; pose features stand in for depth; p is four here, two there.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rainlab.baselines.stream_diffusion import StreamDiffusion
from rainlab.method.fast import Gated, Product, as_picture, as_tokens, scaled_qkv
from rainlab.method.rain import RAIN
from rainlab.method.unet import TemporalTransformer


class Live2Diff(StreamDiffusion):
    """One frame in, one frame out, p calls later, each seeing ``length`` frames: itself and the past.

    Args:
        model: its denoising network has motion modules. length: of the cache. anchor: how many of its frames are the
            stream's first ones. options: as for StreamDiffusion; the noise is drawn anew for every frame and level.

    Raises:
        ValueError: no motion modules, or a cache longer than their positional encoding.
    """

    motion = True

    def __init__(self, model: RAIN, length: int = 16, anchor: int = 8, **options: Any):
        longest = model.denoising_unet.cfg.motion_length
        if not 0 <= anchor < length <= longest:
            raise ValueError(f"got anchor={anchor}, length={length}, expected 0 <= anchor < length <= {longest}")
        self._cache = Cache(length, anchor)
        super().__init__(model, **options)
        self._unet = _with(self._cache, self._unet, packed=bool(options.get("fast")))

    def reset(self) -> None:
        """Forget frames and past; the reference stays."""
        super().reset()
        self._cache.clear()
        self._newcomer: int | None = None  # which of the frames under way is a new character's first

    def reference(self, picture: np.ndarray) -> None:
        """As StreamDiffusion's; frames that begin from now on do not see the past, which is another character's."""
        super().reference(picture)
        self._newcomer = len(self._levels)

    def _noise(self, levels: Tensor) -> Tensor:
        shape = (len(levels), *self._latent.shape)
        return torch.randn(shape, generator=self._generator).to(self._latent)

    def _predict(self, latents: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        levels, first = self._levels, self._newcomer
        if first is not None and first < len(levels):
            self._cache.forget(levels[first])
            self._newcomer = first - (levels[0] == 0) if first or levels[0] else None
        self._cache.enter(levels, self.levels, latents.device)
        return super()._predict(latents, timesteps, features)


class Cache:
    """Which places of the caches of all motion modules hold what."""

    def __init__(self, length: int, anchor: int):
        self.length, self.anchor = length, anchor
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._counts: list[int] = []  # frames that have been seen at each level
        self.kept: dict[nn.Module, Tensor] = {}

    def forget(self, level: int) -> None:
        """Begin anew at one level."""
        if self._counts:
            self._counts[level] = 0

    def enter(self, levels: list[int], of: int, device: torch.device) -> None:
        """A frame comes to each of these levels: choose its place there, and say how old all places are."""
        self._counts = self._counts or [0] * of
        self.of, self.all = of, levels == list(range(of))
        recent, places, ages = self.length - self.anchor, [], []
        for level in levels:
            count = self._counts[level]
            place = count if count < self.length else self.anchor + (count - self.anchor) % recent
            last = min(count, self.length - 1)
            # position in time of every place: the anchor's own, the others by age; -1: nothing there yet
            position = [p if p <= last else -1 for p in range(self.length)]
            if count >= self.length:
                ring = range(self.anchor, self.length)
                position[self.anchor :] = [self.length - 1 - (place - p) % recent for p in ring]
            places.append(place)
            ages.append(position)
            self._counts[level] = count + 1
        self.levels, self.places, positions = (torch.tensor(x, device=device) for x in (levels, places, ages))
        self.positions = positions.clamp(min=0)
        self.now = self.positions.gather(1, self.places[:, None])[:, 0]
        self.hidden = torch.where(positions >= 0, 0.0, -torch.inf)[:, None, None]  # (rows, 1, 1, length)


class CachedTemporal(nn.Module):
    """A motion module on one frame for each level: ``(rows, c, h, w)``."""

    def __init__(self, plain: TemporalTransformer, cache: Cache, packed: bool):
        super().__init__()
        block = plain.transformer_blocks[0]
        self._cache, self.norm, self.norms, self.ff_norm = cache, plain.norm, block.norms, block.ff_norm
        self.proj_in, self.proj_out = (Product(x.weight, x.bias, packed) for x in (plain.proj_in, plain.proj_out))
        self.attend = nn.ModuleList(CachedAttention(attention, cache, packed) for attention in block.attention_blocks)
        self.ff = Gated(block.ff, packed)

    def forward(self, x: Tensor, cond: Any) -> Tensor:
        y = self.proj_in(as_tokens(self.norm(x)))
        for norm, attend in zip(self.norms, self.attend, strict=True):
            y = attend(norm(y), y)
        y = self.proj_out(self.ff(self.ff_norm(y), y))
        return x + as_picture(y, x.shape[2]) * cond.temporal_strength


class CachedAttention(nn.Module):
    """Attention of each place of a frame to the same place of the frames that the cache holds, with its residual."""

    def __init__(self, plain: nn.Module, cache: Cache, packed: bool):
        super().__init__()
        weight, last = scaled_qkv(plain), plain.to_out[0]
        self._cache, self.heads = cache, plain.heads
        self.qkv, self.out = Product(weight, None, packed), Product(last.weight, last.bias, packed)
        # what the positional encoding adds to queries, keys and values, which changes with age: (length, 3, heads, d)
        slots = nn.functional.linear(plain.pos_encoder.pe[0].to(weight.dtype), weight)
        self.slots = nn.Parameter(slots.unflatten(-1, (3, plain.heads, -1)), requires_grad=False)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """``(rows, places, c)``."""
        cache, (rows, places, c) = self._cache, x.shape
        q, k, v = self.qkv(x).view(rows, places, 3, self.heads, -1).unbind(2)  # (rows, places, heads, d)
        if self not in cache.kept:
            cache.kept[self] = x.new_zeros(2, cache.of, cache.length, places, self.heads, c // self.heads)
        kept = cache.kept[self]
        kept[0, cache.levels, cache.places], kept[1, cache.levels, cache.places] = k, v
        keys, values = kept if cache.all else kept[:, cache.levels]
        q = q + self.slots[cache.now, 0][:, None]
        of_age = self.slots[cache.positions]  # (rows, length, 3, heads, d)
        # a query has but length keys: elementwise is faster than as many products of a row with a matrix
        scores = (keys * q[:, None]).sum(-1).permute(0, 2, 3, 1)  # (rows, places, heads, length)
        scores = scores + torch.einsum("rphd,rlhd->rphl", q, of_age[:, :, 1]) + cache.hidden.to(q.dtype)
        weights = scores.softmax(-1)
        mixed = (values * weights.permute(0, 3, 1, 2)[..., None]).sum(1)
        mixed = mixed + torch.einsum("rphl,rlhd->rphd", weights, of_age[:, :, 2])
        return self.out.plus(mixed.reshape(rows, places, c), residual)


def _with(cache: Cache, parent: nn.Module, packed: bool) -> nn.Module:
    """The same network with cached motion modules; other modules are shared."""
    made = copy.copy(parent)
    made._modules = dict(parent._modules)
    for name, child in parent._modules.items():
        if isinstance(child, TemporalTransformer):
            made._modules[name] = CachedTemporal(child, cache, packed)
        elif child is not None and any(isinstance(part, TemporalTransformer) for part in child.modules()):
            made._modules[name] = _with(cache, child, packed)
    return made
