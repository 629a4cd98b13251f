"""Goldens of the published code in our layout (b, f, c, h, w), and the tiny networks behind them."""

import json
from functools import cache
from pathlib import Path

from golden.fill_rule import fill
from safetensors.torch import load_file

from rainlab.config import UNetConfig
from rainlab.method.guider import PoseGuider
from rainlab.method.unet import UNet

FOLDER = Path(__file__).parent / "golden"
# How far a processor's rounding may lead from the one the goldens were computed on: largest absolute difference.
# The guidance embedding's bound follows from its argument: the spacing of float32 at ω·1000 = 7500 is 4.9e-4.
BOUNDS = {
    "a_reference": 2e-5, "b_denoise": 6e-5, "c_pose": 2e-6, "d_scheduler": 2e-6, "e_guidance": 5e-4, "f_taesdv": 1e-5,
    "g2_pipeline_drain": 1e-4, "h_blocks": 2e-5,
}  # fmt: skip
TINY = UNetConfig(channels=(32, 64, 96, 96), cross_attention_dim=48, norm_groups=8, heads=8)
FRAMES_THIRD = {  # stored (b, c, f, h, w)
    "sample", "pose_fea", "v", "v_nopose", "latents", "model_output", "noise", "prev_sample", "denoised",
    "prev_sample8", "fea32_first4", "fea320_crop",
}  # fmt: skip


@cache
def golden(name: str) -> dict:
    """Tensors of one golden file; what is stored (b, c, f, h, w) comes as (b, f, c, h, w)."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    if name == "f_taesdv":  # the only one stored (b, f, c, h, w)
        return tensors

    def ours(key, tensor):
        stored = key.split("/")[-1] in FRAMES_THIRD or key.startswith("noise/") or name == "h_blocks"
        return tensor.transpose(1, 2) if tensor.ndim == 5 and stored else tensor

    return {key: ours(key, tensor) for key, tensor in tensors.items()}


@cache
def keys(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def filled(module, prefix: str):
    """The module with the goldens' weights; fails if they are not the ones the published code was run with."""
    digest, known = fill(module, prefix), keys("weight_sha256")
    assert digest == known.get(prefix, digest), f"weights of {prefix} differ from the published model's"
    return module.eval().requires_grad_(False)


@cache
def reference_unet() -> UNet:
    return filled(UNet(UNetConfig(**{**vars(TINY), "out": False})), "reference_unet")


@cache
def denoising_unet() -> UNet:
    return filled(UNet(UNetConfig(**{**vars(TINY), "motion": True, "guidance_dim": 512})), "denoising_unet")


@cache
def guider() -> PoseGuider:
    return filled(PoseGuider(32), "pose_guider_32")


def worst(a, b) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return (a - b).abs().max().item()
