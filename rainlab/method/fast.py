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
import importlib.util
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.method.unet import (
    Attention,
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


@dataclass
class Given:
    """What the blocks see besides their input, in place of a :class:`rainlab.method.unet.Condition`."""

    emb: list[Tensor]  # what each ResNet adds, (b·f, c, 1, 1)
    looked: dict[str, Tensor]  # block -> what cross-attention adds, (b·f, 1, c); empty with more tokens than one
    kept: dict[str, Tensor]  # block -> keys and values, see ReferenceAttention; empty without reference
    context: Tensor  # (b·f, n, d)
    frames: int
    temporal_mask: Tensor | None = None
    temporal_strength: float | Tensor = 1.0
    bank: None = None


class FastUNet(nn.Module):
    """A denoising :class:`rainlab.method.unet.UNet` for inference, with its ``forward``.

    Some of its weights are the plain network's, some are copies laid out anew, so after a change to the former make
    this one anew; and move or cast the plain one before. What is kept belongs to the objects passed last: a bank or
    context changed in place is not noticed. Memory: the weights of products and convolutions a second time, and keys
    and values of one window for each spatial block.

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
        self.spatial: list[Spatial] = []
        self.resnets: list[TimedResnet] = []
        self._replace(self.unet)
        _lay_out(self.unet, self.rewrites)
        self._plain = tuple(unet.parameters())
        self._made_at = self._versions()
        self._guidance: Tensor | None = None  # what the following belongs to
        self._context: Tensor | None = None
        self._reference: dict[str, Tensor] | None = None
        self._added: dict[tuple[int, ...], list[Tensor]] = {}
        self._looked: tuple[Tensor, dict[str, Tensor]]
        self._kept: dict[str, Tensor] = {}
        self._frames = 0

    def _replace(self, parent: nn.Module) -> None:
        for name, child in parent.named_children():
            if isinstance(child, SpatialTransformer):
                self.spatial.append(Spatial(child, "packed" in self.rewrites))
                setattr(parent, name, self.spatial[-1])
            elif isinstance(child, ResnetBlock):
                self.resnets.append(TimedResnet(child, len(self.resnets)))
                setattr(parent, name, self.resnets[-1])
            elif isinstance(child, TemporalTransformer) and "temporal" in self.rewrites:
                setattr(parent, name, Temporal(child, "packed" in self.rewrites))
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
        self.unet._check(latents, timesteps, context, pose, guidance, temporal_mask)
        first, places = self.spatial[0].name, latents.shape[3] * latents.shape[4]
        if reference is not None and first not in reference:
            raise ValueError(
                f"reference: got {sorted(reference)}, expected a bank; other designs run in the plain network"
            )
        count, rest = (1, 0) if reference is None else divmod(reference[first].shape[1], places)
        if rest or not count:
            got = f"reference: got a bank of {reference[first].shape[1]} places in {first}"
            raise ValueError(f"{got}, expected {places} like the latents, for each picture; or use the plain network")
        if self._versions() != self._made_at:
            raise RuntimeError("the plain network's weights have changed since this was made: make the stream anew")
        f, keep = timesteps.shape[1], self.rewrites
        if "embeddings" not in keep or not _equal(guidance, self._guidance):
            self._guidance, self._added = guidance, {}
        key = (*timesteps.shape, *timesteps.flatten().tolist())
        if key not in self._added:
            self._added[key] = self.added(timesteps, guidance)
        if "context" not in keep or context is not self._context or f != self._frames:
            self._context, self._looked = context, (context.repeat_interleave(f, 0), self.looked(context, f))
        if "reference" not in keep or reference is not self._reference or f != self._frames:
            self._reference, self._kept = reference, {} if reference is None else self.kept(reference, f, count)
        self._frames = f
        tokens, looked = self._looked
        given = Given(self._added[key], looked, self._kept, tokens, f, temporal_mask, temporal_strength)
        return self.denoise(latents, pose, given)

    def _versions(self) -> int:
        return sum(parameter._version for parameter in self._plain)

    def denoise(self, latents: Tensor, pose: Tensor | None, given: Given) -> Tensor:
        """v of latents ``(b, f, c, h, w)``: a function of its arguments and weights alone."""
        unet = self.unet
        x = unet._backbone(latents.flatten(0, 1), None if pose is None else pose.flatten(0, 1), given)
        return unet.conv_out(F.silu(unet.conv_norm_out(x))).contiguous().unflatten(0, latents.shape[:2])

    def added(self, timesteps: Tensor, guidance: Tensor | None) -> list[Tensor]:
        """What each ResNet adds at times ``(b, f)`` with ω embeddings ``(b, e)``: ``(b·f, c, 1, 1)`` each."""
        rows = None if guidance is None else guidance.repeat_interleave(timesteps.shape[1], 0)
        emb = F.silu(self.unet._embed(timesteps.reshape(-1), rows))
        return [resnet.plain.time_emb_proj(emb)[:, :, None, None] for resnet in self.resnets]

    def looked(self, context: Tensor, frames: int) -> dict[str, Tensor]:
        """What each block gets of a context ``(b, 1, d)``: ``(b·frames, 1, c)``; nothing if there are more tokens."""
        if context.shape[1] > 1:
            return {}
        return {block.name: block.look.only(context).repeat_interleave(frames, 0) for block in self.spatial}

    def kept(self, bank: dict[str, Tensor], frames: int, count: int = 1) -> dict[str, Tensor]:
        """Keys and values of a bank of so many pictures behind room for a frame's; see :class:`ReferenceAttention`."""
        return {block.name: block.attend.kept(bank[block.name], frames, count) for block in self.spatial}


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


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


def quantise(network: FastUNet) -> None:
    """Round the weights of its products to fp8 (e4m3, one scale a row), in place, by torchao. No rewrite: it changes v.

    A GPU that multiplies fp8 (compute capability 8.9 on) rounds what comes in, too, and computes in fp8; elsewhere
    the weights are widened again at every product, which shows what fp8 costs in quality and gains nothing.

    Raises:
        ImportError: torchao is missing. ValueError: the products are packed.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ImportError("fp8 needs torchao: pip install 'rainlab[fp8]'")
    if "packed" in network.rewrites:
        raise ValueError("got a network with packed products, expected one without: leave the rewrite 'packed' out")
    from torchao import quantization as ao

    device = network.unet.conv_in.weight.device
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    kind = ao.Float8DynamicActivationFloat8WeightConfig if native else ao.Float8WeightOnlyConfig
    ao.quantize_(network, kind(granularity=ao.PerRow()) if native else kind(), _multiplies_in_fp8)


def _multiplies_in_fp8(module: nn.Module, name: str) -> bool:
    return isinstance(module, Product) and not any(n % 16 for n in module.weight.shape)


class TimedResnet(nn.Module):
    """A ResNet block; what it adds for time and ω stands at its index in what it is given."""

    def __init__(self, plain: ResnetBlock, index: int):
        super().__init__()
        self.plain, self.index = plain, index

    def forward(self, x: Tensor, added: list[Tensor]) -> Tensor:
        block = self.plain
        h = block.conv1(F.silu(block.norm1(x), inplace=True)).add_(added[self.index])
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

    def __init__(self, plain: SpatialTransformer, packed: bool):
        super().__init__()
        block = plain.transformer_blocks[0]
        self.name, self.norm = plain.name, plain.norm
        self.norms = nn.ModuleList([block.norm1, block.norm2, block.norm3])
        self.proj_in, self.proj_out = (
            Product(conv.weight.flatten(1), conv.bias, packed) for conv in (plain.proj_in, plain.proj_out)
        )
        self.attend, self.look, self.ff = ReferenceAttention(block.attn1, packed), block.attn2, Gated(block.ff, packed)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        height, tokens = x.shape[2], as_tokens(x)
        y = self.proj_in(as_tokens(self.norm(x)))
        y = self.attend(self.norms[0](y), y, given.kept.get(self.name))
        y = y + (given.looked[self.name] if given.looked else self.look(self.norms[1](y), given.context))
        y = self.proj_out.plus(self.ff(self.norms[2](y), y), tokens)
        return as_picture(y, height)


class ReferenceAttention(nn.Module):
    """Attention over ``[own; reference]`` with its residual."""

    def __init__(self, plain: Attention, packed: bool):
        super().__init__()
        self.heads = plain.heads
        self.qkv = Product(scaled_qkv(plain), None, packed)
        self.kv = Product(torch.cat([plain.to_k.weight, plain.to_v.weight]), None, packed)
        self.out = Product(plain.to_out[0].weight, plain.to_out[0].bias, packed)

    def forward(self, x: Tensor, residual: Tensor, kept: Tensor | None) -> Tensor:
        """``x``: ``(b·f, own, c)``; ``kept``: as below, and written to; or ``(2, b, heads, m, d)`` without room."""
        n, own, c = x.shape
        qkv = self.qkv(x).view(n, own, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        k, v = qkv[1:]
        if kept is not None and kept.shape[3] == own:
            k, v = torch.cat([qkv[1:], kept.repeat_interleave(n // kept.shape[1], 1)], dim=3)
        elif kept is not None:
            kept[..., :own, :] = qkv[1:]
            k, v = kept
        return self.out.plus(attend(qkv[0], k, v).transpose(1, 2).reshape(n, own, c), residual)

    def projected(self, reference: Tensor) -> Tensor:
        """Keys and values ``(2, b, heads, m, d)`` of states ``(b, m, c)``."""
        b, m, c = reference.shape
        return self.kv(reference).view(b, m, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)

    def kept(self, reference: Tensor, frames: int, count: int) -> Tensor:
        """The same for each frame, ``(2, b·f, heads, own + m, d)``, behind room for its own; m is count · own."""
        kv = self.projected(reference)
        own = kv.shape[3] // count
        kept = kv.new_zeros(2, kv.shape[1], frames, self.heads, own + kv.shape[3], kv.shape[4])
        kept[..., own:, :] = kv[:, :, None]
        return kept.flatten(1, 2)


class Temporal(nn.Module):
    """A motion module on tokens ``(b·f, h·w, c)``."""

    def __init__(self, plain: TemporalTransformer, packed: bool):
        super().__init__()
        block = plain.transformer_blocks[0]
        self.norm, self.norms, self.ff_norm = plain.norm, block.norms, block.ff_norm
        self.heads = block.attention_blocks[0].heads
        self.proj_in, self.proj_out = (
            Product(linear.weight, linear.bias, packed) for linear in (plain.proj_in, plain.proj_out)
        )
        self.qkv, self.out = nn.ModuleList(), nn.ModuleList()
        self.slots = nn.ParameterList()  # (length, 1, 3c): the positional encoding in queries, keys and values
        for attention in block.attention_blocks:
            weight = scaled_qkv(attention)
            self.qkv.append(Product(weight, None, packed))
            slots = F.linear(attention.pos_encoder.pe[0].to(weight.dtype), weight)[:, None]
            self.slots.append(nn.Parameter(slots, requires_grad=False))
            self.out.append(Product(attention.to_out[0].weight, attention.to_out[0].bias, packed))
        self.ff = Gated(block.ff, packed)

    def forward(self, x: Tensor, given: Given) -> Tensor:
        height, tokens = x.shape[2], as_tokens(x)
        y = self.proj_in(as_tokens(self.norm(x)))
        for norm, qkv, slots, out in zip(self.norms, self.qkv, self.slots, self.out, strict=True):
            y = out.plus(self._attend(qkv(norm(y)), slots[: given.frames], given.temporal_mask), y)
        y = self.ff(self.ff_norm(y), y)
        strength = given.temporal_strength
        if isinstance(strength, float) and strength == 1:
            y = self.proj_out.plus(y, tokens)
        else:
            y = self.proj_out(y).mul_(strength).add_(tokens)
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


def scaled_qkv(plain: Attention) -> Tensor:
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
