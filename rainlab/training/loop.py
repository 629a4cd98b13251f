"""Training: one loop for every stage, with saving, resuming and processes side by side.

The loop is a generator that yields after every optimiser step; :func:`fit` drives it with saving, resuming (on the
same machine bit for bit) and progress. Under ``torchrun`` each process computes its share of every batch and gradients
are averaged by DistributedDataParallel.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rainlab import runs
from rainlab.config import StageConfig
from rainlab.data.dataset import Batch, Draw, TrainingSet
from rainlab.files import write_json
from rainlab.method.checkpoint import write_tensors
from rainlab.training import optim, weights
from rainlab.training.losses import Loss

CHECKPOINT = "state.safetensors"
MESSAGE = 128  # MiB of gradients that processes send each other at once


@dataclass
class State:
    """What a checkpoint holds and the loop yields. ``ema`` maps the same names as ``parameters``."""

    parameters: dict[str, nn.Parameter]
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0  # optimiser steps done
    begun: int = 0  # the step its optimiser began at: more than 0 after a warm start
    loss: float = math.nan
    grad_norm: float = math.nan
    learning_rate: float = math.nan
    history: list[dict] = field(default_factory=list)
    pending: list[float] = field(default_factory=list)  # losses since the last row of the history


def learning_rate(cfg: StageConfig, step: int, begun: int = 0) -> float:
    """Linear warm-up from step ``begun``, constant, cosine to zero over the last ``decay`` share of the steps."""
    warm = min(1.0, (step + 1 - begun) / max(1, cfg.warmup))
    begin = cfg.steps * (1 - cfg.decay)
    rest = (step - begin) / max(1.0, cfg.steps - begin)
    return cfg.learning_rate * warm * (0.5 * (1 + math.cos(math.pi * rest)) if rest > 0 else 1.0)


def train(
    loss: Loss, state: State, data: TrainingSet, cfg: StageConfig, frames: int, window: bool, sink: int = 0
) -> Iterator[State]:
    """Yield ``state`` after every optimiser step from ``state.step`` to ``cfg.steps``; its loss is the whole batch's.

    Args:
        loss: mean loss of a batch; see :mod:`rainlab.training.losses`.
        frames, window, sink: how a sample is drawn (:meth:`rainlab.data.dataset.TrainingSet.batch`).

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
    if world > 1:  # at every step the same parameters are left without a gradient; one message costs less than several
        options = {"static_graph": True, "gradient_as_bucket_view": True, "bucket_cap_mb": MESSAGE}
        loss = DistributedDataParallel(_Step(loss, parameters), **options)
    bf16 = device.type == "cuda" or (cfg.bf16 and optim.native_bf16(device))
    while state.step < cfg.steps:
        state.learning_rate, losses = learning_rate(cfg, state.step, state.begun), []
        for part in range(cfg.accumulate):
            first = (part * world + rank) * share
            samples = range(first, first + share)
            batch = data.batch(cfg.seed, state.step, samples, cfg.batch, frames, window, sink).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = loss(batch, Draw(cfg.seed, state.step, samples)) / cfg.accumulate
            value.backward()
            losses.append(value.detach())
        state.loss = _mean(torch.stack(losses).sum())  # one message a step
        if not math.isfinite(state.loss):
            raise FloatingPointError(f"loss is {state.loss} at step {state.step}: lower the learning rate")
        state.grad_norm = float(nn.utils.clip_grad_norm_(parameters, cfg.clip_norm))
        for group in state.optimizer.param_groups:
            group["lr"] = state.learning_rate * group.get("share", 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(list(state.ema.values()), parameters, 1 - cfg.ema)
        state.step += 1
        yield state


class _Step(nn.Module):
    """A loss as a module, since DistributedDataParallel averages the gradients of a module's forward pass."""

    def __init__(self, loss: Loss, parameters: list[nn.Parameter]):
        super().__init__()
        self.loss, self.trained = loss, nn.ParameterList(parameters)

    def forward(self, batch: Batch, draw: Draw) -> Tensor:
        return self.loss(batch, draw)


def _mean(value: Tensor) -> float:
    """A number's mean over the processes."""
    if dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.item()


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
        ema = {name: p.detach().clone() if cfg.ema else p.detach() for name, p in parameters.items()}
    ema = {name: ema[name] for name in parameters}  # the same order: the update runs over both lists
    return State(parameters, ema, optim.build(parameters, cfg))


def save_state(state: State, path: os.PathLike) -> None:
    """Write everything needed to go on, atomically, as safetensors."""
    tensors = {f"parameter/{k}": v.detach() for k, v in state.parameters.items()}
    for name, parameter in state.parameters.items():
        if state.ema[name].data_ptr() != parameter.data_ptr():  # without an average they are the same
            tensors[f"ema/{name}"] = state.ema[name]
        for key, value in state.optimizer.state.get(parameter, {}).items():
            shared = key.startswith("qmap")  # the table of 8-bit numbers, one for all parameters
            tensors[f"optimizer/{key}/{name}"] = value.clone() if shared else torch.as_tensor(value)
    note = {key: json.dumps(getattr(state, key)) for key in ("step", "begun", "history", "pending")}
    write_tensors(path, tensors, note)


def load_state(state: State, path: os.PathLike) -> None:
    """Fill a fresh ``state`` from :func:`save_state`'s file."""
    with safe_open(path, "pt") as file, torch.no_grad():
        note = file.metadata()
        for name, parameter in state.parameters.items():
            parameter.copy_(file.get_tensor(f"parameter/{name}"))
        slots: dict[str, dict[str, Tensor | int]] = {name: {} for name in state.parameters}
        for key in file.keys():  # noqa: SIM118 — safe_open is no mapping
            kind, _, rest = key.partition("/")
            if kind == "ema":
                state.ema[rest].copy_(file.get_tensor(key))
            if kind == "optimizer":
                slot, _, name = rest.partition("/")
                tensor = file.get_tensor(key)
                if slot != "step":
                    slots[name][slot] = tensor.to(state.parameters[name].device)
                else:  # a counter, and a plain number in the optimiser of 8 bits
                    slots[name][slot] = tensor if tensor.is_floating_point() else tensor.item()
    for name, values in slots.items():
        if values:
            state.optimizer.state[state.parameters[name]] = values
    for key in ("step", "begun", "history", "pending"):
        setattr(state, key, json.loads(note[key]))


def averaged(path: os.PathLike) -> tuple[int, dict[str, Tensor]]:
    """(steps done, averaged weights by name) of a file of :func:`save_state`."""
    with safe_open(path, "pt") as file:
        keys = list(file.keys())
        kind = "ema/" if any(key.startswith("ema/") for key in keys) else "parameter/"
        tensors = {key.removeprefix(kind): file.get_tensor(key) for key in keys if key.startswith(kind)}
        return int(file.metadata()["step"]), tensors


def fit(
    run: runs.Run,
    loss: Loss,
    state: State,
    data: TrainingSet,
    cfg: StageConfig,
    frames: int,
    window: bool,
    sink: int = 0,
    each: Callable[[State], None] | None = None,
    extra: Callable[[], dict[str, Tensor]] | None = None,
) -> list[dict]:
    """Train to the end inside ``run``, resuming from its last checkpoint; returns the history.

    Writes ``state.safetensors`` every ``cfg.save_every`` steps and ``weights.safetensors`` (the averaged weights of
    what was trained) at the end; where those are there already, nothing is trained. A killed run loses at most the
    steps since the last save. ``each`` is called after every step, ``extra`` at the end for tensors to keep beside the
    weights. History rows: step, loss (mean since the row before), grad_norm, learning_rate, seconds.
    """
    if not first_process():  # only that one writes
        for now in train(loss, _resumed(state, run), data, cfg, frames, window, sink):
            if each:
                each(now)
        dist.barrier()
        return state.history
    with run.lock():
        if not finished_history(run):
            _fit(run, loss, _resumed(state, run), data, cfg, frames, window, sink, each=each)
            _keep(run, state, extra() if extra else {})
    if dist.is_initialized():
        dist.barrier()  # no process goes on before the weights are written
    return finished_history(run)


def _resumed(state: State, run: runs.Run) -> State:
    if (path := run.path / CHECKPOINT).exists():
        load_state(state, path)
    return state


def _fit(run: runs.Run, loss: Loss, state: State, data: TrainingSet, cfg: StageConfig, *sampling, each) -> None:
    every = max(1, cfg.steps // 100)
    began = time.perf_counter() - (state.history[-1]["seconds"] if state.history else 0.0)
    with tqdm(total=cfg.steps, initial=state.step, desc=run.name, leave=False) as bar:
        for now in train(loss, state, data, cfg, *sampling):
            state.pending.append(now.loss)
            bar.update()
            if now.step % every == 0 or now.step == cfg.steps:
                mean = sum(state.pending) / len(state.pending)
                row = {"step": now.step, "loss": mean, "grad_norm": now.grad_norm, "learning_rate": now.learning_rate}
                state.history.append(row | {"seconds": round(time.perf_counter() - began, 1)})
                state.pending.clear()
                bar.set_postfix(loss=f"{mean:.4f}")
            if now.step % cfg.save_every == 0 and now.step < cfg.steps:
                save_state(state, run.path / CHECKPOINT)
            if each:
                each(now)


def _keep(run: runs.Run, state: State, extra: dict[str, Tensor]) -> None:
    """Write what a finished training leaves behind; the weights last, because they say that it is finished."""
    write_json(run.path / "history.json", state.history)
    write_tensors(run.path / weights.NAME, state.ema | extra)
    (run.path / CHECKPOINT).unlink(missing_ok=True)


def finished_history(run: runs.Run) -> list[dict] | None:
    """The history of a run whose training has ended, else None."""
    if not (run.path / weights.NAME).exists():
        return None
    return json.loads((run.path / "history.json").read_text("utf-8"))


def join_processes() -> None:
    """Under ``torchrun``: join the process group (gloo on the CPU, nccl on GPUs). Otherwise do nothing."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))


def first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """For work on the CPU that the other processes wait for: this one may use their threads meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * (dist.get_world_size() if dist.is_initialized() else 1))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
