"""Noise schedule, staircase and solver steps: pure functions, one time step per frame.

Time runs 1 … T in the paper and in this module's names ``t0``/``times``; tables and networks are indexed with
``timesteps = times - 1`` (0 … T-1), so that four-step sampling sees 249, 499, 749, 999. Time 0 is the clean picture.
Letters: K frames in the window, p noise groups, N network calls from one group's leaving to the next's, T = 1000. The
stream runs on `stream_times`; `staircase`, `snr` and `velocity` serve training.

Tensors broadcast as ``(b, f, c, h, w)`` against per-frame ``(b, f)`` coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # of the consistency model's boundary condition (LCM)
SOLVER_STEPS = 100  # DDIM solver of the distillation (section 5)


def betas(train_timesteps: int = TRAIN_TIMESTEPS, zero_snr: bool = True) -> Tensor:
    """β of the scaled_linear schedule, ``(T,)``; rescaled to zero terminal SNR (Lin et al., algorithm 1) by default."""
    beta = torch.linspace(BETA_START**0.5, BETA_END**0.5, train_timesteps, dtype=torch.float32) ** 2
    if not zero_snr:
        return beta
    root = (1.0 - beta).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    root = (root - last) * (first / (first - last))
    bar = root**2
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


@lru_cache
def _table(train_timesteps: int, zero_snr: bool) -> Tensor:
    return (1.0 - betas(train_timesteps, zero_snr)).cumprod(0)


def alphas_cumprod(train_timesteps: int = TRAIN_TIMESTEPS, zero_snr: bool = True) -> Tensor:
    """ᾱ for table indices 0 … T-1, ``(T,)`` float32."""
    return _table(train_timesteps, zero_snr).clone()


def alpha_sigma(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(√ᾱ, √(1-ᾱ)) for table indices of any shape; index -1 stands for the clean picture and gives (1, 0)."""
    bar = _table(TRAIN_TIMESTEPS, True).to(timesteps.device)[timesteps.clamp(min=0)]
    bar = torch.where(timesteps < 0, torch.ones_like(bar), bar)
    return bar.sqrt(), (1 - bar).sqrt()


def _per_frame(coefficient: Tensor, like: Tensor) -> Tensor:
    return coefficient.to(like.dtype).reshape(coefficient.shape + (1,) * (like.ndim - coefficient.ndim))


def _mix(timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = alpha_sigma(timesteps)
    return _per_frame(alpha, like), _per_frame(sigma, like)


def snr(timesteps: Tensor) -> Tensor:
    """Signal-to-noise ratio ᾱ/(1-ᾱ); 0 at index 999 (zero terminal SNR)."""
    alpha, sigma = alpha_sigma(timesteps)
    return alpha**2 / sigma**2


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t = √ᾱ x₀ + √(1-ᾱ) ε, ``timesteps`` shaped like the leading dimensions of ``clean``."""
    alpha, sigma = _mix(timesteps, clean)
    return alpha * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """v = √ᾱ ε - √(1-ᾱ) x₀ (Salimans and Ho)."""
    alpha, sigma = _mix(timesteps, clean)
    return alpha * noise - sigma * clean


def clean_from_v(noisy: Tensor, v: Tensor, timesteps: Tensor) -> Tensor:
    """x₀ = √ᾱ x_t - √(1-ᾱ) v."""
    alpha, sigma = _mix(timesteps, noisy)
    return alpha * noisy - sigma * v


def noise_from_v(noisy: Tensor, v: Tensor, timesteps: Tensor) -> Tensor:
    """ε = √ᾱ v + √(1-ᾱ) x_t."""
    alpha, sigma = _mix(timesteps, noisy)
    return alpha * v + sigma * noisy


def solver_step(noisy: Tensor, v: Tensor, timesteps: Tensor, next_timesteps: Tensor) -> Tensor:
    """One deterministic DDIM step of the probability-flow ODE from ``timesteps`` to ``next_timesteps`` (-1: clean)."""
    alpha, sigma = _mix(next_timesteps, noisy)
    return alpha * clean_from_v(noisy, v, timesteps) + sigma * noise_from_v(noisy, v, timesteps)


def boundary(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of the consistency function per frame: eq. 1's boundary condition as in LCM, (1, 0) at index 0
    and below."""
    scaled = timesteps.clamp(min=0).float() * TIMESTEP_SCALING
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return c_skip, scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5


def consistency(noisy: Tensor, v: Tensor, timesteps: Tensor) -> Tensor:
    """f(x_t, t) = c_skip x_t + c_out x₀(v) (eq. 4)."""
    c_skip, c_out = (_per_frame(c, noisy) for c in boundary(timesteps))
    return c_out * clean_from_v(noisy, v, timesteps) + c_skip * noisy


def consistency_step(noisy: Tensor, v: Tensor, timesteps: Tensor, next_timesteps: Tensor, noise: Tensor) -> Tensor:
    """Jump to the clean picture and add ``noise`` back to ``next_timesteps`` (-1 returns the clean picture itself)."""
    return add_noise(consistency(noisy, v, timesteps), noise, next_timesteps)


def staircase(t0: Tensor | int, window: int, groups: int, train_timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """Equation 7: times of the K frames, group g at t₀ + g·T/p.

    Args:
        t0: time of the cleanest group in [1, T/p]; int or ``(b,)``.
        window: K. groups: p, a divisor of K.

    Returns:
        ``(b, K)`` (``(K,)`` for an int) times in [1, T]; table indices are these minus one.

    Raises:
        ValueError: p does not divide K, or t₀ is out of range.
    """
    check_window(window, groups)
    t0 = torch.as_tensor(t0)
    if t0.numel() and (t0.min() < 1 or t0.max() * groups > train_timesteps):
        low, high = int(t0.min()), int(t0.max())
        raise ValueError(f"t0: got values in [{low}, {high}], expected [1, T/p] = [1, {train_timesteps // groups}]")
    step = torch.arange(groups).repeat_interleave(window // groups) * train_timesteps // groups
    return t0[..., None] + step


def stream_times(groups: int, steps_per_group: int = 1, train_timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """Algorithm 1: time of every group at each of the N calls between two pops, ``(N + 1, p)``.

    Row j holds (g+1)·T/p - j·T/(N·p); the last row is what the N-th call reaches, its first entry is 0 (clean).
    """
    if groups < 1 or steps_per_group < 1 or groups * steps_per_group > train_timesteps:
        raise ValueError(
            f"got groups={groups}, steps_per_group={steps_per_group}, expected both >= 1 and p·N <= {train_timesteps}"
        )
    calls = groups * steps_per_group
    level = torch.arange(1, groups + 1) * steps_per_group - torch.arange(steps_per_group + 1)[:, None]
    return level * train_timesteps // calls


def check_window(window: int, groups: int) -> None:
    """Raise ValueError unless p divides K."""
    if groups < 1 or window < 1 or window % groups:
        raise ValueError(f"got window K={window}, groups p={groups}, expected p to divide K (for example K=16, p=4)")


def ddim_times(steps: int, train_timesteps: int = TRAIN_TIMESTEPS) -> Tensor:
    """Trailing times T, …, T/steps, 0 for plain sampling, ``(steps + 1,)``."""
    return torch.round(torch.arange(steps, -1, -1) * (train_timesteps / steps)).long()


def ddim(predict_v: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Plain DDIM from pure noise, all frames at one time step: the undistilled baseline of section 4.3.

    ``predict_v(latents, timesteps (b, f))`` is called ``steps`` times; returns the clean latents.
    """
    latents = noise
    times = ddim_times(steps, TRAIN_TIMESTEPS)
    for now, after in zip(times[:-1] - 1, times[1:] - 1, strict=True):
        here, there = (torch.full(noise.shape[:2], int(t), device=noise.device) for t in (now, after))
        latents = solver_step(latents, predict_v(latents, here), here, there)
    return latents
