"""The UNet, as reference network and as denoising network of RAIN, with the published key names.

Both are the UNet of Stable Diffusion 1.5. The *reference network* (``out=False``) reads one picture and leaves behind
the states that enter each spatial self-attention: the **bank**. The *denoising network* (``motion=True``) attends to
``[own; bank]`` (RAIN eq. 6) and, after every ResNet/attention pair, over the frames of the window (section 4.1).
Every frame carries its own time step, and every GroupNorm looks at one frame only: that is what lets frames of
different noise levels share a window, and what ``diffusers.UNetMotionModel`` cannot do.

State dicts of SD 1.5, AnimateDiff v2, Moore-AnimateAnyone and RAIN v0.1 load without renaming.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rainlab.config import StreamConfig, UNetConfig
from rainlab.method.embeddings import sinusoid, timestep_embedding

MOTION_NORM_GROUPS = 32  # AnimateDiff's motion modules use 32 groups whatever the UNet around them uses


@dataclass
class Condition:
    """What every block of one forward pass sees, besides its input ``(b·f, c, h, w)``.

    Not a condition picture: that one enters as pose features, behind the first convolution.
    """

    emb: Tensor  # (b·f, 4·channels[0]) time (and guidance) embedding
    context: Tensor  # (b·f, n, d)
    frames: int  # f
    reference: dict[str, Tensor] | None = None  # name -> (b, h·w, c)
    reference_keep: Tensor | None = None  # (b,) bool
    temporal_mask: Tensor | None = None  # (f, f)
    temporal_strength: float = 1.0  # of what the motion modules add
    bank: dict[str, Tensor] | None = None  # filled instead of read when the network is the reference network


class Attention(nn.Module):
    """Multi-head attention with SD's key names; ``extra`` are further keys/values shared by the frames of a sample."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list because the published key is to_out.0

    def only(self, context: Tensor) -> Tensor:
        """What every query gets from a context of one token ``(n, 1, d)``, on which the softmax is 1: ``(n, 1, c)``."""
        return self.to_out[0](self.to_v(context))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None, extra: Tensor | None = None) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        if extra is not None:  # (b, m, c): projected once per sample, then shared by its frames
            f = x.shape[0] // extra.shape[0]
            k = torch.cat([k, repeat(self.to_k(extra), "b m c -> (b f) m c", f=f)], dim=1)
            v = torch.cat([v, repeat(self.to_v(extra), "b m c -> (b f) m c", f=f)], dim=1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (q, k, v))
        return self.to_out[0](rearrange(attend(q, k, v, mask), "b h n d -> b n (h d)"))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of ``(b, h, n, d)`` queries. In bf16 on a processor plain products take less than half the time."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or (mask is not None and mask.dtype != torch.bool):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1).to(v.dtype) @ v


class GEGLU(nn.Module):
    def __init__(self, dim: int, inner: int):
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))  # 1: SD's dropout slot

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class SpatialBlock(nn.Module):
    """Self-attention over ``[own; reference]``, cross-attention to the context, feed-forward."""

    def __init__(self, dim: int, context_dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, heads)
        self.attn2 = Attention(dim, context_dim, heads)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, h: Tensor, cond: Condition, reference: Tensor | None) -> Tensor:
        """``x``: (b·f, h·w, c); ``h``: norm1(x), computed by the caller because the bank needs it too."""
        mask = None
        if reference is not None and cond.reference_keep is not None:
            keep = cond.reference_keep.repeat_interleave(cond.frames)[:, None]
            own = torch.ones(x.shape[0], x.shape[1], dtype=torch.bool, device=x.device)
            mask = torch.cat([own, keep.expand(-1, reference.shape[1])], dim=1)[:, None, None]
        x = x + self.attn1(h, h, mask=mask, extra=reference)
        alone = cond.context.shape[1] == 1
        x = x + (self.attn2.only(cond.context) if alone else self.attn2(self.norm2(x), cond.context))
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """``name`` (d00 … m … u32) pairs the same block of both networks; ``last`` is the reference network's last tap."""

    def __init__(self, name: str, dim: int, cfg: UNetConfig, last: bool = False):
        super().__init__()
        self.name, self.last = name, last
        self.norm = nn.GroupNorm(cfg.norm_groups, dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList([SpatialBlock(dim, cfg.cross_attention_dim, cfg.heads)])
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, cond: Condition) -> Tensor:
        height, block = x.shape[-2], self.transformer_blocks[0]
        y = pointwise(self.proj_in, rearrange(self.norm(x), "b c h w -> b (h w) c"))
        h = block.norm1(y)
        if cond.bank is not None:
            cond.bank.setdefault(self.name, h)  # a checkpoint's second pass leaves the first one's
            if self.last:  # nothing after this tap reaches the bank
                return x
        reference = cond.reference.get(self.name) if cond.reference is not None else None
        y = block(y, h, cond, reference)
        return x + rearrange(pointwise(self.proj_out, y), "b (h w) c -> b c h w", h=height)


def pointwise(conv: nn.Conv2d, tokens: Tensor) -> Tensor:
    """A 1×1 convolution applied to tokens ``(…, c)``: the same numbers without a convolution's fixed cost per call."""
    return F.linear(tokens, conv.weight.flatten(1), conv.bias)


class TemporalAttention(Attention):
    """Attention over frames; the positional encoding enters queries, keys and values and is the slot in the window."""

    def __init__(self, dim: int, heads: int, length: int):
        super().__init__(dim, dim, heads)
        self.pos_encoder = nn.Module()
        self.pos_encoder.register_buffer("pe", sinusoid(length, dim)[None])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.pos_encoder.pe[:, : x.shape[1]].to(x.dtype)
        return super().forward(x, x, mask=mask)

    def weights(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention weights ``(n, heads, f, f)`` of the same input, for looking at them; ``mask`` is bool."""
        x = x + self.pos_encoder.pe[:, : x.shape[1]].to(x.dtype)
        q, k = (rearrange(t, "n f (h d) -> n h f d", h=self.heads) for t in (self.to_q(x), self.to_k(x)))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)


def causal_mask(frames: int, device: torch.device | str = "cpu") -> Tensor:
    """``(f, f)`` bool: a frame attends to itself and to earlier slots of the window (the ablation of section 5.4)."""
    return torch.ones(frames, frames, dtype=torch.bool, device=device).tril()


def temporal_mask(cfg: StreamConfig, frames: int, device: torch.device | str = "cpu") -> Tensor | None:
    """Which of a window's frames see which, ``(f, f)`` bool; None where all see all. ``frames``: whole groups."""
    if cfg.cross_level and not cfg.causal:
        return None
    mask = causal_mask(frames) if cfg.causal else torch.ones(frames, frames, dtype=torch.bool)
    if not cfg.cross_level:
        level = torch.arange(frames) // cfg.group_size
        mask &= level[:, None] == level
    return None if mask.all() else mask.to(device)


class TemporalBlock(nn.Module):
    def __init__(self, dim: int, cfg: UNetConfig):
        super().__init__()
        self.attention_blocks = nn.ModuleList(TemporalAttention(dim, cfg.heads, cfg.motion_length) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.ff, self.ff_norm = FeedForward(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attention(norm(x), mask)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    def __init__(self, dim: int, cfg: UNetConfig):
        super().__init__()
        self.norm = nn.GroupNorm(MOTION_NORM_GROUPS, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(dim, cfg)])
        self.proj_out = nn.Linear(dim, dim)
        # a fresh motion module is the identity, so stage 2 starts exactly where stage 1 ended (AnimateDiff)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, cond: Condition) -> Tensor:
        f, (height, width) = cond.frames, x.shape[-2:]
        y = self.proj_in(rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=f))
        y = self.proj_out(self.transformer_blocks[0](y, cond.temporal_mask))
        y = rearrange(y, "(b h w) f c -> (b f) c h w", h=height, w=width)
        return x + (y if cond.temporal_strength == 1 else cond.temporal_strength * y)


class MotionModule(nn.Module):
    def __init__(self, dim: int, cfg: UNetConfig):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(dim, cfg)

    def forward(self, x: Tensor, cond: Condition) -> Tensor:
        return self.temporal_transformer(x, cond)


class ResnetBlock(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, emb_dim: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, dim_in, eps=1e-5)
        self.conv1 = nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb_dim, dim_out)
        self.norm2 = nn.GroupNorm(groups, dim_out, eps=1e-5)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Resample(nn.Module):
    """Stride-2 convolution down, or nearest-neighbour to ``size`` and a convolution up."""

    def __init__(self, dim: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return self.conv(x if size is None else F.interpolate(x, size=size, mode="nearest"))


class Level(nn.Module):
    """One resolution: (ResNet, attention, motion) repeated; a list is empty where the level has no such part."""

    def __init__(self, dims_in, dim: int, cfg: UNetConfig, name: str | None, resample: str | None, last: bool = False):
        super().__init__()
        n, emb_dim = len(dims_in), 4 * cfg.channels[0]
        self.resnets = nn.ModuleList(ResnetBlock(d, dim, emb_dim, cfg.norm_groups) for d in dims_in)
        taps = [SpatialTransformer(f"{name}{j}", dim, cfg, last=last and j == n - 1) for j in range(n)] if name else []
        self.attentions = nn.ModuleList(taps)
        self.motion_modules = nn.ModuleList(MotionModule(dim, cfg) for _ in range(n if cfg.motion else 0))
        self.downsamplers = nn.ModuleList([Resample(dim, 2)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Resample(dim, 1)] if resample == "up" else [])

    def layer(self, j: int, x: Tensor, cond: Condition) -> Tensor:
        x = self.resnets[j](x, cond.emb)
        for attention in self.attentions[j : j + 1]:
            x = attention(x, cond)
        for motion in self.motion_modules[j : j + 1]:
            x = motion(x, cond)
        return x


class Middle(nn.Module):
    def __init__(self, cfg: UNetConfig):
        super().__init__()
        dim, emb_dim = cfg.channels[-1], 4 * cfg.channels[0]
        self.attentions = nn.ModuleList([SpatialTransformer("m", dim, cfg)])
        self.resnets = nn.ModuleList(ResnetBlock(dim, dim, emb_dim, cfg.norm_groups) for _ in range(2))
        self.motion_modules = nn.ModuleList([MotionModule(dim, cfg)] if cfg.motion else [])

    def forward(self, x: Tensor, cond: Condition) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, cond.emb), cond)
        for motion in self.motion_modules:
            x = motion(x, cond)
        return self.resnets[1](x, cond.emb)


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int, guidance_dim: int | None):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, 4 * dim)
        if guidance_dim:
            self.cond_proj = nn.Linear(guidance_dim, dim, bias=False)

    def forward(self, sample: Tensor, guidance: Tensor | None) -> Tensor:
        if guidance is not None:
            sample = sample + self.cond_proj(guidance)
        return self.linear_2(F.silu(self.linear_1(sample)))


class UNet(nn.Module):
    """Reference network (``out=False``) or denoising network of RAIN (section 4.4).

    Levels = ``len(cfg.channels)``; all but the last have attention; each has two layers on the way down and three up.
    ``checkpointing = True`` trades a second forward pass for activation memory in training.
    """

    def __init__(self, cfg: UNetConfig):
        super().__init__()
        self.cfg, self.checkpointing = cfg, False
        channels, top = cfg.channels, len(cfg.channels) - 1
        self.conv_in = nn.Conv2d(cfg.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(channels[0], cfg.guidance_dim)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        skips, dim = [channels[0]], channels[0]
        for i, width in enumerate(channels):
            name, resample = (f"d{i}" if i < top else None), ("down" if i < top else None)
            self.down_blocks.append(Level([dim, width], width, cfg, name, resample))
            skips += [width] * (3 if i < top else 2)
            dim = width
        self.mid_block = Middle(cfg)
        for i, width in enumerate(reversed(channels)):
            dims_in = [(dim if j == 0 else width) + skips.pop() for j in range(3)]
            name, resample, last = (f"u{i}" if i > 0 else None), ("up" if i < top else None), i == top and not cfg.out
            self.up_blocks.append(Level(dims_in, width, cfg, name, resample, last))
            dim = width
        if cfg.out:
            self.conv_norm_out = nn.GroupNorm(cfg.norm_groups, channels[0], eps=1e-5)
            self.conv_out = nn.Conv2d(channels[0], cfg.latent_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        pose: Tensor | None = None,
        guidance: Tensor | None = None,
        reference: dict[str, Tensor] | None = None,
        temporal_mask: Tensor | None = None,
        reference_keep: Tensor | None = None,
        temporal_strength: float = 1.0,
    ) -> Tensor:
        """Predict v.

        Args:
            latents: ``(b, f, c, h, w)`` noisy latents.
            timesteps: ``(b, f)`` table indices in [0, 999] (paper's time minus one), one per frame.
            context: ``(b, n, d)`` tokens for cross-attention; RAIN uses n = 1.
            pose: ``(b, f, channels[0], h, w)`` features of the pose guider, added after ``conv_in``.
            guidance: ``(b, e)`` embedding of ω (:func:`rainlab.method.embeddings.guidance_embedding`).
            reference: the bank of the reference network, name -> ``(b, h·w, c)``.
            temporal_mask: ``(f, f)``; bool (True = row may attend to column) or additive float.
            reference_keep: ``(b,)`` bool; False drops the bank for that sample (the null of classifier-free guidance).
            temporal_strength: factor of what the motion modules add; 0 leaves every frame alone.

        Returns:
            v, shaped like ``latents``.

        Raises:
            ValueError: on shapes that do not fit, naming got and expected.
        """
        if not self.cfg.out:
            raise ValueError("this is a reference network (out=False): it has no output; call bank(latents, context)")
        self._check(latents, timesteps, context, pose, guidance, temporal_mask)
        b, f = timesteps.shape
        emb = self._embed(timesteps.reshape(-1), guidance.repeat_interleave(f, 0) if guidance is not None else None)
        tokens = context.repeat_interleave(f, dim=0)
        cond = Condition(emb, tokens, f, reference, reference_keep, temporal_mask, temporal_strength)
        x = self._backbone(latents.flatten(0, 1), pose.flatten(0, 1) if pose is not None else None, cond)
        return self.conv_out(F.silu(self.conv_norm_out(x))).unflatten(0, (b, f))

    def bank(self, latents: Tensor, context: Tensor) -> dict[str, Tensor]:
        """States after ``norm1`` of every spatial block at index 0 (section 3.3).

        Args:
            latents: ``(b, c, h, w)`` clean latents of the reference picture.
            context: ``(b, n, d)``.

        Returns:
            name -> ``(b, h·w, c)`` in the order of the forward pass: d00 … m … u32 with SD 1.5's four levels (way,
            level, layer; on the way up levels count from the coarsest).
        """
        if latents.ndim != 4:
            raise ValueError(f"reference latents: got shape {tuple(latents.shape)}, expected (b, c, h, w)")
        emb = self._embed(torch.zeros(latents.shape[0], dtype=torch.long, device=latents.device), None)
        bank: dict[str, Tensor] = {}
        self._backbone(latents, None, Condition(emb, context, 1, bank=bank))
        return bank

    def _embed(self, timesteps: Tensor, guidance: Tensor | None) -> Tensor:
        sample = timestep_embedding(timesteps, self.cfg.channels[0]).to(self.conv_in.weight.dtype)
        return self.time_embedding(sample, guidance)

    def _backbone(self, x: Tensor, pose: Tensor | None, cond: Condition, more: list[Tensor] | None = None) -> Tensor:
        """``more``: what is added to the skips, first to last, and to the middle (a ControlNet's)."""
        x = self.conv_in(x)
        if pose is not None:
            x = x + pose  # before the first skip is stored, as published
        skips = self._encode(x, self.down_blocks, cond)
        x = self.mid_block(skips[-1], cond)
        if more:
            x = x + more.pop()
            skips = [own + other for own, other in zip(skips, more, strict=True)]
        for level in self.up_blocks:
            for j in range(3):
                x = self._layer(level, j, torch.cat([x, skips.pop()], dim=1), cond)
            for up in level.upsamplers:
                x = up(x, skips[-1].shape[-2:])
        return x

    def _encode(self, x: Tensor, levels: nn.ModuleList, cond: Condition) -> list[Tensor]:
        """``x`` and all that comes of it on the way down."""
        skips = [x]
        for level in levels:
            for j in range(2):
                skips.append(self._layer(level, j, skips[-1], cond))
            for down in level.downsamplers:
                skips.append(down(skips[-1]))
        return skips

    def _layer(self, level: Level, j: int, x: Tensor, cond: Condition) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(level.layer, j, x, cond, use_reentrant=False)
        return level.layer(j, x, cond)

    def _check(self, latents, timesteps, context, pose, guidance, temporal_mask) -> None:
        cfg = self.cfg
        if latents.ndim != 5 or latents.shape[2] != cfg.latent_channels:
            raise ValueError(f"latents: got {tuple(latents.shape)}, expected (b, f, {cfg.latent_channels}, h, w)")
        b, f, _, h, w = latents.shape
        expected = {
            "timesteps": (timesteps, (b, f)),
            "context": (context, (b, context.shape[1] if context.ndim > 1 else 1, cfg.cross_attention_dim)),
            "pose": (pose, (b, f, cfg.channels[0], h, w)),
            "guidance": (guidance, (b, cfg.guidance_dim or 0)),
            "temporal_mask": (temporal_mask, (f, f)),
        }
        for name, (tensor, shape) in expected.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
        if cfg.motion and f > cfg.motion_length:
            raise ValueError(
                f"got {f} frames, but the positional encoding holds {cfg.motion_length}: "
                "use a smaller window or a UNetConfig with a larger motion_length"
            )
