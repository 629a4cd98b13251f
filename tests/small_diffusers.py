"""Stable Diffusion and a ControlNet in published form, a few thousand times smaller and random."""

import json
from pathlib import Path

import torch


def write_pipeline(place: Path) -> tuple[Path, Path]:
    """The folders of both, as diffusers saves them. Its words are a, b, c and ab."""
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        StableDiffusionControlNetImg2ImgPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = ["a", "b", "c", "ab</w>", "a</w>", "b</w>", "c</w>", "<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (place / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    tokenizer = CLIPTokenizer(str(place / "vocab.json"), str(place / "merges.txt"), model_max_length=16)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes))
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 32,
              "attention_head_dim": 2}  # fmt: skip
    unet = UNet2DConditionModel(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **blocks)  # fmt: skip
    net = ControlNetModel(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                          conditioning_embedding_out_channels=(8, 8, 8, 8), **blocks)  # fmt: skip
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "controlnet_" in name or "conv_out" in name:  # published ones begin at zero
                parameter.normal_(std=0.3)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **levels)
    pipe = StableDiffusionControlNetImg2ImgPipeline(vae, text, tokenizer, unet, net, DDIMScheduler(), None, None,
                                                    requires_safety_checker=False)  # fmt: skip
    pipe.save_pretrained(place / "sd")
    net.save_pretrained(place / "control")
    return place / "sd", place / "control"
