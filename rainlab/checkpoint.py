"""Weights: what a finished stage left behind, and whole models in one file. Safetensors only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rainlab import runs
from rainlab.config import preset as make_preset
from rainlab.model import RAIN

SHIPPED = Path(__file__).parent / "weights"  # fp16 weights of final runs, part of the package
SUMS = "SHA256SUMS"  # their checksums, in the format of `sha256sum --check`


def weights_file(run_id: str) -> Path:
    """Where the weights of a training run lie: in ``runs/``, or shipped with the package.

    Raises:
        FileNotFoundError: neither, naming the command that makes them.
    """
    for path in (runs.folder() / run_id / "weights.safetensors", SHIPPED / f"{run_id}.safetensors"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"weights of {run_id}: not in {runs.folder().name}/ and not shipped; train them with `make tables`,"
        " those of another preset than tiny with `make tables PRESET=small`"
    )


def load_weights(run_id: str) -> dict[str, Tensor]:
    """fp32 tensors by full parameter name, as far as that run trained them.

    Raises:
        FileNotFoundError: as in :func:`weights_file`. ValueError: the file is damaged, naming it and what to do.
    """
    path = weights_file(run_id)
    if path.parent == SHIPPED and (got := digest(path)) != (expected := _sums().get(path.name)):
        raise ValueError(f"{path.name}: got sha256 {got}, expected {expected} ({SUMS}); get it again: git checkout")
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        fix = "delete its run and call `make tables`"
        raise ValueError(f"{path.name} of {run_id}: not a complete safetensors file ({error}); {fix}") from error


def ship(run_id: str) -> Path:
    """Copy a run's weights into the package as fp16, and note their checksum; returns the file."""
    path = SHIPPED / f"{run_id}.safetensors"
    write(load_weights(run_id), path, {"run": run_id})
    sums = {name: sha for name, sha in _sums().items() if (SHIPPED / name).exists()} | {path.name: digest(path)}
    with runs.atomic_path(SHIPPED / SUMS) as temporary:
        temporary.write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(sums.items())), "utf-8")
    return path


def write(tensors: Mapping[str, Tensor], path: str | os.PathLike, note: dict[str, str]) -> None:
    """Write tensors as fp16, atomically; ``note`` becomes the file's metadata."""
    with runs.atomic_path(path) as temporary:
        save_file({name: tensor.half().contiguous().cpu() for name, tensor in tensors.items()}, temporary, note)


@torch.no_grad()
def fill(parameters: Mapping[str, Tensor], path: str | os.PathLike) -> dict[str, str]:
    """Copy a file's tensors into parameters of the same names; returns the file's metadata.

    Raises:
        ValueError: the file is damaged, lacks a parameter, or has one of another shape.
    """
    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            tensors, note = load_file(path), file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{name}: not a complete safetensors file ({error}); copy or make it again") from error
    got = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for key, parameter in parameters.items():
        if got.get(key) != tuple(parameter.shape):
            fix = "use the weights of the same stage and preset"
            raise ValueError(f"{name}: {key}: got shape {got.get(key)}, expected {tuple(parameter.shape)}; {fix}")
    for key, parameter in parameters.items():
        parameter.copy_(tensors[key])
    return note


def _sums() -> dict[str, str]:
    """File name -> sha256 of what is shipped."""
    file = SHIPPED / SUMS
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(model: RAIN, path: str | os.PathLike) -> None:
    """Write a whole model, with the preset and geometry needed to build it again, to one file."""
    if model.preset is None:
        raise ValueError("model: got one without a preset, expected one made by RAIN.build or stages.load_model")
    cfg = model.denoising_unet.cfg
    note = {"preset": json.dumps(model.preset.dict()), "motion": str(int(cfg.motion)),
            "guidance": str(int(bool(cfg.guidance_dim)))}  # fmt: skip
    with runs.atomic_path(path) as temporary:
        save_file({k: v.contiguous().cpu() for k, v in model.state_dict().items()}, temporary, note)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> RAIN:
    """Read what :func:`save` wrote.

    Raises:
        ValueError: the file is no rainlab model, is truncated, or its tensors do not fit its configuration.
    """
    name = Path(path).name
    try:
        with safe_open(path, "pt") as file:
            note = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{name}: not a complete safetensors file ({error}); copy or download it again") from error
    if "preset" not in note:
        raise ValueError(f"{name}: got a file without a preset, expected one written by rainlab.checkpoint.save")
    saved = json.loads(note["preset"])
    parts = {part: values for part, values in saved.items() if part != "name"}
    overrides = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    model = RAIN.build(
        make_preset(saved["name"], overrides), motion=note["motion"] == "1", guidance=note["guidance"] == "1"
    )
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ValueError(f"{name}: its tensors do not fit its configuration: {error}") from error
    return model.to(device).eval()
