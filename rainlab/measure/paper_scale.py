"""The paper's model as a whole, once, on a processor: `python -m rainlab.measure.paper_scale`.

Files with all the published names and shapes and random content are written, loaded as the published ones are, and a
stream of 512×512 pixels runs until its first group has come out: 24 GB of disk and memory and a quarter of an hour. So
the path to the published weights has been walked to its end, which says nothing about pictures.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rainlab import runs
from rainlab.config import PAPER_TASKS, Preset, identity, make_preset, override
from rainlab.files import write_json
from rainlab.method import pretrained
from rainlab.method.guider import PoseGuider
from rainlab.method.stream import Stream
from rainlab.method.unet import UNet
from rainlab.provenance import peak_bytes

VERSION = 1
SIZE = 512
KL = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
"""Geometry of the published autoencoder, AutoencoderKL of Stable Diffusion."""
TYPES = {name: [f"{way}{kind}2D"] * 4 for name, way, kind in
         (("down_block_types", "Down", "EncoderBlock"), ("up_block_types", "Up", "DecoderBlock"))}  # fmt: skip


def write_stand_ins(
    folder: Path, preset: Preset, kl: dict = KL, clip: dict = pretrained.CLIP_CONFIG, dtype: torch.dtype = torch.float16
) -> Preset:
    """Write RAIN v0.1, autoencoder and CLIP tower with random content; returns the preset that looks for them there.

    kl, clip: geometries of the latter two.
    """
    from diffusers import AutoencoderKL
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    cfg = preset.model
    with torch.device("meta"):
        networks = {
            "denoising_unet": UNet(cfg.unet(4, motion=True, guidance=True)),
            "reference_unet": UNet(cfg.unet(4, out=False)),
            "pose_guider": PoseGuider(cfg.channels[0], cfg.guider_widths),
        }
    for part, network in networks.items():
        path = folder / "rain-v0.1" / pretrained.RAIN_FILES[part]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: _random(tensor, dtype) for name, tensor in network.state_dict().items()}, path)
    levels = {name: kinds[: len(kl["block_out_channels"])] for name, kinds in TYPES.items()}
    _empty(AutoencoderKL, **levels, **kl).to(dtype).save_pretrained(folder / "sd-vae-ft-mse")
    tower = folder / "sd-image-variations-diffusers" / "image_encoder"
    _empty(CLIPVisionModelWithProjection, CLIPVisionConfig(**clip)).to(dtype).save_pretrained(tower)
    write_json(tower / "config.json", json.loads((tower / "config.json").read_text("utf-8")) | {"dtype": "float32"})
    paths = {"autoencoder.path": str(folder / "sd-vae-ft-mse"), "model.context_path": str(tower)}
    return override(preset, paths)


def _empty(kind: type[nn.Module], *given, **geometry) -> nn.Module:
    with torch.device("meta"):
        model = kind(*given, **geometry)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.copy_(_random(tensor, torch.float32)) if tensor.is_floating_point() else tensor.zero_()
    return model


def _random(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values as networks begin with: signals neither vanish nor explode."""
    if tensor.ndim < 2:
        return torch.full(tensor.shape, 0.5, dtype=dtype)
    return torch.randn(tensor.shape, dtype=dtype) / tensor[0].numel() ** 0.5


def walk(preset: Preset | None = None, size: int = SIZE, **stand_ins) -> runs.Run:
    """The run "paper_scale" of a geometry; a finished one is returned as it is. ``stand_ins``: of write_stand_ins.

    Metrics: ``write_seconds``, ``load_seconds``, ``reference_seconds``, ``tick_seconds`` (label ``tick``: the window
    holds that many groups, the last one gives frames), ``file_bytes``, ``peak_bytes`` of the process until then.
    """
    preset = preset or make_preset("paper", PAPER_TASKS["face"])
    geometry = {"model": identity(preset.model), "stream": identity(preset.stream), "size": size}
    run = runs.open_run("paper_scale", {"preset": preset.name, "threads": torch.get_num_threads()} | geometry, VERSION)
    if run.finished:
        return run
    with tempfile.TemporaryDirectory() as name:
        seconds = _Seconds(run)
        found = write_stand_ins(Path(name), preset, **stand_ins)
        run.record("file_bytes", float(sum(p.stat().st_size for p in Path(name).rglob("*") if p.is_file())))
        seconds("write_seconds")
        model = pretrained.load_rain(Path(name) / "rain-v0.1", found)
        seconds("load_seconds")
        stream, rng = Stream(model), np.random.default_rng(0)
        stream.reference(rng.integers(0, 256, (size, size, 3), np.uint8))
        seconds("reference_seconds")
        frames: list[np.ndarray] = []
        for tick in range(1, stream.groups + 1):
            frames += stream.push(list(rng.integers(0, 256, (stream.group_size, size, size, 3), np.uint8)))
            seconds("tick_seconds", tick=tick)
    if [frame.shape for frame in frames] != [(size, size, 3)] * stream.group_size:
        raise RuntimeError(f"got {len(frames)} frames, expected a group of {stream.group_size}")
    return run.finish()


class _Seconds:
    """Records the time since the call before, and the most memory held so far."""

    def __init__(self, run: runs.Run):
        self.run, self.since = run, time.perf_counter()

    def __call__(self, metric: str, **labels: float) -> None:
        now = time.perf_counter()
        self.run.record(metric, now - self.since, **labels)
        peak = peak_bytes()
        self.run.record("peak_bytes", float(peak), after=metric, **labels)
        print(f"{metric:20}{now - self.since:8.1f} s{peak / 1e9:8.1f} GB", flush=True)
        self.since = now


if __name__ == "__main__":
    print(walk().id)
