"""Consistency distillation, 2D then 3D, with classifier-free guidance absorbed (sections 3.1 and 4.3).

The student f(x_t, t, ω) is asked to agree with the target network one step of the DDIM solver further down the
teacher's guided trajectory (eq. 5). The target is the moving average of the student.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rainlab.config import Preset
from rainlab.data.dataset import Batch, Draw
from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.rain import RAIN, guided_v, to_signed, to_unit
from rainlab.method.unet import UNet, temporal_mask
from rainlab.training.losses import Loss, Times, in_sight, with_sink

STRIDE = schedule.TRAIN_TIMESTEPS // schedule.SOLVER_STEPS


def solver_times(draw: Draw, frames: int, preset: Preset) -> Tensor:
    """2D: every frame at its own time on the solver grid {10, 20, …, T}, ``(b, f)``."""
    return draw.integers(1, schedule.SOLVER_STEPS + 1, frames) * STRIDE


def solver_staircase(draw: Draw, frames: int, preset: Preset) -> Tensor:
    """3D: a staircase window on the solver grid, t₀ in {10, 20, …, T/p} where the grid allows it, ``(b, f)``."""
    top = schedule.TRAIN_TIMESTEPS // preset.stream.groups
    t0 = draw.integers(1, top // STRIDE + 1) * STRIDE
    return schedule.staircase(t0, frames, preset.stream.groups)


def huber(error: Tensor, c: float) -> Tensor:
    """Pseudo-Huber distance √(d² + c²) - c, elementwise (section 5: c = 0.001)."""
    return (error.square() + c * c).sqrt() - c


def consistency_loss(
    model: RAIN, teacher: UNet, target: UNet, preset: Preset, times: Times, own_history: float = 0.0
) -> Loss:
    """Equation 5 with the Huber distance.

    A stream does not noise true frames but what the network made of them a tick ago. With ``own_history`` that share
    of the steps does, too (the idea of Self Forcing, on one tick of the rolling window): noise a group further up, one
    jump of the target network to clean frames, and these in place of the true ones.

    Args:
        model: holds the student as ``model.denoising_unet`` (with ω embedding).
        teacher: the diffusion model before distillation, frozen: stage 1 for 2D, stage 2 for 3D.
        target: same geometry as the student; its parameters are the loop's moving average.
        times: :func:`solver_times` or :func:`solver_staircase`.
    """
    cfg, low, high = preset.loss, *preset.loss.guidance_range
    motion, stream = model.denoising_unet.cfg.motion, preset.stream
    tick = schedule.TRAIN_TIMESTEPS // stream.groups
    if sinks := motion and stream.sink:
        times = with_sink(times)
    teacher.requires_grad_(False).eval()
    target.requires_grad_(False).eval()

    def loss(batch: Batch, draw: Draw) -> Tensor:
        if sinks:
            batch = in_sight(batch, draw, stream)
        latents, f = batch.latents, batch.latents.shape[1]
        device = latents.device
        now = times(draw, f, preset).to(device) - 1
        after = (now - STRIDE).clamp(min=-1)  # -1: the clean picture, where f is the identity
        noise = draw.normal(*latents.shape[1:]).to(device)
        strength = (low + (high - low) * draw.uniform()).to(device)
        omega = guidance_embedding(strength, model.denoising_unet.cfg.guidance_dim)
        mask = temporal_mask(stream, f, device) if motion else None
        with torch.no_grad():
            bank, context = model.look(to_signed(batch.reference), batch.reference_latents)
            pose = model.pose_guider(to_unit(batch.condition))
        if own_history and draw.uniform()[0] < own_history:
            with torch.no_grad():
                before = torch.where(now >= STRIDE - 1, now + tick, now).clamp(max=schedule.TRAIN_TIMESTEPS - 1)
                further = schedule.add_noise(latents, draw.normal(*latents.shape[1:]).to(device), before)
                v = target(further, before, context, pose, omega, bank, mask)
                latents = schedule.consistency(further, v, before)
        noisy = schedule.add_noise(latents, noise, now)
        with torch.no_grad():
            v = guided_v(teacher, noisy, now, context, pose, bank, strength, mask)
            closer = schedule.solver_step(noisy, v, now, after)
            v = target(closer, after.clamp(min=0), context, pose, omega, bank, mask)
            goal = schedule.consistency(closer, v, after)
        v = model.denoising_unet(noisy, now, context, pose, omega, bank, mask)
        error = huber(schedule.consistency(noisy, v, now) - goal, cfg.huber_c)
        return error[:, : stream.window if sinks else f].mean()

    return loss
