"""RAIN: the five networks as one module, classifier-free guidance, and pictures as tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.config import Preset
from rainlab.method import designs, embeddings, vae
from rainlab.method.guider import PoseGuider
from rainlab.method.unet import UNet


class RAIN(nn.Module):
    """Reference network, denoising network, pose guider, context encoder, autoencoder.

    ``preset``: what the networks were built and trained with, None for loose ones; its ``stream`` is how to run them.
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
        """Fresh networks of a preset.

        ``motion`` (over the window) and ``guidance`` (ω embedding) say which denoising network is wanted: neither after
        stage 1, motion after stage 2, guidance after 2D distillation, both for the stream (3D distillation).
        """
        cfg, autoencoder = preset.model, vae.build(preset.autoencoder)
        channels = autoencoder.latent_channels
        denoiser = designs.denoiser(cfg, channels, motion=motion, guidance=guidance)
        if guidance:
            start_guidance(denoiser, preset.loss.embedding_scale)
        return cls(
            designs.reference(cfg, channels),
            denoiser,
            PoseGuider(cfg.channels[0], cfg.guider_widths),
            designs.context(cfg),
            autoencoder,
            preset,
        )

    def look(self, pictures: Tensor, latents: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Reference pictures ``(b, 3, H, W)`` in [-1, 1] -> (bank, context). Pass ``latents`` if already encoded."""
        context = self.context_encoder(pictures)
        latents = self.autoencoder.encode(pictures) if latents is None else latents
        return self.reference_unet.bank(latents, context), context


def start_guidance(unet: UNet, scale: float) -> None:
    """First values of the ω projection: zero as in LCM, or random in the columns that tell ω = 1 … 4 apart.

    At small scale a zero start leaves ω without effect within the steps there are, and a random start on all columns
    lets it act out of order (both measured): the fast columns of the embedding of ω·1000 alias. So only the columns
    that turn by less than half a circle between ω = 1 and 4 start off zero, with deviation ``scale``/√(their number).
    """
    weight = unet.time_embedding.cond_proj.weight
    nn.init.zeros_(weight)
    if scale:
        slow = (4 - 1) * 1000.0 * embeddings.guidance_rates(weight.shape[1]) < math.pi
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
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().movedim(-3, -1).to(torch.uint8)


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
