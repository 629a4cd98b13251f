"""One whole tick as a function of tensors of fixed shapes: what a compiler, a CUDA graph or an exporter takes.

    stream = TickStream(model, how="compiled")    # the interface of Stream, the same frames up to rounding

A :class:`rainlab.method.stream.Stream` has a window that fills and drains. Here it always has K slots: what is in them
moves by an index, and slots without a frame are hidden from the others, so the soft start, the drain and a reset give
what the plain stream gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rainlab.config import StreamConfig, identity
from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.fast import FastUNet, Given, laid_out, quantise
from rainlab.method.rain import RAIN, to_uint8
from rainlab.method.stream import Stream
from rainlab.method.unet import temporal_mask

FUNCTIONAL = ("embeddings", "context", "reference", "temporal", "channels_last")  # rewrites that any compiler knows
HOW = ("eager", "compiled", "graph")
GEOMETRIES = 2**16  # that one process may compile: no limit


@dataclass
class Constants:
    """What stays for as long as reference and ω do."""

    added: Tensor  # (N, p, sum of c): what the ResNets add at each call and level
    looked: Tensor  # (b, sum of c): what cross-attention to the context adds in each block
    kept: list[Tensor]  # keys and values of the reference for each block, (2, b, heads, m, d)


@dataclass
class State:
    """What a tick leaves to the next."""

    latents: Tensor  # of the window, (b, K, c, h, w)
    features: Tensor  # of its conditions, (b, K, C, h, w)
    memory: list[Tensor]
    places: list[list[Tensor]] | None = None  # where an exported tick writes its results, in turns


class Tick(nn.Module):
    """Conditions in, frames and the next state out.

    Args:
        model: its context has one token. cfg: K, p, N and whether attention over frames is causal.
        rewrites: see :class:`rainlab.method.fast.FastUNet`. fp8: products in 8 bits, as for a Stream.

    Raises:
        ValueError: the context has more tokens than one, or the stream has a sink.
    """

    def __init__(self, model: RAIN, cfg: StreamConfig, rewrites: tuple[str, ...] = FUNCTIONAL, fp8: bool = False):
        super().__init__()
        if cfg.sink:
            raise ValueError("sink: got a stream with one, expected none here; use rainlab.Stream, also with fast=True")
        self.window, self.groups, self.steps = cfg.window, cfg.groups, cfg.steps_per_group
        self.group_size, self.guidance_dim = cfg.group_size, model.denoising_unet.cfg.guidance_dim
        self.unet = FastUNet(model.denoising_unet, rewrites)
        if fp8:
            quantise(self.unet)
        self.guider, self.autoencoder = (laid_out(part, rewrites) for part in (model.pose_guider, model.autoencoder))
        times = schedule.stream_times(self.groups, self.steps) - 1  # table indices, (N + 1, p)
        ones, now, after = torch.ones(times[1:].shape), times[:-1], times[1:]
        parts = (ones, 0 * ones, 0 * ones), (0 * ones, ones, 0 * ones), (0 * ones, 0 * ones, ones)
        # a step is linear in latents, v and noise: (N, p, 3)
        mix = [schedule.consistency_step(x, v, now, after, noise) for x, v, noise in parts]
        self.register_buffer("times", now)
        self.register_buffer("mix", torch.stack(mix, -1))
        mask = temporal_mask(cfg, self.window)
        visible = torch.ones(self.window, self.window, dtype=torch.bool) if mask is None else mask
        self.register_buffer("visible", visible)
        parameter = model.denoising_unet.conv_in.weight
        self.to(parameter.device)
        self.dtype = parameter.dtype
        self._widths = [resnet.plain.time_emb_proj.out_features for resnet in self.unet.resnets]
        self._names = [block.name for block in self.unet.spatial]
        self._channels = [block.proj_in.weight.shape[0] for block in self.unet.spatial]

    @torch.no_grad()
    def constants(self, bank: dict[str, Tensor], context: Tensor, guidance: float | None) -> Constants:
        """What a reference's bank and context, and ω, come to."""
        if context.shape[1] != 1:
            raise ValueError(f"context: got {context.shape[1]} tokens, expected one: use Stream for this model")
        omega = None
        if guidance is not None:
            strength = torch.full((1,), guidance, device=context.device)
            omega = guidance_embedding(strength, self.guidance_dim).to(self.dtype)
        added = [torch.cat([part[..., 0, 0] for part in self.unet.added(now[None], omega)], 1) for now in self.times]
        looked = self.unet.looked(context, 1)
        kept = [block.attend.projected(bank[block.name]).contiguous() for block in self.unet.spatial]
        return Constants(torch.stack(added), torch.cat([looked[name][:, 0] for name in self._names], 1), kept)

    @torch.no_grad()
    def start(self, batch: int, size: tuple[int, int]) -> State:
        """The state of an empty window for pictures of a size (h, w)."""
        autoencoder, cfg = self.autoencoder, self.unet.cfg
        h, w = (n // autoencoder.factor for n in size)
        zeros = self.mix.new_zeros(batch, self.window, cfg.latent_channels, h, w, dtype=self.dtype)
        features = self.mix.new_zeros(batch, self.window, cfg.channels[0], h, w, dtype=self.dtype)
        memory = autoencoder.decode_next(zeros[:, : self.group_size], None)[1] or []
        return State(zeros, features, [torch.zeros_like(part) for part in memory])

    def forward(
        self,
        conditions: Tensor,
        fresh: Tensor,
        noise: Tensor,
        order: Tensor,
        levels: Tensor,
        seen: Tensor,
        strength: Tensor,
        state: State,
        constants: Constants,
    ) -> tuple[Tensor, State]:
        """One turn of Algorithm 1.

        Args:
            conditions: uint8 ``(b, K/p, H, W, 3)``. fresh: noise of the new group's latents ``(b, K/p, c, h, w)``.
            noise: of the N steps, ``(b, N, K, c, h, w)``.
            order: int64 ``(K,)``, which of the K slots and K/p new frames stand in the window. levels: int64 ``(K,)``,
                noise level of each slot's group. seen: bool ``(K,)``, which slots hold a frame.
            strength: ``()``, of what the motion modules add.

        Returns:
            the first group's frames, uint8 ``(b, K/p, H, W, 3)``, and the next state.
        """
        b, f = conditions.shape[0], self.window
        pictures = conditions.float().movedim(-1, -3) / 255  # uint8 is for inputs and outputs only in TensorRT
        features = self.guider(pictures.to(self.dtype))
        features = torch.cat([state.features, features], 1).index_select(1, order)
        latents = torch.cat([state.latents, fresh], 1).index_select(1, order)
        looked = constants.looked.repeat_interleave(f, 0)[:, None].split(self._channels, -1)
        mask, kept = self.visible & seen, dict(zip(self._names, constants.kept, strict=True))
        for j in range(self.steps):
            added = constants.added[j].index_select(0, levels).repeat(b, 1)[:, :, None, None].split(self._widths, 1)
            given = Given(list(added), dict(zip(self._names, looked, strict=True)), kept, fresh, f, mask, strength)
            v = self.unet.denoise(latents, features, given)
            mix = self.mix[j].index_select(0, levels).to(self.dtype)[None, :, None, None, None]
            latents = mix[..., 0] * latents + mix[..., 1] * v + mix[..., 2] * noise[:, j]
        pictures, memory = self.autoencoder.decode_next(latents[:, : self.group_size], state.memory or None)
        return to_uint8(pictures.float()), State(latents, features, memory or [])


class Compiled:
    """A module by ``torch.compile``, anew for every geometry that comes."""

    def __init__(self, module: nn.Module, **options: Any):
        self.module = torch.compile(module, fullgraph=True, dynamic=False, **options)

    def __call__(self, *arguments: Any) -> Any:
        # dynamo counts the geometries of all streams of a process together, and fails at the ninth
        limits = {"recompile_limit": GEOMETRIES, "accumulated_recompile_limit": GEOMETRIES}
        with torch._dynamo.config.patch(limits):
            return self.module(*arguments)


class CudaGraph:
    """A function of tensors, captured once for every geometry and replayed: one launch a call, no allocation.

    What it returns is overwritten by the next call. The tensors' device is CUDA's. What is the same tensor as at the
    last call and was not written to since (by torch) is not copied again.
    """

    def __init__(self, function: Callable[..., Any], warmups: int = 3):
        self._function, self._warmups = function, warmups
        self._captured: dict[Any, tuple[list[Tensor], list[Any], Callable[[], None], Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        given, spec = pytree.tree_flatten(arguments)
        geometry = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in given)
        if geometry not in self._captured:
            places = [tensor.clone() for tensor in given]
            captured = self._capture(pytree.tree_unflatten(places, spec), given[0].device)
            self._captured[geometry] = places, [(None, None)] * len(given), *captured
        places, last, replay, results = self._captured[geometry]
        for i, (place, tensor) in enumerate(zip(places, given, strict=True)):
            version = None if tensor.is_inference() else tensor._version
            if tensor is not last[i][0] or version is None or version != last[i][1]:
                place.copy_(tensor)
            last[i] = tensor, version
        replay()
        torch.autograd.graph.increment_version(pytree.tree_leaves(results))  # a replay writes without saying so
        return results

    def _capture(self, arguments: Any, device: torch.device) -> tuple[Callable[[], None], Any]:
        """What computes anew from these tensors, and where to."""
        with torch.cuda.device(device):
            side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(self._warmups):  # compiles, and lets libraries choose their kernels
                    self._function(*arguments)
            torch.cuda.current_stream().wait_stream(side)
            # other threads may allocate meanwhile
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                results = self._function(*arguments)
        return graph.replay, results


def fingerprint(model: RAIN) -> str:
    """Of the weights that a tick computes with, as they are: a cast changes it. Takes a second for 2 GB."""
    found = hashlib.sha256()
    for part in ("denoising_unet", "pose_guider", "autoencoder"):
        for name, tensor in getattr(model, part).state_dict().items():
            if "encoder" not in name.split("."):  # of an autoencoder, the half that a tick leaves out
                found.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def made_for(model: RAIN, cfg: StreamConfig, batch: int) -> dict[str, Any]:
    """All that an exported tick is bound to, but the size of pictures; ω is not, it comes in the constants."""
    parameter = model.denoising_unet.conv_in.weight
    bound = {name: value for name, value in identity(cfg).items() if name != "guidance"}
    return bound | {"dtype": str(parameter.dtype), "batch": batch, "weights": fingerprint(model)}


def _register(kind: type) -> None:
    """Let torch look into a dataclass of tensors."""
    names = [field.name for field in fields(kind) if field.name != "places"]
    pytree.register_pytree_node(
        kind,
        lambda value: ([getattr(value, name) for name in names], None),
        lambda values, _: kind(*values),
        serialized_type_name=f"rainlab.{kind.__name__}",
    )


for _kind in (Constants, State):
    _register(_kind)


class TickStream(Stream):
    """A :class:`rainlab.method.stream.Stream` that makes its ticks by one function.

    Args:
        how: "eager"; "compiled": by ``torch.compile``, which takes about a minute at the first tick; "graph": that in a
            CUDA graph. run: another function with the arguments of :meth:`Tick.forward` instead, such as an engine's;
            streams may share an exported one.
        fp8: products in 8 bits. given, options: as for Stream.

    Raises:
        ValueError: an unknown way, a model with more context tokens than one, or a run made for another stream.
    """

    def __init__(
        self,
        model: RAIN,
        *given: Any,
        how: str = "eager",
        run: Callable | None = None,
        fp8: bool = False,
        **options: Any,
    ):
        if how not in HOW:
            raise ValueError(f"how: got {how!r}, expected one of {HOW}")
        if run is not None and (fp8 or how != "eager"):
            raise ValueError(f"run: got one and how={how!r}, fp8={fp8}, expected it alone: it is how ticks are made")
        super().__init__(model, *given, **options)
        if how == "graph" and self.device.type != "cuda":
            raise ValueError(f"how: got 'graph' on {self.device}, expected a CUDA device: use 'compiled' there")
        note = getattr(run, "made_for", {})
        self._made_for_size = note.get("size")
        if note:
            mine = made_for(model, self.cfg, self.batch or 1) | {"device": str(self.device)}
            if others := {name: note.get(name) for name, value in mine.items() if note.get(name) != value}:
                wanted = {name: mine[name] for name in others}
                hint = "make a stream for each instead" if "batch" in others else "export it again, for this stream"
                raise ValueError(f"run: got a tick made for {others}, expected {wanted}: {hint}")
        # beside a run it computes but constants, and what is laid out otherwise would be a second copy of the weights
        self._tick = Tick(model, self.cfg, FUNCTIONAL if run is None else (), fp8)
        self._run = run or self._tick
        if how != "eager":
            mode = {"mode": "max-autotune-no-cudagraphs"} if self.device.type == "cuda" else {}
            self._run = Compiled(self._tick, **mode)
        if how == "graph":
            self._run = CudaGraph(self._run)

    def reset(self) -> None:
        """As Stream's."""
        super().reset()
        self._state: State | None = None
        self._first = 0  # slot of the oldest frame

    def references(self, pictures: Sequence[Any]) -> None:
        """As Stream's, of one picture: ValueError for more."""
        if len(pictures) > 1:
            raise ValueError(f"references: got {len(pictures)} pictures, expected one here; use rainlab.Stream")
        super().references(pictures)

    def fill(self, *_: Any) -> None:
        """Not made by one function: NotImplementedError."""
        raise NotImplementedError("fill: a TickStream only starts softly; use rainlab.Stream")

    def set_bank(self, bank: dict[str, Tensor], context: Tensor) -> None:
        """As Stream's."""
        super().set_bank(bank, context)
        self._constants: tuple[float | None, Constants | None] = (None, None)

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """As Stream's."""
        if self._state is None:
            return torch.zeros(0), torch.zeros(0, dtype=torch.long)
        here = slice(self._first, self._first + len(self._levels) * self.group_size)
        latents = self._state.latents[:, here].clone()  # a graph or an engine writes to the same place again
        return latents, self._times[0, self._levels].repeat_interleave(self.group_size)

    def tick(self, pose: Tensor | None) -> Tensor | None:
        """Not here: guider and decoder are part of the function."""
        raise NotImplementedError("tick: got latents' features, but a TickStream takes pictures: use push, or a Stream")

    def _picture(self, picture: np.ndarray | Tensor, what: str, size: tuple[int, int] | None) -> Tensor:
        tensor, wanted = super()._picture(picture, what, size), self._made_for_size
        if wanted and (got := tuple(tensor.shape[1:3])) != tuple(wanted):
            raise ValueError(f"{what}: got size {got}, but the exported tick takes {tuple(wanted)}: export another")
        return tensor

    @torch.no_grad()
    def _turn(self, conditions: list[Tensor] | None) -> list[np.ndarray]:
        g, slots = self.group_size, self.window
        batch, size = self._context.shape[0], self._size
        if self._state is None:
            self._state = self._tick.start(batch, size)
        if self._constants[0] != self.guidance or self._constants[1] is None:
            self._constants = self.guidance, self._tick.constants(self._bank, self._context, self.guidance)
        order = list(range(self._first, self._first + len(self._levels) * g))
        fresh = torch.zeros(1, device=self.device, dtype=self.dtype).expand(self._state.latents[:, :g].shape)
        if conditions is None:
            pictures = torch.zeros(batch, g, *size, 3, dtype=torch.uint8, device=self.device)
        else:
            pictures = torch.stack(conditions, 1)
            fresh = self._noise(tuple(fresh.shape))
            order += range(slots, slots + g)
            self._levels.append(self.groups - 1)
        present, absent = len(order), slots - len(order)
        shape = (batch, present, *fresh.shape[2:])
        noise = torch.stack([self._noise(shape) for _ in range(self.steps_per_group)], 1)
        noise = torch.nn.functional.pad(noise, (0, 0) * 3 + (0, absent))
        levels = [level for level in self._levels for _ in range(g)] + [0] * absent
        order, levels, seen = (
            torch.tensor(values, device=self.device)
            for values in (order + [0] * absent, levels, [True] * present + [False] * absent)
        )
        strength = torch.tensor(self.temporal_strength, dtype=self.dtype, device=self.device)
        before = self._state
        with self._clock("network"):
            frames, self._state = self._run(
                pictures, fresh.contiguous(), noise, order, levels, seen, strength, before, self._constants[1]
            )
        self._first = g if self._levels[0] == 0 else 0
        self._levels = [level - 1 for level in self._levels if level]
        if not self._first:  # no frame is clean yet, and what the decoder saw was noise
            self._state = replace(self._state, memory=before.memory)
            return []
        shown = frames.to("cpu", copy=True).numpy()  # an engine writes to the same place again
        return [shown[:, i] if self.batch else shown[0, i] for i in range(g)]
