"""What a forward and backward pass holds and does, counted on tensors without content (device "meta").

Every storage is followed from birth to death, the operations of every product are added up: in seconds, and without the
memory that is asked about. Not counted: what libraries take for themselves, and fragments between tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from rainlab.config import Preset, override
from rainlab.data.dataset import Batch, Draw
from rainlab.measure import paper_scale
from rainlab.measure.ways import ATTENTION_FLOPS
from rainlab.method.context import ClipContext
from rainlab.method.pretrained import CLIP_CONFIG
from rainlab.method.rain import RAIN
from rainlab.method.vae import KL
from rainlab.training import losses, optim, stages
from rainlab.training.parameters import check_stage, trainable

PARTS = ("frozen", "weights", "average", "gradients", "optimizer", "activations")
"""What is held, in the order of :class:`Need`."""


@dataclass(frozen=True)
class Need:
    """What one stage holds, in bytes, and does, in floating-point operations. ``samples`` are computed at once."""

    samples: int
    frozen: int  # weights that are not trained: teacher, target, CLIP tower, autoencoder, earlier stages' networks
    weights: int  # weights that are
    average: int  # their moving average
    gradients: int
    optimizer: int
    activations: int  # the most that a forward and backward pass holds besides all these
    flops: int  # of one pass over the samples

    @property
    def peak(self) -> int:
        """Bytes, all together."""
        return sum(getattr(self, part) for part in PARTS)


def count(preset: Preset, stage: str, samples: int = 1, bf16: bool = False, accumulating: bool = False) -> Need:
    """Count one forward and backward pass of a stage of ``preset``.

    Args:
        accumulating: the gradients of a pass before are there already, and held all the time.
        bf16: as autocast computes on a GPU (products in bf16, norms and the loss in fp32); otherwise all is fp32, as on
            a processor without bf16.

    Raises:
        ValueError: ``stage`` is unknown, or ``samples`` is not at least 1.
    """
    check_stage(stage)
    if samples < 1:
        raise ValueError(f"samples: got {samples}, expected at least 1")
    loss, model, others = networks(preset, stage, "meta")
    cfg = stages.Training(preset, stage).loop
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = _bytes(parameters.values())
    average = weights if cfg.ema and not others else 0  # a distillation's average is its target
    with torch.device("meta"):
        batch = empty_batch(preset, stage, samples, model.autoencoder.latent_channels)
    there = [tensor for net in (model, *others) for tensor in (*net.parameters(), *net.buffers())]
    with (
        _Held([*there, *vars(batch).values()]) as held,
        _Autocast(torch.bfloat16 if bf16 else torch.float32) as autocast,
    ):
        for parameter in parameters.values() if accumulating else ():  # a gradient is added to that which is there
            parameter.register_post_accumulate_grad_hook(lambda trained: held.forget(trained.grad.untyped_storage()))
        value = loss(batch, Draw(0, 0, range(samples)))
        autocast.forget()
        torch.autograd.backward(value)
    gradients = _bytes(p.grad for p in parameters.values() if p.grad is not None)
    return Need(
        samples=samples,
        frozen=_bytes(there) - weights,
        weights=weights,
        average=average,
        gradients=gradients,
        optimizer=optim.state_bytes(parameters, cfg),
        activations=held.peak if accumulating else max(0, held.peak - gradients),
        flops=held.flops,
    )


def networks(preset: Preset, stage: str, device: str) -> tuple[losses.Loss, RAIN, list[nn.Module]]:
    """(loss, networks, further networks that it uses) of a stage with random weights, ready to be trained.

    What preset ``paper`` reads from published files is built from their geometry. Condition dropout and the student's
    own history are off, since they depend on chance.
    """
    small = {"model.context": "small", "autoencoder.kind": "small", "loss.embedding_scale": 0.0}
    preset = override(preset, {"loss.condition_dropout": 0.0, "distill3d.own_history": 0.0})
    bare = override(preset, small)
    others: list[nn.Module] = []
    with torch.device(device):
        model = stages.build(bare, stage)
        if preset.model.context == "clip":
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

            model.context_encoder = ClipContext(CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_CONFIG)))
        if preset.autoencoder.kind != "small":
            from diffusers import AutoencoderKL

            model.autoencoder = KL(AutoencoderKL(**paper_scale.TYPES, **paper_scale.KL))
        if stage.startswith("distill"):  # a teacher that knows no ω, and a target like the student
            others = [stages.build(bare, name).denoising_unet for name in (stages.INPUTS[stage][0], stage)]
    cfg, wanted = stages.Training(preset, stage).loop, set(trainable(model, stage))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    model.denoising_unet.checkpointing = model.reference_unet.checkpointing = cfg.checkpointing
    return stages.loss_of(preset, stage, model, *others), model, others


def empty_batch(preset: Preset, stage: str, samples: int, channels: int) -> Batch:
    """A batch of zeros as ``stage`` reads it, with latents of so many ``channels``."""
    frames, _, sink = stages.Training(preset, stage).sampling
    (h, w), factor = preset.data.size, preset.autoencoder.factor
    f, small = frames + sink, (channels, h // factor, w // factor)
    return Batch(
        reference=torch.zeros(samples, h, w, 3, dtype=torch.uint8),
        reference_latents=torch.zeros(samples, *small),
        latents=torch.zeros(samples, f, *small),
        condition=torch.zeros(samples, f, h, w, 3, dtype=torch.uint8),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Held(TorchDispatchMode):
    """Bytes of the storages that operations make, now and at most, and the operations of products.

    ``there``: tensors that exist before and stay, for their views are no new storage.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self.there = {tensor.untyped_storage()._cdata for tensor in there}
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if counted := _FLOPS.get(func._overloadpacket):
            self.flops += counted(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self.alive and key not in self.there:
            self.alive.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def forget(self, storage: torch.UntypedStorage) -> None:
        """Count a storage no longer."""
        self._freed(storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        if key in self.alive:
            self.alive.discard(key)
            self.now -= size


# The kernel of attention that never holds all scores at once. Its variant for processors knows device "meta"; a GPU's
# holds the same tensors.
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


_FLOPS = flop_registry | {kernel: shape_wrapper(flops) for kernel, flops in ATTENTION_FLOPS.items()}


class _Autocast:
    """Autocast for device "meta", which has none: products in ``low``, norms and the squared error in fp32.

    A torch mode would be the way to do it, but checkpointing's second pass runs outside of modes.
    """

    def __init__(self, low: torch.dtype):
        dtypes = {"linear": low, "conv2d": low, "group_norm": torch.float32, "layer_norm": torch.float32,
                  "mse_loss": torch.float32}  # fmt: skip
        functions = {name: self._wrapped(getattr(F, name), dtype) for name, dtype in dtypes.items()}
        attention = lambda q, k, v, *_, **__: _FUSED(*(self._cast(x, low) for x in (q, k, v)))[0]  # noqa: E731
        self.patch = mock.patch.multiple(F, scaled_dot_product_attention=attention, **functions)
        self.copies: dict[int, Tensor] | None = {}  # of trained weights, kept for their next use

    def __enter__(self) -> _Autocast:
        self.patch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.patch.stop()

    def forget(self) -> None:
        """The forward pass is over; what the second pass of a checkpoint copies lasts for its layer."""
        self.copies = None

    def _wrapped(self, function: Any, dtype: torch.dtype) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
            return function(*(self._cast(value, dtype) for value in args), **kwargs)

        return call

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if self.copies is None or not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(dtype)
        return self.copies[id(value)]
