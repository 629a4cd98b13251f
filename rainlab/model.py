"""The five networks of RAIN as one module, and which parameters each training stage may touch."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab import schedule, vae
from rainlab.config import ModelConfig, Preset
from rainlab.guider import PoseGuider
from rainlab.unet import UNet

STAGES = ("autoencoder", "stage1", "stage2", "distill2d", "distill3d")


class SmallContext(nn.Module):
    """A small trained encoder of the reference picture: ``(b, 3, H, W)`` in [-1, 1] -> one token ``(b, 1, d)``.

    Stands in for the CLIP vision tower where there are no published weights.
    """

    def __init__(self, dim: int):
        super().__init__()
        widths = (3, 32, 64, 128)
        convs = []
        for narrow, wide in zip(widths[:-1], widths[1:], strict=True):
            convs += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.SiLU()]
        self.body, self.out = nn.Sequential(*convs), nn.Linear(widths[-1], dim)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(self.body(pictures).mean((2, 3)))[:, None]


class ClipContext(nn.Module):
    """CLIPVisionModelWithProjection (``lambdalabs/sd-image-variations-diffusers``), one token ``(b, 1, 768)``."""

    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(self.MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self.STD)[:, None, None], persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.interpolate((pictures + 1) / 2, size=(224, 224), mode="bicubic", antialias=True)
        return self.model((x - self.mean) / self.std).image_embeds[:, None]


def build_context(cfg: ModelConfig) -> nn.Module:
    """The context encoder of a configuration. FileNotFoundError if CLIP is asked for and its folder is not there."""
    if cfg.context == "small":
        return SmallContext(cfg.cross_attention_dim)
    if cfg.context != "clip":
        raise ValueError(f"model.context: got {cfg.context!r}, expected small or clip")
    if not Path(cfg.context_path).is_dir():
        raise FileNotFoundError(
            f"CLIP vision tower: {cfg.context_path!r} is not there. Put the image_encoder folder of "
            "sd-image-variations in that place (README, 'Paper scale') or choose model.context='small'"
        )
    from transformers import CLIPVisionModelWithProjection

    return ClipContext(CLIPVisionModelWithProjection.from_pretrained(cfg.context_path, local_files_only=True))


class RAIN(nn.Module):
    """Reference network, denoising network, pose guider, context encoder, autoencoder.

    ``stream`` (a :class:`rainlab.config.StreamConfig` or None) says how the model was trained to be run.
    """

    def __init__(
        self,
        reference_unet: UNet,
        denoising_unet: UNet,
        pose_guider: PoseGuider,
        context_encoder: nn.Module,
        autoencoder: vae.VAE,
        preset: Preset | None = None,
    ):
        super().__init__()
        self.reference_unet, self.denoising_unet, self.pose_guider = reference_unet, denoising_unet, pose_guider
        self.context_encoder, self.autoencoder, self.preset = context_encoder, autoencoder, preset

    @classmethod
    def build(cls, preset: Preset, *, motion: bool, guidance: bool) -> RAIN:
        """Fresh networks of a preset; ``motion`` and ``guidance`` say which stage's denoising network is wanted."""
        cfg, autoencoder = preset.model, vae.build(preset.autoencoder)
        channels = autoencoder.latent_channels
        denoiser = UNet(cfg.unet(channels, motion=motion, guidance=guidance))
        if guidance:
            start_guidance(denoiser, preset.loss.embedding_scale)
        return cls(
            UNet(cfg.unet(channels, out=False)),
            denoiser,
            PoseGuider(cfg.channels[0], cfg.guider_widths),
            build_context(cfg),
            autoencoder,
            preset,
        )

    def look(self, pictures: Tensor, latents: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Reference pictures ``(b, 3, H, W)`` in [-1, 1] -> (bank, context). Pass ``latents`` if already encoded."""
        context = self.context_encoder(pictures)
        latents = self.autoencoder.encode(pictures) if latents is None else latents
        return self.reference_unet.bank(latents, context), context

    def trainable(self, stage: str) -> list[str]:
        """Names of the parameters that ``stage`` trains (sections 4.2 and 4.3).

        - stage1: reference network (without what is dead), guider, context encoder if ours, denoising network;
        - stage2: motion modules only;
        - distill2d, distill3d: the denoising network; the paper does not say which part, LCM trains all of it.
        """
        if stage not in STAGES:
            raise ValueError(f"stage: got {stage!r}, expected one of {STAGES}")
        names = [n for n, _ in self.named_parameters()]
        if stage == "autoencoder":
            return [n for n in names if n.startswith("autoencoder.")]
        if stage == "stage2":
            return [n for n in names if n.startswith("denoising_unet.") and ".motion_modules." in n]
        if stage in ("distill2d", "distill3d"):
            return [n for n in names if n.startswith("denoising_unet.")]
        dead = {f"reference_unet.{n}" for n in dead_parameters(self.reference_unet)}
        kept = ["reference_unet.", "denoising_unet.", "pose_guider."]
        if isinstance(self.context_encoder, SmallContext):  # a CLIP tower stays as it is
            kept.append("context_encoder.")
        return [n for n in names if n.startswith(tuple(kept)) and n not in dead]


def dead_parameters(reference_unet: UNet) -> list[str]:
    """Parameters of the reference network behind its last tap (20): they never influence the bank."""
    last = len(reference_unet.cfg.channels) - 1
    prefix = f"up_blocks.{last}.attentions.2."
    alive = tuple(prefix + part for part in ("norm.", "proj_in.", "transformer_blocks.0.norm1."))
    return [n for n, _ in reference_unet.named_parameters() if n.startswith(prefix) and not n.startswith(alive)]


def start_guidance(unet: UNet, scale: float) -> None:
    """First values of the ω projection: zero as in LCM, or random in the columns that tell ω = 1 … 4 apart.

    At small scale a zero start leaves ω without effect within the steps there are, and a random start on all columns
    lets it act out of order (both measured): the fast columns of the embedding of ω·1000 alias. So only the columns
    that turn by less than half a circle between ω = 1 and 4 start off zero, with deviation ``scale``/√(their number).
    """
    weight = unet.time_embedding.cond_proj.weight
    nn.init.zeros_(weight)
    if scale:
        slow = (4 - 1) * 1000.0 * schedule.guidance_rates(weight.shape[1]) < math.pi
        slow = F.pad(slow.repeat(2), (0, weight.shape[1] % 2))
        with torch.no_grad():
            weight[:, slow] = torch.randn(weight.shape[0], int(slow.sum())) * scale / float(slow.sum()) ** 0.5


def to_unit(pictures: Tensor) -> Tensor:
    """uint8 ``(…, h, w, 3)`` -> float ``(…, 3, h, w)`` in [0, 1]."""
    return pictures.movedim(-1, -3).float() / 255


def to_signed(pictures: Tensor) -> Tensor:
    """uint8 ``(…, h, w, 3)`` -> float ``(…, 3, h, w)`` in [-1, 1]."""
    return to_unit(pictures) * 2 - 1


def to_uint8(pictures: Tensor) -> Tensor:
    """float ``(…, 3, h, w)`` in [-1, 1] (clamped) -> uint8 ``(…, h, w, 3)``."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1)


def guided_v(
    unet: UNet,
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    pose: Tensor,
    bank: dict[str, Tensor],
    guidance: Tensor | float,
    temporal_mask: Tensor | None = None,
) -> Tensor:
    """Classifier-free guidance v_null + ω (v - v_null) of a network without ω embedding, in one doubled batch.

    The null drops token and bank together, never the pose; ``guidance`` is a number or ``(b,)``. ω = 1 is no guidance.
    """
    keep = torch.arange(2 * len(latents), device=latents.device) < len(latents)
    latents, timesteps, pose = (torch.cat([x, x]) for x in (latents, timesteps, pose))
    context = torch.cat([context, torch.zeros_like(context)])
    bank = {name: torch.cat([states, states]) for name, states in bank.items()}
    v, v_null = unet(latents, timesteps, context, pose, None, bank, temporal_mask, keep).chunk(2)
    strength = torch.as_tensor(guidance, device=v.device, dtype=v.dtype).reshape(-1, 1, 1, 1, 1)
    return v_null + strength * (v - v_null)
