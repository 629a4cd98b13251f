"""AnimateAnyone (Hu et al., arXiv 2311.17117): a whole clip from noise, window by window, 20 steps with guidance.

RAIN's networks are AnimateAnyone's; what differs is time. Stage 2 is trained with one noise level for all frames of a
window (``stage2.times`` = "uniform"), and a clip longer than the window is denoised in windows that overlap, whose
predictions are averaged in every step. So all of a clip has to be there before its first frame can come out.

Differs from the public re-implementation (Moore-AnimateAnyone) where a clip does not divide into windows: there the
last one goes on at the clip's beginning, here it is moved back to end with the clip.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rainlab.data import pose
from rainlab.method import schedule
from rainlab.method.rain import RAIN, guided_v, to_signed, to_uint8, to_unit

STEPS, OVERLAP = 20, 4
GUIDANCE = 3.5  # classifier-free, the public code's


def windows(frames: int, length: int, overlap: int = OVERLAP) -> list[slice]:
    """Windows of ``length`` frames that cover a clip, each beginning ``length - overlap`` behind the one before.

    A clip shorter than a window is one. Raises ValueError for an overlap that leaves no way forward.
    """
    if not 0 <= overlap < length:
        raise ValueError(f"overlap: got {overlap}, expected at least 0 and less than the window's {length} frames")
    starts = [*range(0, max(frames - length, 0), length - overlap), max(frames - length, 0)]
    return [slice(start, min(start + length, frames)) for start in dict.fromkeys(starts)]


@torch.no_grad()
def animate(
    model: RAIN,
    reference: np.ndarray,
    condition: np.ndarray,
    window: int = 16,
    overlap: int = OVERLAP,
    steps: int = STEPS,
    guidance: float | None = GUIDANCE,
    seed: int = 0,
) -> np.ndarray:
    """Frames of clips of any length: DDIM over overlapping windows.

    Args:
        model: after stage 2, without ω embedding. reference: uint8 ``(b, h, w, 3)``. condition: uint8
            ``(b, f, h, w, 3)``. guidance: strength of classifier-free guidance; None for none.

    Returns:
        uint8 frames like ``condition``.
    """
    unet = model.denoising_unet
    device = unet.conv_in.weight.device
    bank, context = model.look(to_signed(torch.from_numpy(reference).to(device)))
    features = model.pose_guider(to_unit(torch.from_numpy(condition).to(device)))
    b, f, _, h, w = features.shape
    parts = windows(f, window, overlap)
    counts = torch.zeros(f, device=device)
    for part in parts:
        counts[part] += 1

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        total = torch.zeros_like(latents)
        for part in parts:
            given = latents[:, part], timesteps[:, part], context, features[:, part]
            total[:, part] += unet(*given, None, bank) if guidance is None else guided_v(unet, *given, bank, guidance)
        return total / counts[:, None, None, None]

    shape = (b, f, model.autoencoder.latent_channels, h, w)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    return to_uint8(model.autoencoder.decode(schedule.ddim(predict, noise, steps))).cpu().numpy()


def retarget(keypoints: Tensor, reference: Tensor, source: Tensor | None = None) -> Tensor:
    """A driver's body points with the limb lengths of the character to be animated, standing where that one stands.

    Every limb keeps its direction and is lengthened as the character's is compared with the driver's own; the way of
    the neck is scaled like the trunk. Limbs that are not seen in both are scaled like the trunk, too.

    Args:
        keypoints: of the driver, ``(f, 18, 3)``: x, y, confidence (:mod:`rainlab.data.pose`). reference: of the
            character's picture, ``(18, 3)``. source: of the driver, in the posture of the reference; its first frame.

    Raises:
        ValueError: the trunk (neck and hips) is not seen in reference or source.
    """
    source = keypoints[0] if source is None else source
    neck, hips = pose.POINTS.index("neck"), [pose.POINTS.index(name) for name in ("Rhip", "Lhip")]
    for name, points in {"reference": reference, "source": source}.items():
        if (points[[neck, *hips], 2] < pose.CONFIDENT).any():
            raise ValueError(f"{name}: got no neck or hips, expected the trunk to be seen: choose another picture")

    def length(points: Tensor, a: int, b: int) -> Tensor:
        return (points[b, :2] - points[a, :2]).norm()

    trunk = sum(length(reference, neck, hip) for hip in hips) / sum(length(source, neck, hip) for hip in hips)
    moved = keypoints.clone()
    moved[:, neck, :2] = reference[neck, :2] + trunk * (keypoints[:, neck, :2] - source[neck, :2])
    for a, b in pose.LIMBS:  # from the neck outwards
        seen = min(float(points[end, 2]) for points in (reference, source) for end in (a, b)) >= pose.CONFIDENT
        scale = length(reference, a, b) / length(source, a, b).clamp(min=1e-6) if seen else trunk
        moved[:, b, :2] = moved[:, a, :2] + scale * (keypoints[:, b, :2] - keypoints[:, a, :2])
    return moved
