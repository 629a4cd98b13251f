"""Stream: the engine. Algorithm 1 of the paper with soft start and drain, memory that does not grow.

A window of K frames stands in p noise groups like stairs. Each *tick* takes one group of K/p new condition pictures,
appends a group of pure noise, lowers every group by T/p (in N network calls), and releases the first group as soon as
it is clean. From tick to tick only the window's latents, pose features and levels, the decoder's memory and the noise
generator change; what the reference gave (bank and context) stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rainlab.config import StreamConfig
from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.fast import REWRITES, FastUNet, keep_freed_memory, laid_out, quantise
from rainlab.method.rain import RAIN, to_signed, to_uint8, to_unit
from rainlab.method.unet import temporal_mask

Noise = Callable[[tuple[int, ...]], Tensor]


class Stream:
    """Animate an endless stream of condition pictures.

    >>> stream = Stream(model)
    >>> stream.reference(picture)
    >>> for condition in camera:
    ...     for frame in stream.push(condition):
    ...         show(frame)

    Args:
        model: a :class:`rainlab.method.rain.RAIN`; it is put into evaluation mode. What of a StreamConfig is not given
            is taken from ``model.preset.stream``, how the model was trained to be run; a model without a preset runs as
            the paper's (K = 16, p = 4, N = 1, ω = 2).
        window, groups, steps_per_group: K, p, N; p divides K. Sampling steps are p·N.
        guidance: ω, the strength of the absorbed classifier-free guidance; a network without ω embedding (before
            distillation) takes none. This and the next may be changed while it streams (attributes of these names).
        fast: compute with :class:`rainlab.method.fast.FastUNet`: the same up to rounding, with the weights as they are
            now; or the names of the rewrites that it is to make.
        fp8: with a fast network whose products are in 8 bits (:func:`rainlab.method.fast.quantise`): other frames.
        temporal_strength: factor of what the motion modules add, 1 as trained; 0: frames do not see each other.
        seed: of the noise; on one machine the same seed and conditions give the same frames bit for bit however they
            are pushed.
        causal: a frame attends to itself and to earlier slots of the window only (the ablation of section 5.4).
        cross_level: frames attend to those at other noise levels, too; without, groups do not see each other.
        sink: the first clean group stays in sight, behind the full window (an attention sink, as in Rolling Forcing);
            for a network trained with one. After a change of the reference the first group that is wholly of the new
            one takes its place.
        batch: streams that run side by side; pictures and frames then carry a leading dimension of this size.
        noise: replaces the generator and its seed, ``shape -> tensor``; called with the shape of the new group (none
            when draining), then, after every network call, with that of the whole window, also where the coefficient
            of a frame is zero (as the published code draws it).

    ``seconds`` holds the wall time spent so far in the parts "guider", "network" and "decoder" of all pushes.

    Raises:
        ValueError: p does not divide K, p·N exceeds T, N < 1, K with the sink exceeds what the network's positional
            encoding holds, a sink is given together with a mask, ω to a network without ω embedding, or fp8 to a plain
            stream. ImportError: fp8 without torchao.
    """

    def __init__(
        self,
        model: RAIN,
        window: int | None = None,
        groups: int | None = None,
        steps_per_group: int | None = None,
        guidance: float | None = None,
        causal: bool | None = None,
        cross_level: bool | None = None,
        sink: bool | None = None,
        seed: int = 0,
        batch: int | None = None,
        noise: Noise | None = None,
        temporal_strength: float = 1.0,
        fast: bool | Collection[str] = False,
        fp8: bool = False,
    ):
        unet, given = model.denoising_unet, dict(window=window, groups=groups, steps_per_group=steps_per_group,
                                                 guidance=guidance, causal=causal, cross_level=cross_level,
                                                 sink=sink)  # fmt: skip
        if guidance is not None and not unet.cfg.guidance_dim:
            raise ValueError(f"guidance: got {guidance}, but this denoising network has no ω embedding: leave it out")
        trained = model.preset.stream if model.preset else StreamConfig()
        cfg = replace(trained, **{name: value for name, value in given.items() if value is not None})
        schedule.check_window(cfg.window, cfg.groups)
        if unet.cfg.motion and cfg.window + cfg.sink_frames > unet.cfg.motion_length:
            got = f"window: got {cfg.window}" + f" and a sink of {cfg.sink_frames}" * cfg.sink
            raise ValueError(f"{got}, expected at most motion_length={unet.cfg.motion_length}")
        self.model, self.cfg, self.seed, self.batch = model.eval(), cfg, seed, batch
        self.window, self.groups, self.steps_per_group = cfg.window, cfg.groups, cfg.steps_per_group
        self.group_size = cfg.group_size
        self.guidance = float(cfg.guidance) if unet.cfg.guidance_dim else None
        self.temporal_strength = temporal_strength
        self.seconds = {"guider": 0.0, "network": 0.0, "decoder": 0.0}
        self._network, self._guider, self._autoencoder = unet, model.pose_guider, model.autoencoder
        rewrites = REWRITES if fast is True else fast or ()
        if fp8 and not rewrites:
            raise ValueError("fp8: got a plain stream, expected fast=True: the plain network stays as it is")
        if rewrites:
            rewrites = [name for name in rewrites if not (fp8 and name == "packed")]
            self._network = FastUNet(unet, rewrites)
            if fp8:
                quantise(self._network)
            self._guider, self._autoencoder = (laid_out(part, rewrites) for part in (self._guider, self._autoencoder))
            if unet.conv_in.weight.device.type == "cpu":
                keep_freed_memory()
        self._strength: tuple[Any, Tensor | None] = (None, None)  # (b, ω), its embedding
        parameter = unet.conv_in.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        self._times = schedule.stream_times(cfg.groups, cfg.steps_per_group).to(self.device)
        self._mask = temporal_mask(cfg, cfg.window, self.device)
        self._given_noise = noise
        self._bank: dict[str, Tensor] | None = None
        self._context: Tensor | None = None
        self._size: tuple[int, int] | None = None
        self.reset()

    @property
    def latency_frames(self) -> int:
        """How many conditions must have been pushed before the first frame comes out: K."""
        return self.window

    @property
    def contents(self) -> tuple[Tensor, Tensor]:
        """What stands in the window now, to look at: latents ``(b, f, c, h, w)`` and their times ``(f,)``.

        Cleanest group first, at T/p; two empty tensors before the first tick.
        """
        if self._latents is None:
            return torch.zeros(0), torch.zeros(0, dtype=torch.long)
        return self._latents, self._times[0, self._levels].repeat_interleave(self.group_size)

    def reset(self) -> None:
        """Forget the window (and waiting conditions), restart the noise; the reference stays."""
        self._generator = torch.Generator().manual_seed(self.seed)
        self._latents: Tensor | None = None  # (b, f, c, h, w), cleanest group first
        self._pose: Tensor | None = None  # (b, f, C, h, w)
        self._memory: list[Tensor] | None = None
        self._levels: list[int] = []  # noise group of every group in the window: 0 leaves after this tick
        self._waiting: list[Tensor] = []
        self._sink: tuple[Tensor, Tensor] | None = None  # latents and pose of the group that stays in sight
        self._stale = 0  # groups in the window that another reference began

    @torch.no_grad()
    def reference(self, picture: np.ndarray | Tensor) -> None:
        """Set or replace the character: uint8 RGB ``(h, w, 3)``, or ``(b, h, w, 3)`` with ``batch``."""
        self.references([picture])

    @torch.no_grad()
    def references(self, pictures: Sequence[np.ndarray | Tensor]) -> None:
        """Show the character in several pictures, each as for :meth:`reference`: sections 3.3 and 6.1.

        Their banks are concatenated, their contexts averaged. Attention to them costs in proportion to their number.

        Raises:
            TypeError, ValueError: no picture, a wrong one, or several sizes; the character stays as it was.
        """
        if not len(pictures):
            raise ValueError("references: got no picture, expected one or more")
        size = self._size if self._levels or self._waiting else None
        given = []
        for picture in pictures:
            given.append(self._picture(picture, "reference", size))
            size = tuple(given[-1].shape[1:3])
        looks = [self.model.look(to_signed(picture).to(self.dtype)) for picture in given]
        self._size = size
        bank, context = looks[0]
        if len(looks) > 1 and any(states.ndim != 3 for states in bank.values()):
            raise ValueError("references: got several pictures for a ControlNet, expected one: it adds them in place")
        if len(looks) > 1:  # one alone stays as it was computed, to the bit
            bank = {name: torch.cat([each[name] for each, _ in looks], 1) for name in bank}
            context = torch.stack([each for _, each in looks]).mean(0)
        self.set_bank(bank, context)

    def set_bank(self, bank: dict[str, Tensor], context: Tensor) -> None:
        """Use a bank ``{name: (b, h·w, c)}`` and context ``(b, n, d)`` computed elsewhere, of pictures that size.

        A bank of several pictures has their places one after the other, ``(b, pictures·h·w, c)``.
        """
        self._bank, self._context = bank, context
        self._sink, self._stale = None, len(self._levels)

    @torch.no_grad()
    def fill(self, picture: np.ndarray | Tensor, condition: np.ndarray | Tensor) -> None:
        """Begin with a window of one still picture, as noisy as each group is to be, instead of the soft start.

        What section 4.2 advises against; here to be measured. The first K - K/p frames that come out are this still.

        Args:
            picture: uint8 RGB ``(h, w, 3)`` (``(b, h, w, 3)`` with ``batch``). condition: its condition picture.

        Raises:
            RuntimeError: the stream has begun. TypeError, ValueError: as for :meth:`push`.
        """
        if self._levels or self._waiting:
            raise RuntimeError("fill: got a stream that has begun, expected an empty one: call reset() first")
        given = self._picture(picture, "picture", self._size), self._picture(condition, "condition", self._size)
        picture, condition = (x[:, None].expand(-1, self.window - self.group_size, -1, -1, -1) for x in given)
        latents = self._autoencoder.encode(to_signed(picture).to(self.dtype))
        self._levels = list(range(self.groups - 1))
        times = (self._times[0, : self.groups - 1] - 1).repeat_interleave(self.group_size)
        noise = self._noise(tuple(latents.shape))
        self._latents = schedule.add_noise(latents, noise, times.expand(latents.shape[0], -1))
        self._pose = self._guider(to_unit(condition).to(self.dtype))

    @torch.no_grad()
    def push(self, conditions: np.ndarray | Tensor | Sequence[np.ndarray]) -> list[np.ndarray]:
        """Push one condition picture, or a list of them in order; returns the frames that became clean.

        Conditions are uint8 RGB ``(h, w, 3)`` (``(b, h, w, 3)`` with ``batch``). Frames are the same, as numpy arrays;
        they come ``group_size`` at a time, the first group after ``latency_frames`` conditions.

        Raises:
            RuntimeError: no reference was set. TypeError, ValueError: wrong type, channels or size; nothing was pushed.

        Where a tick is interrupted or fails, its group is gone and the stream can go on.
        """
        if self._bank is None:
            raise RuntimeError("no reference: call stream.reference(picture) before stream.push(condition)")
        if not isinstance(conditions, (list, tuple)):
            conditions = [conditions]
        # all or none: a bad condition must not leave half a push behind
        pictures, size = [], self._size
        for condition in conditions:
            pictures.append(self._picture(condition, "condition", size))
            size = tuple(pictures[-1].shape[1:3])
        self._size = size
        frames: list[np.ndarray] = []
        for condition in pictures:
            self._waiting.append(condition)
            if len(self._waiting) == self.group_size:
                group, self._waiting = self._waiting, []
                frames += self._whole(group)
        return frames

    @torch.no_grad()
    def flush(self) -> list[np.ndarray]:
        """End the stream: returns the frames of all conditions pushed so far that are not out yet, then resets.

        A partial group is filled by repeating its last condition; the padding's frames are dropped.
        """
        if not self._levels and not self._waiting:
            return []
        padding, frames = 0, []
        if self._waiting:
            padding = self.group_size - len(self._waiting)
            frames += self._whole(self._waiting + self._waiting[-1:] * padding)
        while self._levels:
            frames += self._whole(None)
        self.reset()
        return frames[: len(frames) - padding]

    def _whole(self, conditions: list[Tensor] | None) -> list[np.ndarray]:
        """A tick, or none of it: one that is interrupted or fails leaves the stream as if its group had not come."""
        before, drawn = vars(self) | {"_levels": list(self._levels)}, self._generator.get_state()
        try:
            return self._turn(conditions)
        except BaseException:
            vars(self).update(before)
            self._generator.set_state(drawn)
            raise

    def _turn(self, conditions: list[Tensor] | None) -> list[np.ndarray]:
        """One tick, from the conditions of a group (None: drain) to the frames that became clean."""
        return self._decode(self.tick(None if conditions is None else self._features(conditions)))

    @torch.no_grad()
    def tick(self, pose: Tensor | None) -> Tensor | None:
        """One turn of Algorithm 1 on latents.

        Args:
            pose: features ``(b, K/p, C, h, w)`` of the new group, or None to drain.

        Returns:
            clean latents ``(b, K/p, c, h, w)``, or None while the window fills (soft start).

        Raises:
            RuntimeError: asked to drain an empty window.
        """
        if pose is None and self._latents is None:
            raise RuntimeError("tick(None) drains, but the window is empty: give the features of a group first")
        if pose is not None:
            shape = (*pose.shape[:2], self.model.denoising_unet.cfg.latent_channels, *pose.shape[3:])
            fresh = self._noise(shape)
            self._latents = fresh if self._latents is None else torch.cat([self._latents, fresh], dim=1)
            self._pose = pose if self._pose is None else torch.cat([self._pose, pose], dim=1)
            self._levels.append(self.groups - 1)
        with self._clock("network"):
            for j in range(self.steps_per_group):
                now, after = (self._timesteps(j + k) for k in (0, 1))
                v = self._predict(self._latents, now)
                step_noise = self._noise(tuple(self._latents.shape))
                self._latents = self._step(self._latents, v, now, after, step_noise)
        clean = self._pop() if self._levels[0] == 0 else None
        self._levels = [level - 1 for level in self._levels]
        return clean

    def _pop(self) -> Tensor:
        g = self.group_size
        clean = self._latents[:, :g]
        self._levels = self._levels[1:]
        # copies: while draining, a view would keep the storage of the whole old window
        if self.cfg.sink and self._sink is None and not self._stale:
            self._sink = clean, self._pose[:, :g].clone()
        self._stale = max(0, self._stale - 1)
        self._latents = self._latents[:, g:].clone() if self._levels else None
        self._pose = self._pose[:, g:].clone() if self._levels else None
        return clean

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":  # kernels run on by themselves
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - start

    def _timesteps(self, call: int) -> Tensor:
        """Table indices ``(b, f)`` before (``call``) or after (``call + 1``) a network call; -1 is clean."""
        per_group = self._times[call, self._levels] - 1
        return per_group.repeat_interleave(self.group_size).expand(self._latents.shape[0], -1)

    def _in_sight(self, latents: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(latents, table indices, pose) of the window and, while that is full, of the sink behind it."""
        if self._sink is None or len(self._levels) < self.groups:
            return latents, timesteps, self._pose
        clean, pose = self._sink
        times = F.pad(timesteps, (0, self.group_size))  # index 0: as good as clean
        return torch.cat([latents, clean], 1), times, torch.cat([self._pose, pose], 1)

    def _predict(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        b, f = timesteps.shape
        if self.guidance is not None and self._strength[0] != (b, self.guidance):
            if not self.model.denoising_unet.cfg.guidance_dim:
                raise ValueError(f"guidance: got {self.guidance}, but this network has no ω embedding: set it to None")
            strength = torch.full((b,), self.guidance, device=self.device)
            embedding = guidance_embedding(strength, self.model.denoising_unet.cfg.guidance_dim).to(self.dtype)
            self._strength = (b, self.guidance), embedding
        mask = None if self._mask is None else self._mask[:f, :f]
        latents, timesteps, pose = self._in_sight(latents, timesteps)
        v = self._network(
            latents, timesteps, self._context, pose, self._strength[1], self._bank, temporal_mask=mask,
            temporal_strength=self.temporal_strength,
        )  # fmt: skip
        return v[:, :f]

    def _step(self, latents: Tensor, v: Tensor, now: Tensor, after: Tensor, noise: Tensor) -> Tensor:
        return schedule.consistency_step(latents, v, now, after, noise)

    def _noise(self, shape: tuple[int, ...]) -> Tensor:
        noise = self._given_noise(shape) if self._given_noise else torch.randn(shape, generator=self._generator)
        return noise.to(self.device, self.dtype)

    def _features(self, conditions: list[Tensor]) -> Tensor:
        with self._clock("guider"):
            return self._guider(to_unit(torch.stack(conditions, dim=1)).to(self.dtype))

    def _decode(self, latents: Tensor | None) -> list[np.ndarray]:
        if latents is None:
            return []
        with self._clock("decoder"):
            pictures, self._memory = self._autoencoder.decode_next(latents, self._memory)
            frames = to_uint8(pictures.float()).cpu().numpy()
        return [frames[:, i] if self.batch else frames[0, i] for i in range(frames.shape[1])]

    def _picture(self, picture: np.ndarray | Tensor, what: str, size: tuple[int, int] | None) -> Tensor:
        return checked(picture, what, self.model.autoencoder.factor, size, self.batch).to(self.device)


def checked(
    picture: np.ndarray | Tensor, what: str, factor: int, size: tuple[int, int] | None = None, batch: int | None = None
) -> Tensor:
    """A picture, or with ``batch`` so many, as uint8 ``(b, h, w, 3)``; ``size`` is what this stream's pictures have.

    Raises:
        TypeError, ValueError: wrong type, channels or size, or sides that are no multiples of ``factor``.
    """
    shape = "(h, w, 3)" if batch is None else f"({batch}, h, w, 3)"
    expected = f"expected uint8 RGB {shape}"
    if not isinstance(picture, (np.ndarray, Tensor)):
        raise TypeError(f"{what}: got {type(picture).__name__}, {expected} as a numpy array or tensor")
    tensor = torch.as_tensor(picture)
    if tensor.dtype != torch.uint8:
        raise TypeError(f"{what}: got dtype {tensor.dtype}, {expected} with values 0 … 255")
    if tensor.ndim != (3 if batch is None else 4) or tensor.shape[-1] != 3:
        hint = " (channels last: transpose it)" if tensor.ndim >= 3 and tensor.shape[-3] == 3 else ""
        raise ValueError(f"{what}: got shape {tuple(tensor.shape)}, {expected}{hint}")
    tensor = tensor[None] if batch is None else tensor
    if batch is not None and tensor.shape[0] != batch:
        raise ValueError(f"{what}: got {tensor.shape[0]} pictures, expected batch={batch}")
    got = tuple(tensor.shape[1:3])
    if any(n % factor for n in got):
        raise ValueError(f"{what}: got size {got}, expected height and width that are multiples of {factor}")
    if size is not None and got != size:
        raise ValueError(f"{what}: got size {got}, expected {size} like the rest of this stream")
    return tensor


def animate(model: RAIN, reference: np.ndarray, conditions: np.ndarray, **options) -> np.ndarray:
    """Stream a finite clip: reference ``(h, w, 3)``, conditions ``(f, h, w, 3)`` -> frames ``(f, h, w, 3)``, uint8.

    With a leading batch dimension on both, the clips run side by side. ``options`` are :class:`Stream`'s, except
    ``batch``.
    """
    batched = np.ndim(reference) == 4
    stream = Stream(model, batch=len(reference) if batched else None, **options)
    stream.reference(reference)
    axis = 1 if batched else 0
    frames = stream.push([np.take(conditions, i, axis=axis) for i in range(np.shape(conditions)[axis])])
    return np.stack(frames + stream.flush(), axis=axis)
