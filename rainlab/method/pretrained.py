"""Published weights, read as they were published: RAIN v0.1, Stable Diffusion 1.5, AnimateDiff v2, Moore-AnimateAnyone.

The networks have the published key names, so nothing is renamed. Files are mapped from disk and become the parameters
themselves; nothing in them is executed; what does not fit is refused by name before anything is changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rainlab.config import Preset
from rainlab.files import digest, root
from rainlab.method import vae
from rainlab.method.checkpoint import read_tensors, write_tensors
from rainlab.method.context import build_context
from rainlab.method.guider import PoseGuider
from rainlab.method.rain import RAIN
from rainlab.method.unet import UNet

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
RAIN_FILES = {
    "reference_unet": "reference_unet.pth",
    "denoising_unet": "motion_unet.pth",
    "pose_guider": "pose_guider.pth",
}
MOORE_FILES = {"reference_unet": "reference_unet.pth", "denoising_unet": "denoising_unet.pth",
               "motion": "motion_module.pth", "pose_guider": "pose_guider.pth"}  # fmt: skip
OUTPUT = ("conv_norm_out.weight", "conv_norm_out.bias", "conv_out.weight", "conv_out.bias")
OMEGA = "time_embedding.cond_proj.weight"


@dataclass(frozen=True)
class Source:
    """Where a file is published: a repository of huggingface.co at a commit, its name there, size and checksum.

    A file without a checksum that is known for certain is not fetched: it has to be put in its place by hand.
    """

    repo: str
    revision: str = ""
    file: str = ""
    size: int = 0
    sha256: str = ""


_SD, _SD_AT = "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
_VAE, _VAE_AT = "stabilityai/sd-vae-ft-mse", "31f26fdeee1355a5c34592e401dd41e45d25a493"
_CLIP, _CLIP_AT = "lambdalabs/sd-image-variations-diffusers", "42bc0ee1726b141d49f519a6ea02ccfbf073db2e"
_POSE, _POSE_AT = "yzd-v/DWPose", "1a7144101628d69ee7a3768d1ee3a094070dc388"
_RAIN, _MOORE = "Pscgylotti/RAIN-v0.1", "patrolli/AnimateAnyone"
SOURCES = {
    "stable-diffusion-v1-5/unet/diffusion_pytorch_model.safetensors": Source(
        _SD, _SD_AT, "unet/diffusion_pytorch_model.safetensors", 3_438_167_540,
        "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"),
    "sd-vae-ft-mse/config.json": Source(
        _VAE, _VAE_AT, "config.json", 547, "92d3dfb746fca211a2c9e019e285f8597412211728dce3c5bcf4eda0f2d62e7e"),
    "sd-vae-ft-mse/diffusion_pytorch_model.safetensors": Source(
        _VAE, _VAE_AT, "diffusion_pytorch_model.safetensors", 334_643_276,
        "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
    "sd-image-variations-diffusers/image_encoder/model.bin": Source(
        _CLIP, _CLIP_AT, "image_encoder/pytorch_model.bin", 1_215_993_967,
        "89d2aa29b5fdf64f3ad4f45fb4227ea98bc45156bbae673b85be1af7783dbabb"),
    "animatediff/mm_sd_v15_v2.ckpt": Source(
        "guoyww/animatediff", "fdfe36afa161e51b3e9c24022b0e368d59e7345e", "mm_sd_v15_v2.ckpt", 1_817_888_431,
        "69ed0f5fef82b110aca51bcab73b21104242bc65d6ab4b8b2a2a94d31cad1bf0"),
    "dwpose/yolox_l.onnx": Source(
        _POSE, _POSE_AT, "yolox_l.onnx", 216_746_733,
        "7860ae79de6c89a3c1eb72ae9a2756c0ccfbe04b7791bb5880afabd97855a411"),
    "dwpose/dw-ll_ucoco_384.onnx": Source(
        _POSE, _POSE_AT, "dw-ll_ucoco_384.onnx", 134_399_116,
        "724f4ff2439ed61afb86fb8a1951ec39c6220682803b4a8bd4f598cd913b1843"),
    **{f"rain-v0.1/{file}": Source(_RAIN) for file in RAIN_FILES.values()},
    **{f"moore-animate-anyone/{file}": Source(_MOORE) for file in MOORE_FILES.values()},
    "taesdv/taesdv.pth": Source("github.com/madebyollin/taesdv"),
}  # fmt: skip
"""File under :func:`folder` -> where it is from. The checksums are those that several independent users of the files
have published; for the last three sets none is known."""
CLIP_CONFIG = {
    "architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", "hidden_size": 1024,
    "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224,
    "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-05,
}  # fmt: skip
"""Geometry of the CLIP tower, ViT-L/14, for where its own config.json is missing."""


def folder() -> Path:
    """``weights/`` in the project root."""
    return root() / "weights"


def missing(names: Collection[str] = tuple(SOURCES)) -> list[str]:
    """Which files of SOURCES are not under :func:`folder`, as published or converted to safetensors."""
    return [name for name in names if not _there(folder() / name)]


def _there(path: Path) -> Path | None:
    """The converted file if there is one, else the published one, else None."""
    safer = path.with_suffix(".safetensors") if path.suffix in PICKLED else path
    return next((one for one in (safer, path) if one.is_file()), None)


def mapped(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name of a published file, mapped from disk: they take memory when they are read.

    ``path``: safetensors, or a pickled file, in place of which one of the same name ending in .safetensors is taken if
    it is there. Of a pickled file only tensors are read (``weights_only``). "state_dict" around them and "module."
    before their names are taken off.

    Raises:
        FileNotFoundError: no such file, naming where it is from. ValueError: damaged, or more than tensors in it.
    """
    path = Path(path)
    if not (file := _there(path)):
        source = next((s for name, s in SOURCES.items() if path.as_posix().endswith(name)), None)
        origin = f" It is published as {source.repo}." if source else ""
        raise FileNotFoundError(f"weights: {path} is not there.{origin} README, 'Paper scale', says how to get it")
    if file.suffix == ".safetensors":
        return read_tensors(file)[0]
    try:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch had zip files, which alone can be mapped
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip, pickle and torch, whose own readers do not say which
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        expected = (
            "a whole file of tensors alone, expected nothing else to run; get it again from where it is published"
        )
        raise ValueError(
            f"{file.name}: got a file that can't be read as weights ({reason}), expected {expected}"
        ) from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{file.name}: got {type(held).__name__} of other things, expected tensors by name")
    return {str(name).removeprefix("module."): tensor for name, tensor in held.items()}


def place(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    name: str,
    wanted: Collection[str] | None = None,
    spare: Collection[str] = (),
    dtype: torch.dtype | None = None,
) -> None:
    """Make tensors the parameters and buffers of a network, all or none.

    A network on the device "meta" gets the tensors themselves (mapped from disk, and copied only where ``dtype`` says
    another type than they have); any other gets their values.

    Args:
        name: of the file, for errors. wanted: names that are to be filled (all). spare: names that the file may hold
            besides.

    Raises:
        ValueError: names that are missing, unknown ones, or other shapes than the network's.
    """
    own = dict(network.named_parameters()) | dict(network.named_buffers())
    own = {key: own[key] for key in network.state_dict()}
    wanted = set(own if wanted is None else wanted)
    faults = [f"{key}: missing" for key in sorted(wanted - tensors.keys())]
    faults += [f"{key}: unknown" for key in sorted(tensors.keys() - wanted - {*spare})]
    for key in sorted(wanted & tensors.keys()):
        got, expected = tuple(tensors[key].shape), tuple(own[key].shape)
        if got != expected:
            faults.append(f"{key}: got shape {got}, expected {expected}")
    if faults:
        more = f" … ({len(faults)} in all)" if len(faults) > 3 else ""
        kind = type(network).__name__
        raise ValueError(f"{name}: these are not the weights of this {kind}: {'; '.join(faults[:3])}{more}")
    for key in wanted:
        if own[key].device.type != "meta":
            with torch.no_grad():
                own[key].copy_(tensors[key])
            continue
        owner, _, last = key.rpartition(".")
        tensor, module = tensors[key].to(dtype or tensors[key].dtype), network.get_submodule(owner)
        if last in module._buffers:
            module._buffers[last] = tensor
        else:
            module._parameters[last] = nn.Parameter(tensor, requires_grad=False)


def load_rain(where: str | Path, preset: Preset, dtype: torch.dtype = torch.float32) -> RAIN:
    """The published RAIN for streaming: a folder with RAIN_FILES, autoencoder and CLIP tower of the preset.

    Files of another type than ``dtype`` are converted tensor by tensor. Raises as :func:`mapped` and :func:`place`,
    and FileNotFoundError for the preset's autoencoder or CLIP tower.
    """
    cfg, autoencoder, context = preset.model, vae.build(preset.autoencoder), build_context(preset.model)
    channels = autoencoder.latent_channels
    with torch.device("meta"):
        reference = UNet(cfg.unet(channels, out=False))
        denoiser = UNet(cfg.unet(channels, motion=True, guidance=True))
        guider = PoseGuider(cfg.channels[0], cfg.guider_widths)
    for network, file in zip((reference, denoiser, guider), RAIN_FILES.values(), strict=True):
        place(network, mapped(Path(where) / file), file, dtype=dtype)
    model = RAIN(reference, denoiser, guider, context.to(dtype), autoencoder.to(dtype), preset)
    return model.eval().requires_grad_(False)


def start(model: RAIN, spatial: str | Path = "", motion: str | Path = "", guider: str | Path = "") -> RAIN:
    """Give fresh networks their published first values; returns the model.

    Args:
        spatial: a file of the UNet of Stable Diffusion 1.5 or sd-image-variations, for both networks, or a folder with
            MOORE_FILES (then without the next two). motion: AnimateDiff v2. guider: of Moore-AnimateAnyone.

    Raises as :func:`mapped` and :func:`place`.
    """
    files = {"reference_unet": spatial, "denoising_unet": spatial, "motion": motion, "pose_guider": guider}
    if spatial and Path(spatial).is_dir():
        files = {part: Path(spatial) / file for part, file in MOORE_FILES.items()}
    for part, file in files.items():
        if not file or (part == "motion" and not model.denoising_unet.cfg.motion):
            continue
        tensors, name = mapped(file), Path(file).name
        network = model.denoising_unet if part == "motion" else getattr(model, part)
        names = network.state_dict().keys()
        moving = {key for key in names if ".motion_modules." in key}
        if part == "motion":
            place(network, tensors, name, moving)
        elif part == "denoising_unet":
            place(network, tensors, name, names - moving - {OMEGA})
        else:
            place(network, tensors, name, spare=OUTPUT if part == "reference_unet" else ())
    return model


def convert(path: str | Path) -> Path:
    """Write a pickled file as safetensors beside it and delete it; returns the new file. Errors of :func:`mapped`."""
    path = Path(path)
    if path.suffix not in PICKLED:
        raise ValueError(f"{path.name}: got {path.suffix!r}, expected one of {', '.join(PICKLED)}")
    new = path.with_suffix(".safetensors")
    tensors = {name: tensor.clone() for name, tensor in mapped(path).items()}  # no two may share memory
    write_tensors(new, tensors, {"format": "pt", "source": path.name})
    path.unlink()
    return new


def fetch(name: str, source: Source | None = None) -> Path:
    """Get a file of SOURCES at its commit, check it, convert what is pickled; returns its path under :func:`folder`.

    A download that was interrupted goes on. What is there already is left as it is.

    Raises:
        ValueError: no checksum is known (put it there by hand), or the file has another one (it is deleted).
        ConnectionError: it could not be fetched.
    """
    source, target = source or SOURCES[name], folder() / name
    if there := _there(target):
        return there
    if not source.sha256:
        raise ValueError(f"{name}: no checksum is known, so it is not fetched; get it from {source.repo} by hand")
    from huggingface_hub import hf_hub_download

    kept = target.parent / ".fetched"
    try:
        got = Path(hf_hub_download(source.repo, source.file, revision=source.revision, local_dir=kept))
    except OSError as error:
        place = f"{source.file} of huggingface.co/{source.repo} at {source.revision[:7]}"
        raise ConnectionError(f"{name}: {place} could not be fetched; try again where there is a network") from error
    if (got.stat().st_size, sha := digest(got)) != (source.size, source.sha256):
        size = got.stat().st_size
        got.unlink()
        raise ValueError(
            f"{name}: got {size} bytes with sha256 {sha}, expected {source.size} and {source.sha256}; try again, and "
            "if it comes out the same, do not use it"
        )
    got.replace(target)
    shutil.rmtree(kept)
    return convert(target) if target.suffix in PICKLED else target


def clip_config(tower: str | Path) -> None:
    """Write CLIP_CONFIG beside a CLIP tower's weights unless it has a config.json."""
    file = Path(tower) / "config.json"
    if not file.exists():
        file.write_text(json.dumps(CLIP_CONFIG, indent=1) + "\n", "utf-8")
