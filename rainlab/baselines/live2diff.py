"""Live2Diff (Xing et al., arXiv 2407.08701): attention to the past alone, whose keys and values are kept.

As in StreamDiffusion every call denoises p frames, one at each noise level. The motion modules let each of them attend
to earlier frames *at its own level*, of which a cache holds the first ones for good (the anchor of the style) and the
newest of the others. A frame never sees a later one, so it need not wait for any.

Differs from the paper in two things that cost no time: the anchor is the stream's own first frames, not frames
denoised together beforehand, and pose features stand in for depth.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.baselines.stream_diffusion import StreamDiffusion
from rainlab.method.fast import as_picture, as_tokens
from rainlab.method.rain import RAIN
from rainlab.method.unet import TemporalTransformer


class Live2Diff(StreamDiffusion):
    """One frame in, one frame out, p calls later, each seeing ``length`` frames: itself and the past.

    Args:
        model: its denoising network has motion modules. length: of the cache. anchor: how many of its frames are the
            stream's first ones. options: as for StreamDiffusion.

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
        self._unet = _with(self._cache, self._unet)

    def reset(self) -> None:
        """Forget frames and past; the reference stays."""
        super().reset()
        self._cache.clear()

    def _predict(self, latents: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        self._cache.enter(self._levels, self.levels, latents.device)
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

    def enter(self, levels: list[int], of: int, device: torch.device) -> None:
        """A frame comes to each of these levels: choose its place there, and say how old all places are."""
        self._counts = self._counts or [0] * of
        self.of = of
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
        self.seen = (positions >= 0)[:, None, None, None]  # (rows, 1, 1, 1, length)


class CachedTemporal(nn.Module):
    """A motion module on one frame for each level: ``(rows, c, h, w)``."""

    def __init__(self, plain: TemporalTransformer, cache: Cache):
        super().__init__()
        self.plain, self._cache = plain, cache

    def forward(self, x: Tensor, cond: Any) -> Tensor:
        plain, block = self.plain, self.plain.transformer_blocks[0]
        y = plain.proj_in(as_tokens(plain.norm(x)))
        for norm, attention in zip(block.norms, block.attention_blocks, strict=True):
            y = y + attention.to_out[0](self._attend(attention, norm(y)))
        y = plain.proj_out(y + block.ff(block.ff_norm(y)))
        return x + as_picture(y, x.shape[2]) * cond.temporal_strength

    def _attend(self, attention: nn.Module, x: Tensor) -> Tensor:
        cache, heads = self._cache, attention.heads
        if attention not in cache.kept:  # keys and values before their positional encoding, which changes with age
            cache.kept[attention] = x.new_zeros(2, cache.of, cache.length, *x.shape[1:])
        kept = cache.kept[attention]
        kept[:, cache.levels, cache.places] = torch.stack([attention.to_k(x), attention.to_v(x)])
        encoding = attention.pos_encoder.pe[0].to(x.dtype)
        q = attention.to_q(x + encoding[cache.now, None])
        of_age = torch.stack([to(encoding)[cache.positions] for to in (attention.to_k, attention.to_v)])
        k, v = (kept[:, cache.levels] + of_age[:, :, :, None]).unflatten(-1, (heads, -1)).permute(0, 1, 3, 4, 2, 5)
        q = q.unflatten(-1, (heads, -1))[:, :, :, None]  # (rows, places, heads, 1, d)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=cache.seen).flatten(2)


def _with(cache: Cache, parent: nn.Module) -> nn.Module:
    """The same network with cached motion modules; other modules are shared."""
    import copy

    made = copy.copy(parent)
    made._modules = dict(parent._modules)
    for name, child in parent._modules.items():
        if isinstance(child, TemporalTransformer):
            made._modules[name] = CachedTemporal(child, cache)
        elif child is not None and any(isinstance(part, TemporalTransformer) for part in child.modules()):
            made._modules[name] = _with(cache, child)
    return made
