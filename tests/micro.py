"""A preset small enough for unit tests: the code path of all presets, other numbers."""

import numpy as np
import torch
from safetensors.torch import save_file

from rainlab import runs
from rainlab.config import Preset, make_preset
from rainlab.data.dataset import Batch, TrainingSet
from rainlab.method.rain import RAIN
from rainlab.training import stages
from rainlab.training.parameters import trainable

__all__ = ["RAIN", "Batch", "TrainingSet", "micro", "model", "pictures", "training_set", "write_weights"]

NUMBERS = {
    "data.clips": 4,
    "data.frames": 10,
    "data.height": 32,
    "data.width": 24,
    "data.test_clips": 2,
    "data.margin": 2,
    "data.test_frames": 10,
    "data.test_gap": 2,
    "autoencoder.factor": 4,
    "autoencoder.latent_channels": 4,
    "autoencoder.width": 8,
    "model.channels": (32, 32),
    "model.cross_attention_dim": 16,
    "model.guidance_dim": 16,
    "model.guider_widths": (8, 8, 16),
    "stream.window": 8,
} | {
    f"{stage}.{key}": value
    for stage in ("train_autoencoder", "stage1", "stage2", "distill2d", "distill3d")
    for key, value in {"steps": 4, "batch": 2, "save_every": 2, "warmup": 2}.items()
}


def micro(**overrides) -> Preset:
    return make_preset("tiny", NUMBERS | {key.replace("__", "."): value for key, value in overrides.items()})


def model(config: Preset | None = None, motion=True, guidance=True, seed=0) -> RAIN:
    """Random networks; the zero-initialised outputs are randomised so that nothing hides behind a zero."""
    torch.manual_seed(seed)
    built = RAIN.build(config or micro(), motion=motion, guidance=guidance)
    for name, parameter in built.named_parameters():
        if "temporal_transformer.proj_out" in name or name.startswith("pose_guider.conv_out"):
            torch.nn.init.normal_(parameter, std=0.1)
    return built.eval().requires_grad_(False)


def pictures(*leading: int, seed=0, size=(32, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*leading, *size, 3), dtype=np.uint8)


def training_set(config: Preset, seed=0) -> TrainingSet:
    """Noise pictures and latents: the loop does not care what it trains on."""
    cfg = config.data
    frames, condition = (pictures(cfg.clips, cfg.frames, seed=s, size=cfg.size) for s in (seed, seed + 1))
    clips = TrainingSet([None] * cfg.clips, (frames, condition), cfg.margin)
    shape = (cfg.clips, cfg.frames, config.autoencoder.latent_channels, cfg.height // 4, cfg.width // 4)
    clips.latents = np.random.default_rng(seed + 2).standard_normal(shape).astype(np.float16)
    return clips


def write_weights(config: Preset, only=stages.STAGES, seed=0) -> None:
    """Random weights in place of finished trainings."""
    for stage in only:
        folder = runs.folder() / stages.run_id(config, stage)
        folder.mkdir(parents=True, exist_ok=True)
        built = model(config, motion=stage in stages.WINDOWED, guidance=stage.startswith("distill"), seed=seed)
        state = built.state_dict()
        save_file({name: state[name].contiguous() for name in trainable(built, stage)}, folder / "weights.safetensors")
