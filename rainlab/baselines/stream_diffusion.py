"""StreamDiffusion (Kodaira et al., arXiv 2312.12491): a batch of noise levels, frames that do not see each other.

Every call denoises p frames, one at each noise level; one is finished and leaves, one enters. What makes pictures alike
is where they begin: at the reference's latent, noised as far as the first level (img2img), with the same noise always.

Differs from the paper: there a frame begins at the picture that comes in, which has to be encoded each time; here only
its pose comes in. ω acts through its embedding instead of residual classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.fast import REWRITES, FastUNet, laid_out
from rainlab.method.rain import RAIN, to_signed, to_uint8, to_unit
from rainlab.method.stream import checked


class StreamDiffusion:
    """One frame in, one frame out, p calls later.

    Args:
        model: its denoising network has no motion modules. levels: p. guidance: ω, the preset's by default; a network
            without ω embedding takes none. strength: share of the noise schedule that a frame passes, in (0, 1]; 1
            leaves nothing of the reference. seed: of the noise. look: attend to the reference's features, too, as RAIN
            does: the published method does not, our networks were trained with it.
        fast: as for :class:`rainlab.method.stream.Stream`.

    Raises:
        ValueError: a network with motion modules, ω without an embedding for it or none with one, a strength out of
            range.
    """

    motion = False  # whether the denoising network has motion modules

    def __init__(
        self,
        model: RAIN,
        levels: int = 4,
        guidance: float | None = None,
        strength: float = 0.5,
        seed: int = 0,
        look: bool = False,
        fast: bool = False,
    ):
        unet = model.denoising_unet
        if unet.cfg.motion != self.motion:
            wanted = f"RAIN.build(…, motion={self.motion})"
            raise ValueError(f"model: got motion={unet.cfg.motion}, expected one made by {wanted} for this method")
        if not 0 < strength <= 1:
            raise ValueError(f"strength: got {strength}, expected more than 0 and at most 1")
        if guidance is None and unet.cfg.guidance_dim and model.preset:
            guidance = model.preset.stream.guidance
        if (guidance is None) == bool(unet.cfg.guidance_dim):
            wanted = "ω, for it has an embedding" if unet.cfg.guidance_dim else "None, for it has no ω embedding"
            raise ValueError(f"guidance: got {guidance} for this network, expected {wanted}")
        self.model, self.levels, self.seed, self.look = model.eval(), levels, seed, look
        self._guider, self._autoencoder, self._unet = model.pose_guider, model.autoencoder, unet
        if fast:
            self._guider, self._autoencoder = laid_out(model.pose_guider), laid_out(model.autoencoder)
            self._unet = FastUNet(unet, [rewrite for rewrite in REWRITES if rewrite != "temporal"])
        parameter = unet.conv_in.weight
        self.device, self.dtype = parameter.device, parameter.dtype
        times = (schedule.stream_times(levels)[:, :, None] * strength).long().to(self.device) - 1
        self._now, self._after = times[0, :, 0], times[1, :, 0]
        self._omega = None
        if guidance is not None:
            omega = torch.full((1,), float(guidance), device=self.device)
            self._omega = guidance_embedding(omega, unet.cfg.guidance_dim).to(self.dtype)
        self._latent: Tensor | None = None
        self._size: tuple[int, int] | None = None
        self.reset()

    @property
    def latency_frames(self) -> int:
        """How many conditions must have been pushed before the first frame comes out: p."""
        return self.levels

    def reset(self) -> None:
        """Forget the frames that are under way; the reference stays."""
        self._latents: list[Tensor] = []  # cleanest first, (c, h, w) each
        self._levels: list[int] = []
        self._features: list[Tensor] = []
        self._memory: list[Tensor] | None = None
        self._generator = torch.Generator().manual_seed(self.seed)

    @torch.no_grad()
    def reference(self, picture: np.ndarray) -> None:
        """Set the character: uint8 RGB ``(h, w, 3)``; of another size only while no frame is under way.

        Raises TypeError or ValueError for a wrong type, channels or size.
        """
        picture = checked(picture, "reference", self.model.autoencoder.factor, self._size if self._levels else None)
        self._size = tuple(picture.shape[1:3])
        pictures = to_signed(picture.to(self.device)).to(self.dtype)
        self._latent = self._autoencoder.encode(pictures)[0]
        bank, self._context = self.model.look(pictures)
        self._bank = bank if self.look else None
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((self.levels, *self._latent.shape), generator=generator)
        self._fixed = noise.to(self._latent)  # of each level, for good

    @torch.no_grad()
    def push(self, conditions: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
        """Push condition pictures uint8 ``(h, w, 3)``; returns the frames finished, one for each from the p-th on.

        Raises:
            RuntimeError: no reference was set. TypeError, ValueError: wrong type, channels or size; nothing was pushed.
        """
        if self._latent is None:
            raise RuntimeError("no reference: call reference(picture) before push(condition)")
        given = conditions if isinstance(conditions, (list, tuple)) else [conditions]
        factor = self.model.autoencoder.factor
        frames = []
        for picture in [checked(condition, "condition", factor, self._size) for condition in given]:
            self._features.append(self._guider(to_unit(picture[None].to(self.device)).to(self.dtype))[0, 0])
            top = torch.tensor([self.levels - 1], device=self.device)
            self._latents.append(schedule.add_noise(self._latent, self._noise(top)[0], self._now[-1]))
            self._levels.append(self.levels - 1)
            frames += self._turn()
        return frames

    def flush(self) -> list[np.ndarray]:
        """End the stream: returns the frames that are under way, then resets."""
        frames = []
        while self._latents:
            frames += self._turn()
        self.reset()
        return frames

    @torch.no_grad()
    def _turn(self) -> list[np.ndarray]:
        levels = torch.tensor(self._levels, device=self.device)
        latents, features = torch.stack(self._latents)[None], torch.stack(self._features)[None]
        now, after = self._now[levels][None], self._after[levels][None]
        v = self._predict(latents, now, features)
        latents = schedule.consistency_step(latents, v, now, after, self._noise(levels - 1)[None])
        self._latents, self._levels = list(latents[0]), [level - 1 for level in self._levels]
        if self._levels[0] >= 0:
            return []
        clean = self._latents.pop(0)
        del self._features[0], self._levels[0]
        picture, self._memory = self._autoencoder.decode_next(clean[None, None], self._memory)
        return [to_uint8(picture[0, 0].float()).cpu().numpy()]

    def _noise(self, levels: Tensor) -> Tensor:
        """Noise that takes frames to these levels, ``(n, c, h, w)``; none is needed to -1, clean."""
        return self._fixed[levels]

    def _predict(self, latents: Tensor, timesteps: Tensor, features: Tensor) -> Tensor:
        """v of the frames under way, all ``(1, frames, …)``."""
        return self._unet(latents, timesteps, self._context, features, self._omega, self._bank)
