"""Context encoders: from the reference picture to the token that cross-attention reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.config import ModelConfig
from rainlab.files import root


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
    path = root() / cfg.context_path
    if not cfg.context_path or not path.is_dir():
        raise FileNotFoundError(
            f"CLIP vision tower: {cfg.context_path!r} is not there. Put the image_encoder folder of "
            "sd-image-variations in that place (README, 'Paper scale') or choose model.context='small'"
        )
    from transformers import CLIPVisionModelWithProjection

    return ClipContext(CLIPVisionModelWithProjection.from_pretrained(path, local_files_only=True))
