"""The networks of a stream, faster and with the same result up to rounding.

A stream calls its network with the same reference, context token, ω and times again and again, so what depends on
these alone is computed once. The rest is laid out as the hardware likes it. Each of REWRITES can be made alone:

- ``embeddings``: what a ResNet adds for time and ω is kept for every set of times that occurs;
- ``context``: cross-attention to a single token does not depend on the query (its softmax is 1): one vector a block;
- ``reference``: keys and values of the reference are projected once and stay where attention reads them, in front of
  which each frame writes its own; queries, keys and values come from one product;
- ``temporal``: attention over frames on tokens in the order (frame, place), which needs no transposed copies around
  every product; the positional encoding is a bias of the one product for queries, keys and values;
- ``channels_last``: convolutions and norms on channels in the innermost place, from where tokens are a view;
- ``packed``: matrix products by oneDNN with weights in its own order, activation, gate and residual in the same pass
  (float32 on a processor; MKL, torch's own way, uses half of an AMD core's vector width).
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Collection
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.method.unet import (
    Attention,
    Condition,
    FeedForward,
    ResnetBlock,
    SpatialTransformer,
    TemporalTransformer,
    UNet,
)

REWRITES = ("embeddings", "context", "reference", "temporal", "channels_last", "packed")
PAYS = 2**21  # multiplications from which a packed product is faster than a plain one, which is quicker to begin
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

Module = TypeVar("Module", bound=nn.Module)


class FastUNet(nn.Module):
    """A denoising :class:`rainlab.method.unet.UNet` for inference, with its ``forward`` and its parameters.

    What is kept belongs to the objects passed last: a bank or context changed in place is not noticed, nor are weights
    changed after this was made. Memory: the weights of products and convolutions a second time, and keys and values
    of one window for each spatial block.

    Args:
        unet: the network; it stays as it is. rewrites: which of REWRITES are made.

    Raises:
        ValueError: an unknown rewrite, or a reference network.
    """

    def __init__(self, unet: UNet, rewrites: Collection[str] = REWRITES):
        super().__init__()
        if unknown := set(rewrites) - set(REWRITES):
            raise ValueError(f"rewrites: got {sorted(unknown)}, expected some of {REWRITES}")
        if not unet.cfg.out:
            raise ValueError("got a reference network (out=False), expected a denoising network")
        self.cfg, self.rewrites = unet.cfg, frozenset(rewrites)
        self.unet = _copy(unet)
        self._replace(self.unet)
        _lay_out(self.unet, self.rewrites)
        self._guidance: Tensor | None = None
        self._times: dict[tuple[int, ...], Times] = {}
        self._context: tuple[Tensor | None, int, Tensor | None] = (None, 0, None)

    def _replace(self, parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, SpatialTransformer):
                setattr(parent, name, Spatial(child, self.rewrites))
            elif isinstance(child, TemporalTransformer) and "temporal" in self.rewrites:
                setattr(parent, name, Temporal(child, self.rewrites))
            elif isinstance(child, ResnetBlock) and "embeddings" in self.rewrites:
                setattr(parent, name, TimedResnet(child))
            else:
                self._replace(child)

    @torch.inference_mode()
    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        pose: Tensor | None = None,
        guidance: Tensor | None = None,
        reference: dict[str, Tensor] | None = None,
        temporal_mask: Tensor | None = None,
        temporal_strength: float = 1.0,
    ) -> Tensor:
        """v, as :meth:`rainlab.method.unet.UNet.forward` gives it; no sample's reference can be dropped here."""
        unet, (b, f) = self.unet, timesteps.shape
        unet._check(latents, timesteps, context, pose, guidance, temporal_mask)
        emb, tokens = self._embedded(timesteps, guidance), self._tokens(context, f)
        cond = Condition(emb, tokens, f, reference, None, temporal_mask, temporal_strength)
        x = unet._backbone(latents.flatten(0, 1), None if pose is None else pose.flatten(0, 1), cond)
        return unet.conv_out(F.silu(unet.conv_norm_out(x))).contiguous().unflatten(0, (b, f))

    def _embedded(self, timesteps: Tensor, guidance: Tensor | None) -> Tensor | Times:
        if not (guidance is self._guidance or (guidance is not None and self._guidance is not None
                                               and torch.equal(guidance, self._guidance))):  # fmt: skip
            self._times, self._guidance = {}, guidance
        key = (*timesteps.shape, *timesteps.flatten().tolist())
        if key not in self._times:
            rows = None if guidance is None else guidance.repeat_interleave(timesteps.shape[1], 0)
            self._times[key] = Times(self.unet._embed(timesteps.reshape(-1), rows))
        times = self._times[key]
        return times if "embeddings" in self.rewrites else times.emb

    def _tokens(self, context: Tensor, frames: int) -> Tensor:
        seen, f, tokens = self._context
        if seen is not context or f != frames:
            tokens = context.repeat_interleave(frames, dim=0)
            self._context = context, frames, tokens
        return tokens


def laid_out(module: Module, rewrites: Collection[str] = REWRITES) -> Module:
    """A copy for inference, with the rewrites ``channels_last`` and ``packed`` of its convolutions."""
    return _lay_out(_copy(module), rewrites)


def _copy(module: Module) -> Module:
    """Other modules on the same parameters."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared).eval()


def _lay_out(parent: Module, rewrites: Collection[str]) -> Module:
    for name, child in parent.named_children():
        if not isinstance(child, nn.Conv2d):
            _lay_out(child, rewrites)
        elif "packed" in rewrites and _packs(child.weight) and child.groups == 1 and child.padding_mode == "zeros":
            setattr(parent, name, PackedConvolution(child, "channels_last" in rewrites))
        elif "channels_last" in rewrites:  # the layout of its weights is that of what a convolution gives
            weight = child.weight.detach().contiguous(memory_format=torch.channels_last)
            child.weight = nn.Parameter(weight, requires_grad=False)
    return parent


class Times:
    """An embedding of times and ω ``(b·f, e)``, and what each ResNet adds for it."""

    def __init__(self, emb: Tensor):
        self.emb = emb
        self._added: dict[nn.Module, Tensor] = {}

    def added(self, projection: nn.Linear) -> Tensor:
        """``(b·f, c, 1, 1)``."""
        if projection not in self._added:
            self._added[projection] = projection(F.silu(self.emb))[:, :, None, None]
        return self._added[projection]


class TimedResnet(nn.Module):
    """A ResNet block; its ``emb`` is a :class:`Times`."""

    def __init__(self, plain: ResnetBlock):
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor, emb: Times) -> Tensor:
        block = self.plain
        h = block.conv1(F.silu(block.norm1(x), inplace=True)).add_(emb.added(block.time_emb_proj))
        return block.conv2(F.silu(block.norm2(h), inplace=True)).add_(block.conv_shortcut(x))


class Product(nn.Module):
    """A linear layer ``x Wᵀ + b``, and what follows it in the same pass where its weights are packed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, packed: bool):
        super().__init__()
        self.bias, self.weight = None if bias is None else bias.detach(), weight.detach().contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight) if packed and _packs(weight) else None
        self._least = PAYS // self.weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        if self._pays(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def _pays(self, x: Tensor) -> bool:
        return self.packed is not None and x.numel() >= self._least

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product."""
        if self._pays(x):
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "gelu", [], "none")
        return F.gelu(self(x))

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus another tensor of its shape."""
        return self._binary(x, other, "add") if self._pays(x) else self(x).add_(other)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product times another tensor of its shape, element by element."""
        return self._binary(x, other, "mul") if self._pays(x) else self(x).mul_(other)

    def _binary(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, operation)


class PackedConvolution(nn.Module):
    """A convolution with packed weights."""

    def __init__(self, plain: nn.Conv2d, channels_last: bool):
        super().__init__()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.weight, self.bias = plain.weight, plain.bias
        self._how = (list(plain.padding), list(plain.stride), list(plain.dilation), plain.groups)
        self._packed = torch.ops.mkldnn._reorder_convolution_weight(plain.weight.detach(), *self._how, None)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=self._format)
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *self._how, "none", [], "")


def _packs(weight: Tensor) -> bool:
    """Whether torch was built with oneDNN's packed products and they take this tensor."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return there and weight.device.type == "cpu" and weight.dtype == torch.float32


class Gated(nn.Module):
    """A feed-forward block with its residual."""

    def __init__(self, plain: FeedForward, packed: bool):
        super().__init__()
        first, last = plain.net[0].proj, plain.net[2]
        (w, v), (b, c) = first.weight.chunk(2), first.bias.chunk(2)
        self.value, self.gate = Product(w, b, packed), Product(v, c, packed)
        self.out = Product(last.weight, last.bias, packed)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.out.plus(self.value.times(x, self.gate.gelu(x)), residual)


class Spatial(nn.Module):
    """A spatial transformer: attention over ``[own; reference]``, to the context, feed-forward."""

    def __init__(self, plain: SpatialTransformer, rewrites: Collection[str]):
        super().__init__()
        block, packed = plain.transformer_blocks[0], "packed" in rewrites
        self.name, self.norm, self.norms = plain.name, plain.norm, (block.norm1, block.norm2, block.norm3)
        self.proj_in, self.proj_out = (
            Product(conv.weight.flatten(1), conv.bias, packed) for conv in (plain.proj_in, plain.proj_out)
        )
        self.attend, self.look = ReferenceAttention(block.attn1, rewrites), block.attn2
        self.ff = Gated(block.ff, packed)
        self._keeps = "context" in rewrites
        self._context: Tensor | None = None

    def forward(self, x: Tensor, cond: Condition) -> Tensor:
        height, tokens = x.shape[2], as_tokens(x)
        y = self.proj_in(as_tokens(self.norm(x)))
        y = self.attend(self.norms[0](y), y, None if cond.reference is None else cond.reference[self.name])
        y = y + self._look(y, cond.context)
        y = self.proj_out.plus(self.ff(self.norms[2](y), y), tokens)
        return as_picture(y, height)

    def _look(self, y: Tensor, context: Tensor) -> Tensor:
        if context.shape[1] > 1:
            return self.look(self.norms[1](y), context)
        if context is not self._context or not self._keeps:
            self._context, self._constant = context, self.look.only(context)
        return self._constant


class ReferenceAttention(nn.Module):
    """Attention over ``[own; reference]`` with its residual; the reference part is written once."""

    def __init__(self, plain: Attention, rewrites: Collection[str]):
        super().__init__()
        self.heads, packed = plain.heads, "packed" in rewrites
        self._keeps = "reference" in rewrites
        self.qkv = Product(_scaled_qkv(plain), None, packed)
        self.kv = Product(torch.cat([plain.to_k.weight, plain.to_v.weight]), None, packed)
        self.out = Product(plain.to_out[0].weight, plain.to_out[0].bias, packed)
        self._reference: Tensor | None = None
        self._kept = torch.zeros(0)  # (2, b·f, heads, own + reference, d): keys and values

    def forward(self, x: Tensor, residual: Tensor, reference: Tensor | None) -> Tensor:
        """``x``: ``(b·f, own, c)``; ``reference``: ``(b, m, c)``."""
        n, own, c = x.shape
        qkv = self.qkv(x).view(n, own, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        k, v = qkv[1:]
        if reference is not None:
            if reference is not self._reference or self._kept.shape[1] != n or not self._keeps:
                self._keep(reference, n, own)
            self._kept[..., :own, :] = qkv[1:]
            k, v = self._kept
        return self.out.plus(attend(qkv[0], k, v).transpose(1, 2).reshape(n, own, c), residual)

    def _keep(self, reference: Tensor, n: int, own: int) -> None:
        b, m, c = reference.shape
        d = c // self.heads
        projected = self.kv(reference).view(b, 1, m, 2, self.heads, d).permute(3, 0, 1, 4, 2, 5)
        self._reference, self._kept = reference, reference.new_empty(2, n, self.heads, own + m, d)
        self._kept.view(2, b, n // b, self.heads, own + m, d)[..., own:, :] = projected


class Temporal(nn.Module):
    """A motion module on tokens ``(b·f, h·w, c)``."""

    def __init__(self, plain: TemporalTransformer, rewrites: Collection[str]):
        super().__init__()
        block, packed = plain.transformer_blocks[0], "packed" in rewrites
        self.norm, self.norms, self.ff_norm = plain.norm, block.norms, block.ff_norm
        self.heads = block.attention_blocks[0].heads
        self.proj_in, self.proj_out = (
            Product(linear.weight, linear.bias, packed) for linear in (plain.proj_in, plain.proj_out)
        )
        self.qkv, self.out = nn.ModuleList(), nn.ModuleList()
        self.slots = []  # (length, 1, 3c): what the positional encoding is to queries, keys and values
        for attention in block.attention_blocks:
            weight = _scaled_qkv(attention)
            self.qkv.append(Product(weight, None, packed))
            self.slots.append(F.linear(attention.pos_encoder.pe[0].to(weight.dtype), weight)[:, None])
            self.out.append(Product(attention.to_out[0].weight, attention.to_out[0].bias, packed))
        self.ff = Gated(block.ff, packed)

    def forward(self, x: Tensor, cond: Condition) -> Tensor:
        height, tokens = x.shape[2], as_tokens(x)
        y = self.proj_in(as_tokens(self.norm(x)))
        for norm, qkv, slots, out in zip(self.norms, self.qkv, self.slots, self.out, strict=True):
            y = out.plus(self._attend(qkv(norm(y)), slots[: cond.frames], cond.temporal_mask), y)
        y = self.ff(self.ff_norm(y), y)
        if cond.temporal_strength == 1:
            y = self.proj_out.plus(y, tokens)
        else:
            y = self.proj_out(y).mul_(cond.temporal_strength).add_(tokens)
        return as_picture(y, height)

    def _attend(self, qkv: Tensor, slots: Tensor, mask: Tensor | None) -> Tensor:
        (n, places, c), f = qkv.shape, slots.shape[0]
        b, d = n // f, c // 3 // self.heads
        qkv = qkv.view(b, f, places, c).add_(slots).view(b, f, places, 3, self.heads, d)
        q, k, v = qkv.permute(3, 0, 2, 4, 1, 5).reshape(3, b * places, self.heads, f, d)
        mixed = attend(q, k, v, mask).view(b, places, self.heads, f, d)
        return mixed.permute(0, 3, 1, 2, 4).reshape(n, places, c // 3)


def as_tokens(x: Tensor) -> Tensor:
    """``(n, c, h, w)`` -> ``(n, h·w, c)``: a view where channels are innermost, else a copy."""
    n, c, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, height * width, c)


def as_picture(tokens: Tensor, height: int) -> Tensor:
    """The other way."""
    n, places, c = tokens.shape
    return tokens.view(n, height, places // height, c).permute(0, 3, 1, 2)


def _scaled_qkv(plain: Attention) -> Tensor:
    """Weights of one product for queries, keys and values; the scores' scale is in the queries'."""
    scale = (plain.to_q.weight.shape[0] // plain.heads) ** -0.5
    return torch.cat([plain.to_q.weight * scale, plain.to_k.weight, plain.to_v.weight]).detach()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of scaled ``(n, heads, f, d)`` queries to ``(n, heads, m, d)`` keys; mask: ``(f, m)``."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: it gives a tensor's pages back and asks for them again at every step otherwise.

    That costs a quarter of the time of networks as small as those here. Does nothing with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((M_TRIM_THRESHOLD, 2**31 - 1), (M_MMAP_THRESHOLD, 2**25)):
        mallopt(parameter, value)
