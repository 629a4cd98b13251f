"""PoseAnimate (Zhu et al., arXiv 2404.13680): one picture is animated without any training, by what inverts it.

An image model that poses can steer (Stable Diffusion with an OpenPose ControlNet) is asked how it would have drawn the
picture, and then to draw it again in other poses. Four modules, each of which can be left out:

    PACM  the embedding of the prompt is optimised, time step by time step: first until the picture comes out again
          under its own pose, then once more for every frame under that frame's pose (section 3.2, Algorithm 1)
    DCAM  in the up blocks a frame attends to the source picture, the frame before and itself (section 3.3)
    MGDM  character and background apart, by masks from cross-attention (section 3.4); both: `dual_attention`
    PATA  the poses are moved to where the character stands, and come from its own by and by (:func:`transition`)

What the modules need of an image model is :class:`Backbone`; :mod:`rainlab.baselines.image_models` has two.

Where the paper leaves it open: its text optimises the *conditional* embedding while the caption of Figure 2 calls it
unconditional; here it is the conditional one. Algorithm 1 takes a step of -η∇ without saying how long; here it is a
share of the embedding's length. How PATA interpolates stands in a supplement that is not public. Ours alone: masks may
be carried from the picture's by attention (``Options.carried``), where one token tells no places apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rainlab.baselines.dual_attention import Look, average, resized, seen_masks
from rainlab.data import pose
from rainlab.method import schedule

AT_ONCE = 16  # frames whose embeddings are optimised together: what fits in memory


@dataclass(frozen=True)
class Options:
    """Numbers of a run, and which modules take part. Where the paper gives none, those of null-text inversion."""

    steps: int = 50
    guidance: float = 7.5
    inner: int = 10  # optimisation steps a time step in pose-aware inversion
    rate: float = 1e-2  # of Adam there, falling to half over the time steps
    frame_rate: float = 1e-2  # length of Algorithm 1's step down the gradient, as a share of the embedding's
    weights: tuple[float, float, float] = (0.7, 0.15, 0.15)  # λ: attention to the source, the frame before, itself
    pacm: bool = True
    dcam: bool = True
    mgdm: bool = True
    carried: bool = False  # masks are carried from the picture's by what DCAM attends to, not seen by cross-attention

    def __post_init__(self) -> None:
        if self.steps < 1 or self.inner < 1:
            raise ValueError(f"got {self.steps} steps and {self.inner} inner ones, expected one of each at least")
        if abs(sum(self.weights) - 1) > 1e-6 or min(self.weights) < 0:
            raise ValueError(f"weights: got {self.weights}, expected three that are not negative and add up to 1")


class Backbone(Protocol):
    """An image model that poses steer. Latents are ``(n, c, h, w)``, embeddings ``(n, l, d)``."""

    null: Tensor  # the embedding of no prompt, (1, l, d)

    def encode(self, picture: np.ndarray) -> Tensor:
        """uint8 ``(h, w, 3)`` -> latents ``(1, c, h, w)``."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Pictures uint8 ``(n, h, w, 3)``."""

    def features(self, poses: np.ndarray) -> Tensor:
        """Condition pictures uint8 ``(n, h, w, 3)`` -> what :meth:`predict` takes."""

    def predict(self, latents: Tensor, time: int, embedding: Tensor, features: Tensor) -> Tensor:
        """The network's answer at one time step, 0 to 999."""

    def split(self, latents: Tensor, answer: Tensor, time: int) -> tuple[Tensor, Tensor]:
        """(clean latents, noise) by an answer; linear in it."""

    def mix(self, clean: Tensor, noise: Tensor, time: int) -> Tensor:
        """Latents at a time step; -1 is the clean end."""

    def looking(self, look: Look) -> AbstractContextManager[None]:
        """Context manager: passes inside it attend as ``look`` says."""


@dataclass(frozen=True)
class Inversion:
    """What a picture was drawn from: latents of all time steps, from clean to noise, and an embedding for each step."""

    latents: list[Tensor]  # Z_0 … Z_T, (1, c, h, w)
    embeddings: list[Tensor]  # for the steps from T down to 1, (1, l, d)


@torch.no_grad()
def invert(backbone: Backbone, picture: np.ndarray, source: Tensor, embedding: Tensor, options: Options) -> Inversion:
    """DDIM inversion of a picture without guidance, then pose-aware inversion with it (Algorithm 1, lines 1 and 2).

    source: features of the picture's own pose. embedding: of the prompt, ``(1, l, d)``. Without PACM it stays as it is.
    """
    times, chain = levels(options), [backbone.encode(picture)]
    for here, there in zip(times[::-1], times[-2::-1], strict=False):  # from clean to noise
        at, asked = chain[-1], there if here < 0 else here  # what is clean has no time that the network knows
        clean, noise = backbone.split(at, backbone.predict(at, asked, embedding, source), asked)
        chain.append(backbone.mix(at if here < 0 else clean, noise, there))
    if not options.pacm:
        return Inversion(chain, [embedding] * options.steps)
    found, now, at = [], embedding, chain[-1]
    for number, (time, after) in enumerate(tqdm([*pairwise(times)], "pose-aware inversion", leave=False)):
        wanted, tuned = chain[-2 - number], nn.Parameter(now.clone())
        adam = torch.optim.Adam([tuned], options.rate * (1 - 0.5 * number / options.steps))
        for _ in range(options.inner):
            with torch.enable_grad():
                loss = F.mse_loss(step(backbone, at, time, after, tuned, source, options.guidance), wanted)
                (tuned.grad,) = torch.autograd.grad(loss, [tuned])
            adam.step()
        now = tuned.detach()
        at = step(backbone, at, time, after, now, source, options.guidance)
        found.append(now)
    return Inversion(chain, found)


def levels(options: Options) -> list[int]:
    """Time steps from noise to clean, the last one -1."""
    return (schedule.ddim_times(options.steps) - 1).tolist()


def step(
    backbone: Backbone, latents: Tensor, time: int, after: int, embedding: Tensor, features: Tensor, guidance: float
) -> Tensor:
    """One guided DDIM step from ``time`` to ``after``."""
    n = len(latents)
    both = torch.cat([embedding.expand(n, -1, -1), backbone.null.expand(n, -1, -1)])
    answer, null = backbone.predict(torch.cat([latents] * 2), time, both, torch.cat([features] * 2)).chunk(2)
    return backbone.mix(*backbone.split(latents, null + guidance * (answer - null), time), after)


@torch.no_grad()
def pose_aware(backbone: Backbone, inversion: Inversion, features: Tensor, options: Options) -> list[Tensor]:
    """An embedding for every frame and step, ``(f, l, d)`` each: Algorithm 1, lines 3 to 9.

    A frame is drawn under its own pose from the source's noise, and at each step the embedding takes one gradient step
    to where the source was. As in the algorithm the frame goes on from what it was before that step.
    """
    if len(features) > (most := AT_ONCE):  # frames do not share anything
        parts = (pose_aware(backbone, inversion, part, options) for part in features.split(most))
        return [torch.cat(each) for each in zip(*parts, strict=True)]
    frames = len(features)
    embeddings = [each.expand(frames, -1, -1) for each in inversion.embeddings]
    if not options.pacm:
        return embeddings
    at, found = inversion.latents[-1].expand(frames, -1, -1, -1), []
    for number, (time, after) in enumerate(tqdm([*pairwise(levels(options))], "pose-aware embeddings", leave=False)):
        wanted, tuned = inversion.latents[-2 - number], embeddings[number].clone().requires_grad_()
        with torch.enable_grad():
            made = step(backbone, at, time, after, tuned, features, options.guidance)
            loss = (made - wanted).square().mean((1, 2, 3)).sum()  # frames do not share anything
            (slope,) = torch.autograd.grad(loss, [tuned])
        length = slope.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-12)
        reach = tuned.detach().flatten(1).norm(dim=1)[:, None, None]
        found.append(tuned.detach() - options.frame_rate * reach * slope / length)
        at = made.detach()
    return found


@torch.no_grad()
def animate(
    backbone: Backbone,
    picture: np.ndarray,
    source: np.ndarray,
    poses: np.ndarray,
    embedding: Tensor,
    options: Options | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Animate one picture.

    Args:
        picture: uint8 ``(h, w, 3)``. source: its own pose as a condition picture like it. poses: the frames',
            uint8 ``(f, h, w, 3)``. embedding: of the prompt, ``(1, l, d)``. mask: where the character is in the
            picture, bool ``(h, w)``; None: as cross-attention sees it. Masks come from the steps before: the first of
            them is drawn without.

    Returns:
        Frames uint8 ``(f, h, w, 3)``; and the masks that attention gave them, bool at the latents' size
        ``(f, h', w')``, None without MGDM.

    Raises:
        ValueError: pictures of another type or size, or masks are to be carried and there is none, or no DCAM.
    """
    options = options or Options()
    for name, given, dims in (("picture", picture, 3), ("source", source, 3), ("poses", poses, 4)):
        if given.dtype != np.uint8 or given.ndim != dims or given.shape[-3:] != picture.shape:
            expected = f"uint8 pictures of one size, {'(h, w, 3)' if dims == 3 else '(f, h, w, 3)'}"
            raise ValueError(f"{name}: got {given.dtype} {given.shape}, expected {expected}")
    if options.mgdm and options.carried and (mask is None or not options.dcam):
        raise ValueError(
            "carried: got no mask of the picture, or no dcam, expected both: masks come from one by the other"
        )
    if mask is not None and (mask.shape != picture.shape[:2] or mask.dtype != bool):
        raise ValueError(f"mask: got {mask.dtype} {mask.shape}, expected bool {picture.shape[:2]} like the picture")
    own, features = backbone.features(source[None]), backbone.features(poses)
    inversion = invert(backbone, picture, own, embedding, options)
    return draw(backbone, inversion, own, features, pose_aware(backbone, inversion, features, options), options, mask)


@torch.no_grad()
def draw(
    backbone: Backbone,
    inversion: Inversion,
    source: Tensor,
    features: Tensor,
    embeddings: list[Tensor],
    options: Options,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames from the source's noise, all at once, that attend to the source and to each other: the last part.

    source, features: of the poses of picture and frames. embeddings: of :func:`pose_aware`. mask, returns: as in
    :func:`animate`.
    """
    features = torch.cat([source, features])
    latents = inversion.latents[-1].expand(len(features), -1, -1, -1)
    size, look = latents.shape[-2:], Look(options.weights if options.dcam else None, groups=2)
    given = None
    if mask is not None:
        given = resized(torch.from_numpy(mask)[None].to(latents.device), size[0] * size[1]).reshape(1, *size)
    if options.mgdm and options.carried:
        look.source = given
    with backbone.looking(look):
        for number, (time, after) in enumerate(tqdm([*pairwise(levels(options))], "frames", leave=False)):
            if options.mgdm and look.maps:  # from the steps before this one
                carried = options.carried
                look.masks = (average(look.carried, size) >= 0.5).float() if carried else seen_masks(look.maps, size)
                if given is not None:
                    look.masks[:1] = given
            each = torch.cat([inversion.embeddings[number], embeddings[number]])
            latents = step(backbone, latents, time, after, each, features, options.guidance)
    seen = look.masks[1:].bool().cpu().numpy() if look.masks is not None else None
    return backbone.decode(latents[1:]), seen


def transition(source: Tensor, targets: Tensor, between: int = 4) -> Tensor:
    """PATA: target poses moved and scaled to where the character stands, and ``between`` poses on the way to them.

    One similarity for the whole sequence makes the neck of its first pose the source's, and its trunk as long. The
    frames between are interpolated point by point.

    Args:
        source: points of the picture, ``(18, 3)``: x, y, confidence. targets: ``(f, 18, 3)``.

    Returns:
        ``(between + f, 18, 3)``. A point that one end doesn't see is not seen on the way.

    Raises:
        ValueError: neck or hips are not seen in the source or the first target, or ``between`` is negative.
    """
    if between < 0:
        raise ValueError(f"between: got {between}, expected 0 or more")
    neck, hips = pose.POINTS.index("neck"), [pose.POINTS.index(name) for name in ("Rhip", "Lhip")]
    for name, points in {"source": source, "first target": targets[0]}.items():
        if (points[[neck, *hips], 2] < pose.CONFIDENT).any():
            raise ValueError(f"{name}: got no neck or hips, expected the trunk to be seen: choose another picture")
    long = [(points[hips, :2].mean(0) - points[neck, :2]).norm() for points in (source, targets[0])]
    moved = targets.clone()
    moved[..., :2] = source[neck, :2] + (targets[..., :2] - targets[0, neck, :2]) * long[0] / long[1].clamp(min=1e-6)
    share = torch.arange(1, between + 1)[:, None, None] / (between + 1)
    way = torch.lerp(source.expand(between, -1, -1), moved[:1].expand(between, -1, -1), share.to(source.dtype))
    way[..., 2] = torch.minimum(source[:, 2], moved[0, :, 2])
    return torch.cat([way, moved])
