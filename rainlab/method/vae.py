"""Autoencoders behind one interface: the small trainable one, AutoencoderKL, TAESD and the streaming TAESDV.

All map float pictures in [-1, 1] to latents of about unit variance, ``(…, 3, H, W) <-> (…, c, H/s, W/s)``, and offer
``decode_next(latents, memory)`` for streams: ``(b, f, c, h, w)`` and what the previous call returned.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.config import AutoencoderConfig
from rainlab.files import root

SD_SCALE = 0.18215  # AutoencoderKL's latents are multiplied by this before diffusion


class VAE(nn.Module):
    """Common interface; subclasses implement ``_encode`` and ``_decode`` on ``(n, …)`` and set ``factor``."""

    factor: int
    latent_channels: int

    def encode(self, pictures: Tensor) -> Tensor:
        """``(…, 3, H, W)`` in [-1, 1] -> ``(…, c, H/s, W/s)``. ValueError if H or W is no multiple of s."""
        if pictures.ndim < 4 or pictures.shape[-3] != 3 or any(n % self.factor for n in pictures.shape[-2:]):
            raise ValueError(
                f"pictures: got shape {tuple(pictures.shape)}, expected (…, 3, H, W) with H and W "
                f"multiples of {self.factor}, values in [-1, 1]"
            )
        return self._encode(pictures.flatten(0, -4)).unflatten(0, pictures.shape[:-3])

    def decode(self, latents: Tensor) -> Tensor:
        """``(…, c, h, w)`` -> ``(…, 3, H, W)``, about [-1, 1], not clamped."""
        if latents.ndim < 4 or latents.shape[-3] != self.latent_channels:
            raise ValueError(f"latents: got shape {tuple(latents.shape)}, expected (…, {self.latent_channels}, h, w)")
        return self._decode(latents.flatten(0, -4)).unflatten(0, latents.shape[:-3])

    def decode_next(self, latents: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor] | None]:
        """Decode the next frames ``(b, f, c, h, w)`` of a stream; picture-wise decoders have no memory."""
        return self.decode(latents), memory


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SmallVAE(VAE):
    """A convolutional autoencoder of some 0.5 M parameters (:func:`rainlab.training.losses.autoencoder_loss`).

    The first halving is a space-to-depth step: full-resolution convolutions would cost most of the time and give
    little. ``mean`` and ``std`` (per latent channel, measured on the training set) make the latents unit variance.
    """

    def __init__(self, cfg: AutoencoderConfig):
        super().__init__()
        levels = int(math.log2(cfg.factor)) - 1
        if 2 ** (levels + 1) != cfg.factor or levels < 1:
            raise ValueError(f"factor: got {cfg.factor}, expected a power of two of at least 4")
        self.factor, self.latent_channels = cfg.factor, cfg.latent_channels
        width, widest = cfg.width, cfg.width * 2
        encoder: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, width, 3, padding=1), Residual(width)]
        for i in range(levels):
            encoder += [nn.Conv2d(width if i == 0 else widest, widest, 3, stride=2, padding=1), Residual(widest)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(widest, cfg.latent_channels, 3, padding=1))
        decoder: list[nn.Module] = [nn.Conv2d(cfg.latent_channels, widest, 3, padding=1), Residual(widest)]
        for i in range(levels):
            narrow = width if i == levels - 1 else widest
            decoder += [Residual(widest), nn.Upsample(scale_factor=2), nn.Conv2d(widest, narrow, 3, padding=1)]
        decoder += [Residual(width), Residual(width), nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2)]
        self.decoder = nn.Sequential(*decoder)
        self.register_buffer("mean", torch.zeros(cfg.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(cfg.latent_channels, 1, 1))

    def _encode(self, pictures: Tensor) -> Tensor:
        return (self.encoder(pictures) - self.mean) / self.std

    def _decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents * self.std + self.mean)

    @torch.no_grad()
    def normalise(self, pictures: Tensor) -> None:
        """Set ``mean`` and ``std`` from ``(n, 3, H, W)`` pictures, so that latents have zero mean and unit variance."""
        raw = self.encoder(pictures)
        self.mean.copy_(raw.mean((0, 2, 3))[:, None, None])
        self.std.copy_(raw.std((0, 2, 3))[:, None, None].clamp(min=1e-4))


class KL(VAE):
    """diffusers' AutoencoderKL (``stabilityai/sd-vae-ft-mse``): latent mean × 0.18215."""

    factor, latent_channels = 8, 4

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def _encode(self, pictures: Tensor) -> Tensor:
        return self.model.encode(pictures).latent_dist.mean * SD_SCALE

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / SD_SCALE).sample


class TAESD(VAE):
    """diffusers' AutoencoderTiny: speaks the scaled latents of :class:`KL` directly."""

    factor, latent_channels = 8, 4

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def _encode(self, pictures: Tensor) -> Tensor:
        return self.model.encode(pictures).latents

    def _decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents).sample


class Block(nn.Module):
    """TAESD's residual block; with ``memory`` its convolutions also see the block's input of the previous frame."""

    def __init__(self, width: int, memory: bool = False):
        super().__init__()
        conv = lambda n: nn.Conv2d(n, width, 3, padding=1)  # noqa: E731
        self.conv = nn.Sequential(conv(width * (1 + memory)), nn.ReLU(), conv(width), nn.ReLU(), conv(width))

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        return F.relu(self.conv(x if past is None else torch.cat([x, past], dim=1)) + x)


class SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class TAESDV(VAE):
    """Streaming tiny autoencoder (``madebyollin/taesdv``): TAESD's encoder and a decoder with ten recurrent memories.

    A memory holds the input of its block at the previous frame; zeros start a stream. With ``decode_next``, frame by
    frame equals all at once; ``decode`` takes every frame for the first of a stream.
    """

    factor, latent_channels = 8, 4

    def __init__(self, width: int = 64):
        super().__init__()
        conv = lambda i, o, **k: nn.Conv2d(i, o, 3, padding=1, **k)  # noqa: E731
        encoder = [conv(3, width), Block(width)]
        for _ in range(3):
            encoder += [conv(width, width, stride=2, bias=False), *(Block(width) for _ in range(3))]
        self.encoder = nn.Sequential(*encoder, conv(width, 4))
        decoder = [SoftClamp(), conv(4, width), nn.ReLU()]
        for blocks in (3, 3, 3):
            decoder += [Block(width, memory=True) for _ in range(blocks)]
            decoder += [nn.Upsample(scale_factor=2), conv(width, width, bias=False)]
        self.decoder = nn.Sequential(*decoder, Block(width, memory=True), conv(width, 3))

    def _encode(self, pictures: Tensor) -> Tensor:
        return self.encoder((pictures + 1) / 2)

    def _decode(self, latents: Tensor) -> Tensor:
        """Frames without a past: every one as the first of a stream."""
        return self.decode_next(latents[:, None])[0][:, 0]

    def decode_next(self, latents: Tensor, memory: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """``(b, f, 4, h, w)`` and the memory of the previous call -> ``(b, f, 3, 8h, 8w)`` in about [-1, 1], memory."""
        b, f = latents.shape[:2]
        x, kept = latents.flatten(0, 1), []
        for layer in self.decoder:
            if isinstance(layer, Block):
                frames = x.unflatten(0, (b, f))
                first = torch.zeros_like(frames[:, :1]) if memory is None else memory[len(kept)][:, None]
                kept.append(frames[:, -1])
                x = layer(x, torch.cat([first, frames[:, :-1]], dim=1).flatten(0, 1))
            else:
                x = layer(x)
        return x.unflatten(0, (b, f)) * 2 - 1, kept


def build(cfg: AutoencoderConfig) -> VAE:
    """The autoencoder of a configuration. FileNotFoundError if published weights are asked for and not there."""
    if cfg.kind == "small":
        return SmallVAE(cfg)
    if cfg.kind not in ("kl", "taesd", "taesdv"):
        raise ValueError(f"autoencoder.kind: got {cfg.kind!r}, expected small, kl, taesd or taesdv")
    path = root() / cfg.path
    if not path.exists():
        raise FileNotFoundError(
            f"autoencoder weights: {cfg.path!r} is not there. Put the published {cfg.kind} weights in that place "
            "(README, 'Paper scale') or choose autoencoder.kind='small'"
        )
    if cfg.kind == "taesdv":
        from safetensors.torch import load_file

        model = TAESDV()
        model.load_state_dict(load_file(path))
        return model.eval()
    from diffusers import AutoencoderKL, AutoencoderTiny

    if cfg.kind == "kl":
        return KL(AutoencoderKL.from_pretrained(path, local_files_only=True)).eval()
    return TAESD(AutoencoderTiny.from_pretrained(path, local_files_only=True)).eval()
