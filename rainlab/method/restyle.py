"""The reference of a style transfer: a picture redrawn in another style, its depth kept (section 5.3).

SDEdit (Meng et al., arXiv 2108.01073) adds noise to the picture and lets Stable Diffusion, told a style in words, take
it away again; a ControlNet (Zhang et al., arXiv 2302.05543) holds it to the picture's depth. Both run through
diffusers, from folders on disk. RAIN then animates the redrawn picture by the depth of every frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rainlab.method import pretrained

SD, CONTROLS = "stable-diffusion-v1-5", {"depth": "control_v11f1p_sd15_depth", "openpose": "control_v11p_sd15_openpose"}
ORIGIN = {SD: f"stable-diffusion-v1-5/{SD}"} | {name: f"lllyasviel/{name}" for name in CONTROLS.values()}


def load(
    sd: str | Path | None = None,
    control: str | Path | None = None,
    device: str = "cpu",
    kind: str = "depth",
    dtype: torch.dtype | None = None,
) -> Any:
    """The pipeline, from two folders as diffusers saves them; by default in ``weights/`` and named as published.

    ``kind``: of ControlNet, a key of CONTROLS. ``dtype``: None for fp16 on a GPU and fp32 else. Only safetensors are
    read, and nothing is downloaded.

    Raises:
        FileNotFoundError: a folder is not there, naming where it is published.
        ValueError: it holds no model that diffusers can read, or pickled weights alone.
    """
    from diffusers import ControlNetModel, StableDiffusionControlNetImg2ImgPipeline

    if kind not in CONTROLS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(CONTROLS)}")
    steered = CONTROLS[kind]
    folders = {name: Path(given or pretrained.folder() / name) for name, given in ((SD, sd), (steered, control))}
    for name, folder in folders.items():
        if not folder.is_dir():
            got = f"put the folder of {ORIGIN[name]} (huggingface.co, safetensors) there, or give another path"
            raise FileNotFoundError(f"weights: {folder} is not there; {got}")
    dtype = dtype or (torch.float16 if torch.device(device).type == "cuda" else torch.float32)
    options = {"dtype": dtype, "local_files_only": True, "use_safetensors": True}
    try:
        net = ControlNetModel.from_pretrained(folders[steered], **options)
        pipe = StableDiffusionControlNetImg2ImgPipeline.from_pretrained(
            folders[SD], controlnet=net, safety_checker=None, requires_safety_checker=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        names = " and ".join(str(folder) for folder in folders.values())
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise ValueError(
            f"got folders that diffusers can't read ({reason}), expected Stable Diffusion and a ControlNet with "
            f"safetensors in {names}; get them again"
        ) from error
    pipe.set_progress_bar_config(desc="SDEdit", leave=False)
    return pipe.to(device)


def restyle(
    pipe: Any, picture: np.ndarray, depth: np.ndarray, style: str, strength: float = 0.6, guidance: float = 7.5,
    steps: int = 20, seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """A picture in another style.

    Args:
        pipe: of :func:`load`. picture: uint8 ``(h, w, 3)``, both multiples of 8. depth: inverse depth as a condition
            picture, uint8 like it (:func:`rainlab.data.detect.depth_estimator`, or a scene's truth).
        style: the style in words. strength: share of the noise that is added, above 0 to 1: more of it is more style,
            and less of the picture. guidance: of the words, classifier-free.

    Returns:
        uint8 ``(h, w, 3)``. The same seed gives the same picture on one machine.

    Raises:
        ValueError: pictures of different or odd sizes, or a strength outside its range.
    """
    from PIL import Image

    for name, given in {"picture": picture, "depth": depth}.items():
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or given.shape != picture.shape:
            raise ValueError(f"{name}: got {given.dtype} {given.shape}, expected uint8 (h, w, 3), both of one size")
    height, width = picture.shape[:2]
    if height % 8 or width % 8:
        raise ValueError(f"picture: got {height}×{width}, expected multiples of 8; crop or resize it")
    if not 0 < strength <= 1 or round(steps * strength) < 1:
        raise ValueError(f"got strength {strength} and {steps} steps, expected 0 < strength <= 1 and one step at least")
    made = pipe(
        prompt=style, image=Image.fromarray(picture), control_image=Image.fromarray(depth), height=height, width=width,
        strength=strength, guidance_scale=guidance, num_inference_steps=steps, output_type="np",
        generator=torch.Generator("cpu").manual_seed(seed),
    )  # fmt: skip
    return (made.images[0] * 255).round().astype(np.uint8)
