"""Ways to make frames of conditions with one network: what Table 2 compares, and what it counts."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from rainlab.baselines.live2diff import Live2Diff
from rainlab.baselines.stream_diffusion import StreamDiffusion
from rainlab.config import Preset
from rainlab.data.clips import Clip
from rainlab.method import sampling
from rainlab.method.export import OnnxTick, to_onnx
from rainlab.method.fast import Product
from rainlab.method.guider import PoseGuider
from rainlab.method.rain import RAIN
from rainlab.method.stream import Stream
from rainlab.method.tick import TickStream
from rainlab.method.unet import UNet
from rainlab.method.vae import TAESDV
from rainlab.training.optim import native_bf16


def streams(preset: Preset) -> dict[str, dict[str, Any]]:
    """Options of the streams that are timed: the preset's own, half its window, twice its calls between two pops."""
    own = preset.stream
    changed = (own, replace(own, window=own.window // 2), replace(own, steps_per_group=2 * own.steps_per_group))
    return {f"stream, K = {cfg.window}, N = {cfg.steps_per_group}": asdict(cfg) for cfg in changed}


@dataclass(frozen=True)
class Way:
    """A way to make frames of conditions. method: which of the ways does the same arithmetic, plainly."""

    call: Callable[[list[np.ndarray]], Any]
    method: str
    latency_frames: int  # conditions that must have come before the first frame
    start: float = 0.0  # seconds until it could begin, where that is compiling or exporting


def ways(preset: Preset, clip: Clip, steps: int = 20) -> dict[str, Way]:
    """DDIM, the streams, and the streaming baselines, plain and fast."""
    sampled = RAIN.build(preset, motion=True, guidance=False).eval()
    video, image = (RAIN.build(preset, motion=motion, guidance=True) for motion in (True, False))
    reference, k = clip.frames[:1], preset.stream.window

    def ddim(guidance: float | None, conditions: list[np.ndarray]) -> None:
        sampling.sample(sampled, reference, np.stack(conditions)[None], steps, guidance)

    made = {}
    for guidance, name in {None: "", preset.stream.guidance: ", guided"}.items():
        label = f"DDIM, {steps} steps{name}"
        made[label] = Way(partial(ddim, guidance), label, k)
    options = streams(preset)
    own = next(iter(options))
    kinds: dict[str, tuple[Callable, str]] = {name: (partial(Stream, video, **o), name) for name, o in options.items()}
    kinds[f"{own}, fast"] = partial(Stream, video, fast=True), own
    if native_bf16(torch.device("cpu")):  # elsewhere it is imitated, slowly
        kinds[f"{own}, bf16"] = partial(Stream, deepcopy(video).to(torch.bfloat16)), own
    cached = partial(Live2Diff, video, length=k, anchor=k // 2)
    for name, kind in {"StreamDiffusion": partial(StreamDiffusion, image), "Live2Diff": cached}.items():
        for label, look in {name: False, f"{name} with reference": True}.items():
            given = partial(kind, levels=preset.stream.groups, look=look)
            kinds[label], kinds[f"{label}, fast"] = (given, label), (partial(given, fast=True), label)
    for label, (kind, method) in kinds.items():
        stream = past_its_start(kind(), clip)
        made[label] = Way(stream.push, method, stream.latency_frames)
    return made


def late_ways(preset: Preset, clip: Clip) -> dict[str, Way]:
    """The stream compiled by torch, and exported to onnxruntime where that is installed; with the time it takes."""
    from torch._inductor import config as inductor

    model, own = RAIN.build(preset, motion=True, guidance=True), next(iter(streams(preset)))
    made: dict[str, Way] = {}
    with tempfile.TemporaryDirectory() as folder, inductor.patch(force_disable_caches=True):

        def exported() -> TickStream:
            return TickStream(model, run=OnnxTick(to_onnx(model, f"{folder}/tick.onnx", preset.data.size)))

        kinds: dict[str, Callable] = {f"{own}, compiled": partial(TickStream, model, how="compiled")}
        if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
            kinds[f"{own}, exported (onnxruntime)"] = exported
        for label, kind in kinds.items():
            start = time.perf_counter()
            stream = past_its_start(kind(), clip)
            made[label] = Way(stream.push, own, stream.latency_frames, time.perf_counter() - start)
    return made


def past_its_start(stream: Any, clip: Clip) -> Any:
    """The stream with the clip's reference and a full window."""
    stream.reference(clip.frames[0])
    stream.push([clip.condition[0]] * len(clip.condition))
    return stream


def flops(call: Callable[[], Any]) -> int:
    """Floating-point operations of its products, convolutions and attention, a multiplication and addition for two."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        call()
    return counter.get_total_flops()


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Operations by shapes of the processor's kernel of attention, which PyTorch's counter does not know."""


def work_of_a_pass(preset: Preset) -> dict[str, float]:
    """Floating-point operations of one frame's pass through the network, by part, and of its guider and decoder.

    The decoder is TAESDV, the paper's; nothing is computed, so that any geometry can be counted anywhere.
    """
    k, cfg, channels = preset.stream.window, preset.model, preset.autoencoder.latent_channels
    size = preset.data.size
    h, w = (n // preset.autoencoder.factor for n in size)
    with torch.device("meta"), torch.no_grad():
        networks = {motion: UNet(cfg.unet(channels, motion=motion, guidance=True)) for motion in (True, False)}
        guider, decoder = PoseGuider(cfg.channels[0], cfg.guider_widths), TAESDV()
        token = torch.zeros(1, 1, cfg.cross_attention_dim)
        bank = UNet(cfg.unet(channels, out=False)).bank(torch.zeros(1, channels, h, w), token)
        given = (torch.zeros(1, k, channels, h, w), torch.zeros(1, k, dtype=torch.long), token,
                 torch.zeros(1, k, cfg.channels[0], h, w), torch.zeros(1, cfg.guidance_dim))  # fmt: skip
        whole, still, alone = (
            flops(partial(networks[motion], *given, reference)) / k
            for motion, reference in ((True, bank), (False, bank), (False, None))
        )
        pictures = torch.zeros(1, k, 3, *size)
        return {
            "2D network": alone,
            "attention to the reference": still - alone,
            "motion modules": whole - still,
            "guider": flops(partial(guider, pictures)) / k,
            "decoder": flops(partial(decoder.decode_next, torch.zeros(1, k, 4, size[0] // 8, size[1] // 8))) / k,
        }


def ceiling(size: int = 1536, repetitions: int = 9) -> tuple[float, float, float]:
    """Floating-point operations a second of a large product as the fast stream makes them: median, quartiles."""
    x, product = torch.randn(size, size), Product(torch.randn(size, size), None, packed=True)
    product(x)
    seconds = np.array([seconds_of(partial(product, x)) for _ in range(repetitions)])
    return middle(2 * size**3 / seconds)


def seconds_of(call: Callable[[], Any]) -> float:
    """What a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def middle(samples: np.ndarray) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = np.quantile(samples, [0.25, 0.5, 0.75])
    return float(median), float(low), float(high)
