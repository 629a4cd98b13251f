"""Which parameters each stage trains (sections 4.2 and 4.3)."""

from __future__ import annotations

from rainlab.method.context import SmallContext
from rainlab.method.rain import RAIN
from rainlab.method.unet import UNet

STAGES = ("autoencoder", "stage1", "stage2", "distill2d", "distill3d")


def check_stage(stage: str) -> None:
    """Raise ValueError for a name that is not in STAGES."""
    if stage not in STAGES:
        raise ValueError(f"stage: got {stage!r}, expected one of {STAGES}")


def trainable(model: RAIN, stage: str) -> list[str]:
    """Names of the parameters of ``model`` that ``stage`` trains.

    - stage1: reference network (without what is dead), guider, context encoder if ours, denoising network;
    - stage2: motion modules only;
    - distill2d, distill3d: the denoising network; the paper does not say which part, LCM trains all of it.
    """
    check_stage(stage)
    names = [n for n, _ in model.named_parameters()]
    if stage == "autoencoder":
        return [n for n in names if n.startswith("autoencoder.")]
    if stage == "stage2":
        return [n for n in names if n.startswith("denoising_unet.") and ".motion_modules." in n]
    if stage in ("distill2d", "distill3d"):
        return [n for n in names if n.startswith("denoising_unet.")]
    reads = isinstance(model.reference_unet, UNet)  # else another design has something in its place
    dead = {f"reference_unet.{n}" for n in dead_parameters(model.reference_unet)} if reads else set()
    kept = ["reference_unet.", "denoising_unet.", "pose_guider."]
    if isinstance(model.context_encoder, SmallContext):  # a CLIP tower stays as it is
        kept.append("context_encoder.")
    return [n for n in names if n.startswith(tuple(kept)) and n not in dead]


def dead_parameters(reference_unet: UNet) -> list[str]:
    """Parameters of the reference network behind its last tap (20): they never influence the bank."""
    last = len(reference_unet.cfg.channels) - 1
    prefix = f"up_blocks.{last}.attentions.2."
    alive = tuple(prefix + part for part in ("norm.", "proj_in.", "transformer_blocks.0.norm1."))
    return [n for n, _ in reference_unet.named_parameters() if n.startswith(prefix) and not n.startswith(alive)]
