"""AdamW, AdamW with its averages in 8 bits, or Muon for matrices and AdamW for everything else.

Their states are plain tensors, so that every training is saved and resumed in the same way.

Muon (Keller Jordan and others, 2024, https://kellerjordan.github.io/posts/muon) steps along the momentum with all its
singular values brought to about one, so that directions with small gradients learn as fast as the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from rainlab.config import StageConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # x ↦ ax + bx³ + cx⁵: steepest at 0, five times over lands in 0.7 … 1.2
ITERATIONS = 5
BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's
SMALLEST = 16  # a matrix with fewer rows or input channels is an embedding of pixels or latents: AdamW
LEAST, BLOCK = 4096, 256  # AdamW in 8 bits: parameters with fewer numbers stay in 32, blocks share a scale
ENDS = ("conv_in.", "conv_out.", "time_emb", "cond_proj")  # first and last layers and all about time: AdamW


def build(parameters: Mapping[str, nn.Parameter], cfg: StageConfig) -> torch.optim.Optimizer:
    """The optimiser a configuration names, over parameters by name.

    Raises:
        ValueError: it is unknown.
        ModuleNotFoundError: "adamw8bit" without the library bitsandbytes, naming the extra that brings it.
    """
    values, decay = list(parameters.values()), cfg.weight_decay
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(values, lr=cfg.learning_rate, weight_decay=decay, fused=True)
    if cfg.optimizer == "adamw8bit":
        return _bitsandbytes().optim.AdamW8bit(values, lr=cfg.learning_rate, weight_decay=decay, min_8bit_size=LEAST)
    if cfg.optimizer != "muon":
        raise ValueError(f"optimizer: got {cfg.optimizer!r}, expected adamw, adamw8bit or muon")
    return muon(parameters, cfg.learning_rate, cfg.matrix_rate, cfg.momentum, decay)


def muon(
    parameters: Mapping[str, nn.Parameter], learning_rate: float, matrix_rate: float, momentum: float, decay: float
) -> Muon:
    """Muon for the matrices among parameters by name, AdamW for the others."""
    matrices = [p for name, p in parameters.items() if is_matrix(name, p)]
    others = [p for name, p in parameters.items() if not is_matrix(name, p)]
    return Muon(matrices, others, learning_rate, matrix_rate, momentum, decay)


def state_bytes(parameters: Mapping[str, Tensor], cfg: StageConfig) -> int:
    """What the optimiser of a configuration keeps about parameters by name, besides a counter for each, in bytes."""
    total = 0
    for name, parameter in parameters.items():
        n = parameter.numel()
        if cfg.optimizer == "adamw8bit" and n >= LEAST:
            total += 2 * n + 2 * 4 * -(-n // BLOCK)  # two averages in 8 bits, and their largest value in a block
        elif cfg.optimizer == "muon" and is_matrix(name, parameter):
            total += 4 * n  # the momentum
        else:
            total += 8 * n  # AdamW's two averages
    return total


def _bitsandbytes() -> ModuleType:
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        fix = 'install it with `pip install -e ".[memory]"` or choose another optimizer'
        raise ModuleNotFoundError(f"optimizer adamw8bit: the library bitsandbytes is not there; {fix}") from error
    return bitsandbytes


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains a parameter: matrices and convolutions inside the networks."""
    inside = parameter.ndim >= 2 and min(parameter.shape[:2]) >= SMALLEST
    return inside and not any(end in name for end in ENDS)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, on ``matrices``; AdamW on ``others``; decoupled weight decay on both.

    Every group has a ``share``: its learning rate is that times the schedule's, which is ``learning_rate`` at its
    height; the matrices' is then ``matrix_rate``.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        learning_rate: float,
        matrix_rate: float,
        momentum: float,
        weight_decay: float,
    ):
        groups = [
            {"params": list(matrices), "lr": matrix_rate, "share": matrix_rate / learning_rate, "matrices": True},
            {"params": list(others), "lr": learning_rate, "share": 1.0, "matrices": False},
        ]
        super().__init__([g for g in groups if g["params"]], {"momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters and group["matrices"]:
                self._orthogonal(parameters, group)
            elif parameters:
                self._adaptive(parameters, group)

    def _orthogonal(self, parameters: list[nn.Parameter], group: dict) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        grads, mu = [p.grad for p in parameters], group["momentum"]
        averages = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(averages, grads, 1 - mu)
        ahead = torch._foreach_lerp(grads, averages, mu)  # Nesterov
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        shapes: dict[tuple[int, int], list[int]] = {}
        for i, update in enumerate(ahead):
            shapes.setdefault(tuple(update.flatten(1).shape), []).append(i)
        for (rows, columns), members in shapes.items():  # matrices of one shape in one product
            updates = orthogonalise(torch.stack([ahead[i].flatten(1) for i in members]))
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for i, update in zip(members, updates, strict=True):
                parameters[i].sub_(update.view_as(parameters[i]), alpha=rate)

    def _adaptive(self, parameters: list[nn.Parameter], group: dict) -> None:
        for p in parameters:
            if not self.state[p]:
                slots = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p].update(slots, step=torch.zeros((), device=p.device))
        average, square, step = ([self.state[p][key] for p in parameters] for key in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            parameters, [p.grad for p in parameters], average, square, [], step, fused=True, amsgrad=False,
            beta1=BETAS[0], beta2=BETAS[1], lr=group["lr"], weight_decay=group["weight_decay"], eps=EPS, maximize=False,
        )  # fmt: skip


def orthogonalise(matrices: Tensor) -> Tensor:
    """``(n, rows, columns)`` -> the same with singular values of about one (0.7 to 1.2), singular vectors kept.

    Computed in bf16 where the processor multiplies matrices in it (several times as fast, and exact enough: the
    iteration corrects its own errors), else in fp32. There wide matrices are multiplied twice and not ten times: all
    factors are polynomials of the same Gram matrix and commute, so that they can be collected first (Gram
    Newton-Schulz, https://dao-ailab.github.io/blog/2026/gram-newton-schulz; without its restart, which fp16 needs).
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the Gram matrix of the shorter side is smaller
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = x.bfloat16() if native_bf16(x.device) else x
    if x.dtype == torch.float32 and x.shape[2] > 2 * x.shape[1]:
        x = torch.bmm(_factors(torch.bmm(x, x.mT)), x)
        return x.mT if tall else x
    for _ in range(ITERATIONS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _factors(gram: Tensor) -> Tensor:
    """The product of the iteration's factors, of what ``gram`` becomes under each."""
    a, b, c = NEWTON_SCHULZ
    product = None
    for _ in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else torch.bmm(factor, product)
        gram = torch.bmm(torch.bmm(factor, gram), factor)
    return product


def native_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself: GPUs, and processors with AVX512-BF16 or AMX; others imitate it."""
    if device.type != "cpu":
        return True
    return any(torch.cpu.get_capabilities().get(flag, False) for flag in ("avx512_bf16", "amx_bf16"))
