"""The loss of stages 1 and 2 on held-out clips: what motion modules gain before any sampling."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from rainlab.config import Preset
from rainlab.data import dataset
from rainlab.training import losses, stages


def motion_gain(preset: Preset, repeats: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Held-out v-loss per clip on staircase time steps, with and without the motion modules of stage 2, ``(n,)`` each.

    Same clips, noise and time steps for both; nothing is dropped.
    """
    clips = stages.Training(preset, "stage2").data(split="test")
    means = []
    for stage in ("stage2", "stage1"):
        model = stages.trained(preset, stage)
        per_sample = losses.sample_losses(model, preset, losses.staircase_times, dropout=0.0)
        means.append(held_out_loss(per_sample, clips, preset.stream.window, True, repeats=repeats).numpy())
    return means[0], means[1]


@torch.no_grad()
def held_out_loss(
    per_sample: losses.Loss, data: dataset.TrainingSet, frames: int, window: bool, seed: int = 0, repeats: int = 4
) -> torch.Tensor:
    """Held-out loss per clip, ``(n,)``: the mean over ``repeats`` fixed draws, the same for every model compared."""
    total = torch.zeros(data.count)
    parts = [(repeat, first) for repeat in range(repeats) for first in range(0, data.count, 4)]
    for repeat, first in tqdm(parts, "validation", leave=False):
        samples = range(first, min(first + 4, data.count))
        batch = data.batch(seed, repeat, samples, data.count, frames, window)
        clips = [data.clip_at(seed, repeat, sample, data.count) for sample in samples]
        total[clips] += per_sample(batch, dataset.Draw(seed, repeat, samples))
    return total / repeats
