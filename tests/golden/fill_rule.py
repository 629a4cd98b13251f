"""Weights and inputs of the goldens: a hash of the name, bit-exact on any machine, no random library involved."""

import hashlib
import math
import zlib

import numpy as np
import torch


def uniform(name: str, n: int) -> np.ndarray:
    """n float64 values in [-1, 1) with 24 bits, from splitmix64((crc32(name) << 32) + i)."""
    with np.errstate(over="ignore"):
        x = (np.uint64(zlib.crc32(name.encode())) << np.uint64(32)) + np.arange(n, dtype=np.uint64)
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) - 2.0**23) / 2.0**23


def image(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 picture of noise."""
    return ((uniform(name, math.prod(shape)) + 1) * 128).astype(np.uint8).reshape(shape)


def parameter(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    u = uniform(key, math.prod(shape))
    if len(shape) >= 2:
        gain = 1.6 if key.endswith(("to_q.weight", "to_k.weight")) else 1.0
        value = u * (gain * math.sqrt(3.0 / math.prod(shape[1:])))
    elif key.endswith("weight"):
        value = 1.0 + 0.25 * u
    else:
        value = 0.1 * u
    return torch.from_numpy(value.astype(np.float32)).reshape(shape)


@torch.no_grad()
def fill(model: torch.nn.Module, prefix: str) -> str:
    """Fill every parameter by its key; returns the sha256 of keys and values, to compare with weight_sha256.json."""
    digest = hashlib.sha256()
    for key, target in sorted(model.named_parameters()):
        value = parameter(f"{prefix}/{key}", tuple(target.shape))
        target.copy_(value)
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
