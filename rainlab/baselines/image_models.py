"""Image models that poses steer, as :mod:`rainlab.baselines.pose_animate` needs them: Stable Diffusion, and our own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainlab.baselines.dual_attention import Look
from rainlab.method import schedule
from rainlab.method.rain import RAIN, to_signed, to_uint8, to_unit
from rainlab.method.unet import Attention, Condition, SpatialBlock, attend


class Small:
    """RAIN's network of stage 1 as an image model: its token is the prompt, its guider the ControlNet, no reference."""

    def __init__(self, model: RAIN):
        if model.denoising_unet.cfg.guidance_dim:
            raise ValueError("model: got a distilled network, expected that of stage 1: it can be guided")
        self.model, self.unet = model, model.denoising_unet
        self.device = self.unet.conv_in.weight.device
        self.null = torch.zeros(1, 1, self.unet.cfg.cross_attention_dim, device=self.device)

    def prompt(self, picture: np.ndarray) -> Tensor:
        """The embedding ``(1, 1, d)`` of a picture uint8 ``(h, w, 3)``."""
        return self.model.context_encoder(self._signed(picture))

    def encode(self, picture: np.ndarray) -> Tensor:
        return self.model.autoencoder.encode(self._signed(picture))

    def _signed(self, picture: np.ndarray) -> Tensor:
        return to_signed(torch.from_numpy(picture)[None].to(self.device))

    def decode(self, latents: Tensor) -> np.ndarray:
        return to_uint8(self.model.autoencoder.decode(latents)).cpu().numpy()

    def features(self, poses: np.ndarray) -> Tensor:
        return self.model.pose_guider(to_unit(torch.from_numpy(poses)[:, None].to(self.device)))

    def predict(self, latents: Tensor, time: int, embedding: Tensor, features: Tensor) -> Tensor:
        times = torch.full((len(latents), 1), time, device=self.device)
        return self.unet(latents[:, None], times, embedding, features)[:, 0]

    def split(self, latents: Tensor, answer: Tensor, time: int) -> tuple[Tensor, Tensor]:
        times = self._times(latents, time)
        clean = schedule.clean_from_v(latents, answer, times)
        return clean, schedule.noise_from_v(latents, answer, times)

    def mix(self, clean: Tensor, noise: Tensor, time: int) -> Tensor:
        if time < 0:
            return clean
        alpha, sigma = schedule.alpha_sigma(self._times(clean, time))
        shape = (-1, *[1] * (clean.ndim - 1))
        return alpha.reshape(shape) * clean + sigma.reshape(shape) * noise

    def _times(self, like: Tensor, time: int) -> Tensor:
        return torch.full((len(like),), time, device=like.device)

    @contextmanager
    def looking(self, look: Look) -> Iterator[None]:
        blocks = {name: module for name, module in self.unet.named_modules() if isinstance(module, SpatialBlock)}
        for name, block in blocks.items():
            block.forward = partial(_spatial, block, look, name.startswith("up_blocks"))
        try:
            yield
        finally:
            for block in blocks.values():
                del block.forward


def _heads(attention: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def _spatial(block: SpatialBlock, look: Look, up: bool, x: Tensor, h: Tensor, cond: Condition, _: None) -> Tensor:
    """A :class:`SpatialBlock` without reference that attends as ``look`` says."""
    own, cross = block.attn1, block.attn2
    if up:
        made = look.attention(*(_heads(own, each(h)) for each in (own.to_q, own.to_k, own.to_v)))
        x = x + own.to_out[0](made.transpose(1, 2).flatten(2))
    else:
        x = x + own(h, h)
    look.saw(_heads(cross, cross.to_q(block.norm2(x))), _heads(cross, cross.to_k(cond.context)), None)
    x = x + cross.only(cond.context)
    return x + block.ff(block.norm3(x))


class Published:
    """Stable Diffusion and an OpenPose ControlNet of diffusers.

    pipe: of :func:`rainlab.method.restyle.load` with ``kind="openpose"`` and ``dtype=torch.float32``. character: the
    words of the prompt that name the character, one after the other, by number (1 is the first behind the beginning);
    cross-attention to them makes the masks. ValueError for networks in fp16.
    """

    def __init__(self, pipe: Any, character: slice = slice(1, 3)):
        if pipe.unet.dtype == torch.float16:
            expected = "fp32 or bf16: gradients of an embedding vanish in fp16; load it with dtype=torch.float32"
            raise ValueError(f"pipe: got networks in fp16, expected {expected}")
        for network in (pipe.unet, pipe.controlnet, pipe.vae, pipe.text_encoder):
            network.requires_grad_(False)
        self.pipe, self.character = pipe, character
        self.device, self.dtype = pipe.unet.device, pipe.unet.dtype
        self.bar = pipe.scheduler.alphas_cumprod.to(self.device)
        self.null = self.prompt("")

    def prompt(self, words: str) -> Tensor:
        """The embedding ``(1, 77, d)`` of a prompt."""
        tokens = self.pipe.tokenizer(
            words, padding="max_length", truncation=True, max_length=self.pipe.tokenizer.model_max_length,
            return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            return self.pipe.text_encoder(tokens.input_ids.to(self.device))[0]

    def encode(self, picture: np.ndarray) -> Tensor:
        signed = to_signed(torch.from_numpy(picture)[None].to(self.device)).to(self.dtype)
        return self.pipe.vae.encode(signed).latent_dist.mean * self.pipe.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> np.ndarray:
        pictures = [
            self.pipe.vae.decode(each / self.pipe.vae.config.scaling_factor).sample for each in latents.split(1)
        ]
        return to_uint8(torch.cat(pictures).float()).cpu().numpy()

    def features(self, poses: np.ndarray) -> Tensor:
        return to_unit(torch.from_numpy(poses).to(self.device)).to(self.dtype)

    def predict(self, latents: Tensor, time: int, embedding: Tensor, features: Tensor) -> Tensor:
        when = torch.tensor(time, device=self.device)
        down, middle = self.pipe.controlnet(
            latents, when, encoder_hidden_states=embedding, controlnet_cond=features, return_dict=False
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.pipe.unet(latents, when, encoder_hidden_states=embedding, **residuals).sample

    def split(self, latents: Tensor, answer: Tensor, time: int) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._at(time)
        return (latents - sigma * answer) / alpha, answer  # it predicts noise

    def mix(self, clean: Tensor, noise: Tensor, time: int) -> Tensor:
        alpha, sigma = self._at(time)
        return alpha * clean + sigma * noise

    def _at(self, time: int) -> tuple[Tensor, Tensor]:
        bar = self.bar[time] if time >= 0 else torch.ones((), device=self.device)
        return bar.sqrt().to(self.dtype), (1 - bar).sqrt().to(self.dtype)

    @contextmanager
    def looking(self, look: Look) -> Iterator[None]:
        before = self.pipe.unet.attn_processors
        self.pipe.unet.set_attn_processor({name: _Processor(name, look, self.character) for name in before})
        try:
            yield
        finally:
            self.pipe.unet.set_attn_processor(before)


class _Processor:
    """An attention processor of diffusers that attends as a :class:`Look` says."""

    def __init__(self, name: str, look: Look, character: slice):
        self.look, self.character = look, character
        self.up, self.cross = name.startswith("up_blocks"), ".attn2." in name

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if self.cross:
            self.look.saw(q, k, self.character)
        made = self.look.attention(q, k, v) if self.up and not self.cross else attend(q, k, v, None)
        return attn.to_out[1](attn.to_out[0](made.transpose(1, 2).flatten(2)))
