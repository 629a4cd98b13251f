"""The losses of the autoencoder, stage 1 and stage 2 (section 4.2), and how frames get their time steps.

A loss maps a batch and its random draws to one number; :mod:`rainlab.training.loop` minimises it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rainlab.config import Preset, StreamConfig
from rainlab.data.dataset import Batch, Draw
from rainlab.method import schedule
from rainlab.method.rain import RAIN, to_signed, to_unit
from rainlab.method.unet import temporal_mask

Loss = Callable[[Batch, Draw], Tensor]
Times = Callable[[Draw, int, Preset], Tensor]
NULL_CONTEXT = 0.0  # the dropped token is zero, in training and in sampling
NO_SINK = 0.25  # share of the steps without a sink: a stream has none until its first group is out


def autoencoder_loss(model: RAIN) -> Loss:
    """Mean squared plus a tenth of the mean absolute error of the reconstructed pictures in [-1, 1]."""

    def loss(batch: Batch, draw: Draw) -> Tensor:
        pictures = to_signed(batch.reference)
        error = model.autoencoder.decode(model.autoencoder.encode(pictures)) - pictures
        return error.square().mean() + 0.1 * error.abs().mean()

    return loss


def snr_weight(timesteps: Tensor, gamma: float) -> Tensor:
    """min(SNR + 1, γ)/(SNR + 1) for v-prediction (as in Moore-AnimateAnyone); 1 at t = 999, where sampling starts."""
    level = schedule.snr(timesteps) + 1
    return level.clamp(max=gamma) / level


def uniform_times(draw: Draw, frames: int, preset: Preset) -> Tensor:
    """Stage 1: every frame at its own uniform time in [1, T]."""
    return draw.integers(1, schedule.TRAIN_TIMESTEPS + 1, frames)


def staircase_times(draw: Draw, frames: int, preset: Preset) -> Tensor:
    """Stage 2: equation 7 with t₀ uniform in [1, T/p]."""
    t0 = draw.integers(1, schedule.TRAIN_TIMESTEPS // preset.stream.groups + 1)
    return schedule.staircase(t0, frames, preset.stream.groups)


def window_times(draw: Draw, frames: int, preset: Preset) -> Tensor:
    """AnimateAnyone's stage 2: one uniform time in [1, T] for all frames of a window."""
    return draw.integers(1, schedule.TRAIN_TIMESTEPS + 1)[:, None].expand(-1, frames)


def with_sink(times: Times) -> Times:
    """As ``times`` for the window, and for the frames that stand behind it the time 1: as good as clean."""

    def chosen(draw: Draw, frames: int, preset: Preset) -> Tensor:
        window = min(frames, preset.stream.window)
        return F.pad(times(draw, window, preset), (0, frames - window), value=1)

    return chosen


def in_sight(batch: Batch, draw: Draw, cfg: StreamConfig) -> Batch:
    """A batch of windows with a sink, or in NO_SINK of the steps without it."""
    if not cfg.sink or draw.uniform()[0] >= NO_SINK:
        return batch
    return replace(batch, latents=batch.latents[:, : cfg.window], condition=batch.condition[:, : cfg.window])


def kept(draw: Draw, dropout: float, device: torch.device) -> Tensor | None:
    """Whose reference stays, ``(b,)`` bool; None if all do, which no device has to be waited for to know."""
    keep = draw.uniform() >= dropout if dropout else None
    return None if keep is None or keep.all() else keep.to(device)


def denoising_loss(model: RAIN, preset: Preset, times: Times) -> Loss:
    """Weighted v-prediction loss of stages 1 and 2, which differ only in how ``times`` are drawn.

    The reference (token and bank together, per sample, never the pose) is dropped with ``condition_dropout``.
    """
    per_sample = sample_losses(model, preset, times)
    return lambda batch, draw: per_sample(batch, draw).mean()


def sample_losses(model: RAIN, preset: Preset, times: Times, dropout: float | None = None) -> Loss:
    """The same loss per sample, ``(b,)``; ``dropout`` overrides the preset's (0 for validation)."""
    cfg = preset.loss
    dropout = cfg.condition_dropout if dropout is None else dropout
    motion, stream = model.denoising_unet.cfg.motion, preset.stream
    if sinks := motion and stream.sink:
        times = with_sink(times)

    def loss(batch: Batch, draw: Draw) -> Tensor:
        if sinks:
            batch = in_sight(batch, draw, stream)
        latents = batch.latents
        b, f, c = latents.shape[:3]
        device = latents.device
        timesteps = times(draw, f, preset).to(device) - 1
        noise = draw.normal(*latents.shape[1:]) + cfg.noise_offset * draw.normal(f, c, 1, 1)
        noise = noise.to(device)
        keep = kept(draw, dropout, device)
        bank, context = model.look(to_signed(batch.reference), batch.reference_latents)
        if keep is not None:
            context = torch.where(keep[:, None, None], context, NULL_CONTEXT)
        v = model.denoising_unet(
            schedule.add_noise(latents, noise, timesteps),
            timesteps,
            context,
            model.pose_guider(to_unit(batch.condition)),
            None,
            bank,
            temporal_mask=temporal_mask(stream, f, device) if motion else None,
            reference_keep=keep,
        )
        target = schedule.velocity(latents, noise, timesteps)
        error = F.mse_loss(v.float(), target, reduction="none").mean((2, 3, 4))
        error = snr_weight(timesteps, cfg.snr_gamma) * error
        return error[:, : stream.window if sinks else f].mean(1)

    return loss
