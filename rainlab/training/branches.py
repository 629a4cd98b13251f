"""What an unfinished training has reached, as a file of weights that a new one can start from (``--warm``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rainlab.training import loop
from rainlab.training.weights import write_half

Training = Any  # a rainlab.training.stages.Training: stages imports this module for its command line


def export(training: Training, path: Path) -> int:
    """Write the averaged weights of the newest checkpoint of a training as fp16; returns its step.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    step, ema = loop.averaged(_checkpoint(training))
    write_half(path, ema, {"stage": training.stage, "step": str(step), "preset": training.preset.name})
    return step


def finish(training: Training, steps: int, path: Path, device: str | torch.device = "cpu") -> list[dict]:
    """Train ``steps`` more from the newest checkpoint, the rate falling to zero, and write that as :func:`export` does.

    The training itself is left as it is and can go on: its rate stays high, which learns faster and ends worse. All
    that was learned is written, whatever share of it ``blend`` would keep at the training's own end.
    Returns the branch's history.
    """
    loop.join_processes()
    checkpoint = _checkpoint(training)
    done, _ = loop.averaged(checkpoint)
    average = min(training.loop.ema, 1 - 10 / steps)  # an average no longer than a tenth of the branch
    cfg = replace(training.loop, steps=done + steps, decay=steps / (done + steps), ema=average)
    _, loss, state, clips = training.begin(cfg, device)
    loop.load_state(state, checkpoint)
    history = []
    for now in loop.train(loss, state, clips, cfg, *training.sampling):
        history.append({"step": now.step, "loss": now.loss, "learning_rate": now.learning_rate})
    if loop.first_process():
        note = {"stage": training.stage, "step": str(state.step), "preset": training.preset.name}
        write_half(path, state.ema, note | {"decayed": str(steps)})
    return history


def _checkpoint(training: Training) -> Path:
    if (file := training.checkpoint).exists():
        return file
    raise FileNotFoundError(
        f"{training.stage} of preset {training.preset.name}: no {file.name} in its run; train it first"
    )
