"""Training: one loop for every stage, and the losses of the autoencoder, stage 1 and stage 2 (section 4.2).

The loop is a generator that yields after every optimiser step; :func:`fit` drives it with saving, resuming and
progress. Under ``torchrun`` each process computes its share of every batch and gradients are averaged.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from rainlab import runs, schedule
from rainlab.config import Preset, StageConfig
from rainlab.data import Batch, Draw, TrainingSet
from rainlab.model import RAIN, to_signed, to_unit

Loss = Callable[[Batch, Draw], Tensor]
NULL_CONTEXT = 0.0  # the dropped token is zero, in training and in sampling


@dataclass
class State:
    """What a checkpoint holds and the loop yields. ``ema`` maps the same names as ``parameters``."""

    parameters: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimiser steps done
    loss: float = math.nan
    grad_norm: float = math.nan
    learning_rate: float = math.nan
    history: list[dict] = field(default_factory=list)


def learning_rate(cfg: StageConfig, step: int) -> float:
    """Linear warm-up, constant, cosine to zero over the last ``decay`` share of the steps."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    begin = cfg.steps * (1 - cfg.decay)
    rest = (step - begin) / max(1.0, cfg.steps - begin)
    return cfg.learning_rate * warm * (0.5 * (1 + math.cos(math.pi * rest)) if rest > 0 else 1.0)


def train(loss: Loss, state: State, data: TrainingSet, cfg: StageConfig, frames: int, window: bool) -> Iterator[State]:
    """Yield ``state`` after every optimiser step from ``state.step`` to ``cfg.steps``.

    Args:
        loss: mean loss of a batch; see :func:`denoising_loss`.
        frames, window: how a sample is drawn (:meth:`rainlab.data.TrainingSet.batch`).

    Raises:
        ValueError: the batch does not split evenly over processes and accumulation steps.
        FloatingPointError: the loss is not finite.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share, odd = divmod(cfg.batch, world * cfg.accumulate)
    if odd:
        raise ValueError(f"batch: got {cfg.batch}, expected a multiple of {world} processes × {cfg.accumulate}")
    parameters = list(state.parameters.values())
    device = parameters[0].device
    while state.step < cfg.steps:
        state.learning_rate, state.loss = learning_rate(cfg, state.step), 0.0
        for part in range(cfg.accumulate):
            first = (part * world + rank) * share
            samples = range(first, first + share)
            batch = data.batch(cfg.seed, state.step, samples, cfg.batch, frames, window).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                value = loss(batch, Draw(cfg.seed, state.step, samples)) / cfg.accumulate
            value.backward()
            state.loss += value.item()
        _average(parameters, world)
        if not math.isfinite(state.loss):
            raise FloatingPointError(f"loss is {state.loss} at step {state.step}: lower the learning rate")
        state.grad_norm = float(nn.utils.clip_grad_norm_(parameters, cfg.clip_norm))
        for group in state.optimizer.param_groups:
            group["lr"] = state.learning_rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(state.ema.values()), parameters, 1 - cfg.ema)
        state.step += 1
        yield state


def _average(parameters: list[nn.Parameter], world: int) -> None:
    if world > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world


def start(model: nn.Module, names: list[str], cfg: StageConfig, ema: dict[str, Tensor] | None = None) -> State:
    """Freeze everything but ``names`` and make a fresh state; ``ema`` are existing tensors to average into."""
    wanted = set(names)
    parameters = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
        if name in wanted:
            parameters[name] = parameter
    if missing := wanted - set(parameters):
        raise ValueError(f"got parameter names that the model lacks: {sorted(missing)[:3]} …")
    if ema is None:
        ema = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    ema = {name: ema[name] for name in parameters}  # the same order: the update runs over both lists
    values = list(parameters.values())
    optimizer = torch.optim.AdamW(values, lr=cfg.learning_rate, weight_decay=cfg.weight_decay)
    return State(parameters, ema, optimizer)


def save_state(state: State, path: os.PathLike) -> None:
    """Write everything needed to go on, atomically, as safetensors."""
    tensors = {f"parameter/{k}": v.detach() for k, v in state.parameters.items()}
    tensors |= {f"ema/{k}": v for k, v in state.ema.items()}
    for name, parameter in state.parameters.items():
        for key, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = value
    note = {"step": str(state.step), "history": json.dumps(state.history)}
    with runs.atomic_path(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, temporary, note)


def load_state(state: State, path: os.PathLike) -> None:
    """Fill a fresh ``state`` from :func:`save_state`'s file."""
    with safe_open(path, "pt") as file, torch.no_grad():
        note = file.metadata()
        for name, parameter in state.parameters.items():
            parameter.copy_(file.get_tensor(f"parameter/{name}"))
            state.ema[name].copy_(file.get_tensor(f"ema/{name}"))
        slots: dict[str, dict[str, Tensor]] = {name: {} for name in state.parameters}
        for key in file.keys():  # noqa: SIM118 — safe_open is no mapping
            kind, _, rest = key.partition("/")
            if kind == "optimizer":
                slot, _, name = rest.partition("/")
                tensor = file.get_tensor(key)
                slots[name][slot] = tensor if slot == "step" else tensor.to(state.parameters[name].device)
    for name, values in slots.items():
        if values:
            state.optimizer.state[state.parameters[name]] = values
    state.step, state.history = int(note["step"]), json.loads(note["history"])


def fit(
    run: runs.Run,
    loss: Loss,
    state: State,
    data: TrainingSet,
    cfg: StageConfig,
    frames: int,
    window: bool,
    each: Callable[[State], None] | None = None,
    extra: Callable[[], dict[str, Tensor]] | None = None,
) -> list[dict]:
    """Train to the end inside ``run``, resuming from its last checkpoint; returns the history.

    Writes ``state.safetensors`` every ``cfg.save_every`` steps and ``weights.safetensors`` (the averaged weights of
    what was trained) at the end; where those are there already, nothing is trained. A killed run loses at most the
    steps since the last save. ``each`` is called after every step,
    ``extra`` at the end for tensors to keep beside the weights. History rows: step, loss (mean since the row
    before), grad_norm, learning_rate, seconds.
    """
    if history := finished_history(run):
        return history
    path, main = run.path / "state.safetensors", not dist.is_initialized() or dist.get_rank() == 0
    if path.exists():
        load_state(state, path)
    every = max(1, cfg.steps // 100)
    began = time.perf_counter() - (state.history[-1]["seconds"] if state.history else 0.0)
    losses: list[float] = []
    with tqdm(total=cfg.steps, initial=state.step, desc=run.name, leave=False, disable=not main) as bar:
        for now in train(loss, state, data, cfg, frames, window):
            losses.append(now.loss)
            bar.update()
            if now.step % every == 0 or now.step == cfg.steps:
                state.history.append(
                    {
                        "step": now.step,
                        "loss": sum(losses) / len(losses),
                        "grad_norm": now.grad_norm,
                        "learning_rate": now.learning_rate,
                        "seconds": round(time.perf_counter() - began, 1),
                    }
                )
                losses.clear()
                bar.set_postfix(loss=f"{state.history[-1]['loss']:.4f}")
            if main and now.step % cfg.save_every == 0 and now.step < cfg.steps:
                save_state(state, path)
            if each:
                each(now)
    if main:
        runs.write_json(run.path / "history.json", state.history)
        with runs.atomic_path(run.path / "weights.safetensors") as temporary:
            tensors = state.ema | (extra() if extra else {})
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
        path.unlink(missing_ok=True)
    if dist.is_initialized():
        dist.barrier()  # no process goes on before the weights are written
    return state.history


def finished_history(run: runs.Run) -> list[dict] | None:
    """The history of a run whose training has ended, else None."""
    if not (run.path / "weights.safetensors").exists():
        return None
    return json.loads((run.path / "history.json").read_text("utf-8"))


def join_processes() -> None:
    """Under ``torchrun``: join the process group (gloo on the CPU, nccl on GPUs). Otherwise do nothing."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


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


def denoising_loss(model: RAIN, preset: Preset, times: Callable[[Draw, int, Preset], Tensor]) -> Loss:
    """Weighted v-prediction loss of stages 1 and 2, which differ only in how ``times`` are drawn.

    The reference (token and bank together, per sample, never the pose) is dropped with ``condition_dropout``.
    """
    per_sample = sample_losses(model, preset, times)
    return lambda batch, draw: per_sample(batch, draw).mean()


def sample_losses(
    model: RAIN, preset: Preset, times: Callable[[Draw, int, Preset], Tensor], dropout: float | None = None
) -> Loss:
    """The same loss per sample, ``(b,)``; ``dropout`` overrides the preset's (0 for validation)."""
    cfg = preset.loss
    dropout = cfg.condition_dropout if dropout is None else dropout

    def loss(batch: Batch, draw: Draw) -> Tensor:
        latents = batch.latents
        b, f, c = latents.shape[:3]
        device = latents.device
        timesteps = times(draw, f, preset).to(device) - 1
        noise = draw.normal(*latents.shape[1:]) + cfg.noise_offset * draw.normal(f, c, 1, 1)
        noise = noise.to(device)
        keep = (draw.uniform() >= dropout).to(device)
        bank, context = model.look(to_signed(batch.reference), batch.reference_latents)
        context = torch.where(keep[:, None, None], context, NULL_CONTEXT)
        v = model.denoising_unet(
            schedule.add_noise(latents, noise, timesteps),
            timesteps,
            context,
            model.pose_guider(to_unit(batch.condition)),
            None,
            bank,
            temporal_mask=causal_mask(f, device) if preset.stream.causal and model.denoising_unet.cfg.motion else None,
            reference_keep=None if bool(keep.all()) else keep,
        )
        target = schedule.velocity(latents, noise, timesteps)
        error = F.mse_loss(v.float(), target, reduction="none").mean((2, 3, 4))
        return (snr_weight(timesteps, cfg.snr_gamma) * error).mean(1)

    return loss


def causal_mask(frames: int, device: torch.device | str = "cpu") -> Tensor:
    """``(f, f)`` bool: a frame attends to itself and to earlier slots of the window (section 5.4)."""
    return torch.ones(frames, frames, dtype=torch.bool, device=device).tril()


@torch.no_grad()
def validate(per_sample: Loss, data: TrainingSet, frames: int, window: bool, seed: int = 0, repeats: int = 4) -> Tensor:
    """Held-out loss per clip, ``(n,)``: the mean over ``repeats`` fixed draws, the same for every model compared."""
    total = torch.zeros(data.count)
    parts = [(repeat, first) for repeat in range(repeats) for first in range(0, data.count, 4)]
    for repeat, first in tqdm(parts, "validation", leave=False):
        samples = range(first, min(first + 4, data.count))
        batch = data.batch(seed, repeat, samples, data.count, frames, window)
        clips = [data.clip_at(seed, repeat, sample, data.count) for sample in samples]
        total[clips] += per_sample(batch, Draw(seed, repeat, samples))
    return total / repeats
