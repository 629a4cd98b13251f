"""Weights on disk: safetensors only. A whole model with its preset in one file, and parameters by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rainlab.config import make_preset
from rainlab.files import atomic_path
from rainlab.method.rain import RAIN


def write_tensors(path: str | os.PathLike, tensors: dict[str, Tensor], note: dict[str, str] | None = None) -> None:
    """Tensors of any device by name, with a ``note`` of strings in the file's header; atomically."""
    with atomic_path(path) as temporary:
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, temporary, note)


def read_tensors(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, note) of a safetensors file. ValueError, naming it, if it is truncated or another kind."""
    try:
        with safe_open(path, "pt") as file:
            note = file.metadata() or {}
        return load_file(path), note
    except SafetensorError as error:
        name = Path(path).name
        raise ValueError(f"{name}: not a complete safetensors file ({error}); copy or download it again") from error


@torch.no_grad()
def fill(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into parameters of the same names. ``where``: what the error calls the tensors.

    Raises:
        ValueError: a parameter is not among them, or of another shape.
    """
    got = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key, parameter in parameters.items():
        if got.get(key) != tuple(parameter.shape):
            fix = "use the weights of the same stage and preset"
            raise ValueError(f"{where}: {key}: got shape {got.get(key)}, expected {tuple(parameter.shape)}; {fix}")
    for key, parameter in parameters.items():
        parameter.copy_(tensors[key])


def save_model(model: RAIN, path: str | os.PathLike) -> None:
    """Write a whole model, with the preset and geometry needed to build it again, to one file.

    (A published autoencoder or CLIP tower is built from its own folder first, and has to be there when it is loaded.)
    """
    if model.preset is None:
        raise ValueError("model: got one without a preset, expected one made by RAIN.build or loaded")
    cfg = model.denoising_unet.cfg
    note = {"preset": json.dumps(model.preset.dict()), "motion": str(int(cfg.motion)),
            "guidance": str(int(bool(cfg.guidance_dim)))}  # fmt: skip
    write_tensors(path, model.state_dict(), note)


def load_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> RAIN:
    """Read what :func:`save_model` wrote, in evaluation mode.

    Raises:
        ValueError: the file is no rainlab model, is truncated, or its tensors do not fit its configuration.
    """
    name = Path(path).name
    tensors, note = read_tensors(path)
    if "preset" not in note:
        raise ValueError(f"{name}: got a file without a preset, expected one written by checkpoint.save_model")
    try:
        saved = json.loads(note["preset"])
        parts = {part: values for part, values in saved.items() if part != "name"}
        overrides = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
        preset, motion, guidance = make_preset(saved["name"], overrides), note["motion"], note["guidance"]
        model = RAIN.build(preset, motion=motion == "1", guidance=guidance == "1")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError, RuntimeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name}: got a configuration that no model can be built from ({why}); copy it again"
        ) from error
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{name}: its tensors do not fit its configuration: {error}") from error
    return model.to(device).eval()
