"""Frames from networks, for measuring and for looking: streams in full flow, plain DDIM, and views inside a window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rainlab.method import schedule
from rainlab.method.rain import RAIN, guided_v, to_signed, to_uint8, to_unit
from rainlab.method.stream import Stream
from rainlab.method.unet import TemporalAttention, UNet, causal_mask

SIDE_BY_SIDE = 8  # streams in one batch


def stream(
    model: RAIN, reference: np.ndarray, condition: np.ndarray, kind: type[Stream] = Stream, **options
) -> np.ndarray:
    """Frames of finite clips as they come out in the middle of an endless stream; some clips run side by side.

    The driver is continued at both ends by its mirror image, by K - K/p conditions (behind, to a whole group): every
    frame returned spent its whole life in a full window, whatever K is. Soft start and drain are not measured.

    Args:
        reference: uint8 ``(b, h, w, 3)``. condition: uint8 ``(b, f, h, w, 3)``. kind: of stream. options: its own but
            ``batch``; the noise starts anew every SIDE_BY_SIDE clips.

    Returns:
        uint8 frames like ``condition``.
    """
    one = kind(model, **options)
    length, size, around = condition.shape[1], one.group_size, one.window - one.group_size
    driver = mirrored(length, around, around + -length % size)
    films = []
    for first in tqdm(range(0, len(reference), SIDE_BY_SIDE), "streams", leave=False):
        part = slice(first, first + SIDE_BY_SIDE)
        running = kind(model, batch=len(reference[part]), **options)
        running.reference(reference[part])
        frames = running.push([condition[part, i] for i in driver])
        films.append(np.stack(frames[around : around + length], axis=1))
    return np.concatenate(films)


def mirrored(length: int, before: int, behind: int) -> np.ndarray:
    """Indices -before … length + behind - 1 of a clip that runs back and forth: … 2 1 0 1 2 … n-2 n-1 n-2 …."""
    return np.pad(np.arange(length), (before, behind), mode="reflect")


class SolverStream(Stream):
    """A stream of the network before distillation: DDIM steps, guided by a second call that sees no reference.

    guidance: ω of classifier-free guidance, 1 for none. Other arguments: of :class:`Stream`, but ``fast``; take
    p·N = 20 steps or so.
    """

    def __init__(self, model: RAIN, *given, guidance: float = 1.0, **options):
        super().__init__(model, *given, **options)
        self.free_guidance = guidance

    def _predict(self, latents: Tensor, timesteps: Tensor) -> Tensor:
        if self.free_guidance == 1:
            return super()._predict(latents, timesteps)
        f = timesteps.shape[1]
        mask = None if self._mask is None else self._mask[:f, :f]
        latents, timesteps, pose = self._in_sight(latents, timesteps)
        given = latents, timesteps, self._context, pose, self._bank
        return guided_v(self.model.denoising_unet, *given, self.free_guidance, mask)[:, :f]

    def _step(self, latents: Tensor, v: Tensor, now: Tensor, after: Tensor, noise: Tensor) -> Tensor:
        return schedule.solver_step(latents, v, now, after)


@torch.no_grad()
def sample(
    model: RAIN,
    reference: np.ndarray,
    condition: np.ndarray,
    steps: int = 20,
    guidance: float | None = None,
    seed: int = 0,
    causal: bool = False,
) -> np.ndarray:
    """Plain DDIM without streaming: all frames of a clip denoised together from noise, at one time step each call.

    Args:
        model: after stage 1 (frames independent) or stage 2 (attention over the frames); no ω embedding.
        reference: uint8 ``(b, h, w, 3)``. condition: uint8 ``(b, f, h, w, 3)``.
        guidance: strength ω of classifier-free guidance; None for none.

    Returns:
        uint8 frames like ``condition``.
    """
    device = model.denoising_unet.conv_in.weight.device
    bank, context = model.look(to_signed(torch.from_numpy(reference).to(device)))
    pose = model.pose_guider(to_unit(torch.from_numpy(condition).to(device)))
    b, f, _, h, w = pose.shape
    mask = causal_mask(f, device) if causal else None

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        if guidance is None:
            return model.denoising_unet(latents, timesteps, context, pose, None, bank, mask)
        return guided_v(model.denoising_unet, latents, timesteps, context, pose, bank, guidance, mask)

    shape = (b, f, model.autoencoder.latent_channels, h, w)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return to_uint8(model.autoencoder.decode(schedule.ddim(predict, noise, steps))).cpu().numpy()


@torch.no_grad()
def window_film(stream: Stream, conditions: np.ndarray) -> np.ndarray:
    """What each tick leaves behind: the first frame of every group, decoded as noisy as it is.

    Args:
        stream: a fresh stream with a reference, one stream wide. conditions: uint8 ``(f, h, w, 3)``, f a multiple of
            ``stream.group_size``.

    Returns:
        uint8 ``(ticks, p, h, w, 3)``; column 0 is what came out, column g what stands at time g·T/p, white if nothing.
    """
    size, groups = stream.group_size, stream.groups
    film = np.full((len(conditions) // size, groups, *conditions.shape[1:]), 255, np.uint8)
    for tick, start in enumerate(range(0, len(film) * size, size)):
        for frame in stream.push(list(conditions[start : start + size]))[:1]:
            film[tick, 0] = frame
        latents, times = stream.contents
        for slot in range(0, len(times), size):
            level = round(int(times[slot]) * groups / schedule.TRAIN_TIMESTEPS)
            picture = stream.model.autoencoder.decode(latents[:, slot : slot + 1])
            film[tick, level] = to_uint8(picture)[0, 0].cpu().numpy()
    return film


@torch.no_grad()
def temporal_attention(unet: UNet, *inputs, **options) -> dict[str, np.ndarray]:
    """Who looks at whom: attention weights over the frames in one forward pass of the network.

    Arguments are those of the network's ``forward``. Returns layer name -> ``(f, f)``, the mean over samples,
    heads and places;
    row = the frame that looks, column = the frame looked at, rows sum to 1.
    """
    maps: dict[str, np.ndarray] = {}

    def watch(name: str) -> Callable:
        def hook(layer: TemporalAttention, received: tuple) -> None:
            maps[name] = layer.weights(*received).mean((0, 1)).cpu().numpy()

        return hook

    layers = {n: layer for n, layer in unet.named_modules() if isinstance(layer, TemporalAttention)}
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        unet(*inputs, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
