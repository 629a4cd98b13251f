"""Held-out evaluation: every method sees the same clips, references and drivers, and is measured the same way.

A method's numbers are a run of their own, so that all tables read the same ones. Characters and motions of the test
split were never seen in training. The reference is a clip's first frame, the driver the condition pictures from
``test_gap`` frames later on: in a stream the reference is old, and close to it copying it would be hard to beat.
Streams are measured in full flow (:func:`stream`), because the clips are hardly longer than the window.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rainlab import data, losses, metrics, runs, schedule, stages
from rainlab.config import Preset, StreamConfig, override
from rainlab.model import RAIN, guided_v, to_signed, to_uint8, to_unit
from rainlab.stream import Stream
from rainlab.unet import TemporalAttention, UNet

VERSION = 3  # raised when a method's numbers would come out differently
METHODS = {
    "copy": "copying the reference",
    "autoencoder": "autoencoder alone (ceiling)",
    "wrong": "RAIN, wrong reference",
    "undistilled": "RAIN before distillation, 4 steps",
    "rain": "RAIN",
}
WITHOUT_MODEL = ("copy", "autoencoder")
ABLATIONS = {
    "K = 16": {},
    "K = 8": {"stream.window": 8},
    "K = 16, causal mask": {"stream.causal": True},
}
"""Section 5.4: what is varied, as overrides of a preset; the first is the paper's setting."""
SIDE_BY_SIDE = 8  # streams in one batch
STANDING_STILL = ("undistilled", "rain")  # methods whose flicker is measured, by a frozen pose,
STILL = 16  # in that many clips: it differs little from clip to clip


@dataclass(frozen=True)
class HeldOut:
    """Test clips as arrays: reference uint8 ``(b, h, w, 3)``, the driven frames and their condition uint8
    ``(b, f, h, w, 3)``, mask bool ``(b, f, h, w)`` or None."""

    reference: np.ndarray
    frames: np.ndarray
    condition: np.ndarray
    mask: np.ndarray | None


def held_out(preset: Preset, clips: int | None = None) -> HeldOut:
    """The test clips of a preset, or the first ``clips`` of them."""
    source, gap = data.clips_of(preset.data, "test"), preset.data.test_gap
    chosen = source[:clips]
    mask = None if chosen[0].mask is None else np.stack([clip.mask[gap:] for clip in chosen])
    frames, condition = (np.stack([getattr(clip, x)[gap:] for clip in chosen]) for x in ("frames", "condition"))
    return HeldOut(np.stack([clip.frames[0] for clip in chosen]), frames, condition, mask)


def stream_options(stream: StreamConfig, guided: bool = True) -> dict:
    """Keyword arguments of :class:`rainlab.stream.Stream` for a configuration."""
    return asdict(stream) | ({} if guided else {"guidance": None})


def generate(preset: Preset, method: str, held: HeldOut, model: RAIN | None = None) -> np.ndarray:
    """Frames of a method for the held-out clips, uint8 ``(b, f, h, w, 3)``.

    ``method``: a key of METHODS; "wrong" gives every driver the next clip's reference (a fixed permutation).
    ``model`` saves loading it again. Raises FileNotFoundError if weights are missing.
    """
    _check(method)
    if method == "copy":
        return np.repeat(held.reference[:, None], held.frames.shape[1], axis=1)
    model = model or load(preset, method)
    if method == "autoencoder":
        with torch.no_grad():
            signed = (to_signed(torch.from_numpy(clip)) for clip in held.frames)
            return np.stack([to_uint8(model.autoencoder.decode(model.autoencoder.encode(x))).numpy() for x in signed])
    reference = np.roll(held.reference, -1, axis=0) if method == "wrong" else held.reference
    return stream(model, reference, held.condition, preset.stream)


def stream(model: RAIN, reference: np.ndarray, condition: np.ndarray, cfg: StreamConfig) -> np.ndarray:
    """Frames of finite clips as they come out in the middle of an endless stream; some clips run side by side.

    The driver is continued at both ends by its mirror image, by K - K/p conditions: every frame returned spent its
    whole life in a full window, whatever K is. Soft start and drain are not measured.

    Args:
        reference: uint8 ``(b, h, w, 3)``. condition: uint8 ``(b, f, h, w, 3)``.

    Returns:
        uint8 frames like ``condition``.
    """
    options = stream_options(cfg, guided=bool(model.denoising_unet.cfg.guidance_dim))
    length, size = condition.shape[1], cfg.window // cfg.groups
    around = cfg.window - size
    driver = mirrored(length, around, around + -length % size)
    films = []
    for first in tqdm(range(0, len(reference), SIDE_BY_SIDE), "streams", leave=False):
        part = slice(first, first + SIDE_BY_SIDE)
        running = Stream(model, batch=len(reference[part]), **options)
        running.reference(reference[part])
        frames = running.push([condition[part, i] for i in driver])
        films.append(np.stack(frames[around : around + length], axis=1))
    return np.concatenate(films)


def mirrored(length: int, before: int, behind: int) -> np.ndarray:
    """Indices -before … length + behind - 1 of a clip that runs back and forth: … 2 1 0 1 2 … n-2 n-1 n-2 …."""
    return np.pad(np.arange(length), (before, behind), mode="reflect")


def load(preset: Preset, method: str) -> RAIN:
    """The networks a method needs."""
    return stages.load_model(preset, _stage(method))


def _stage(method: str) -> str:
    return {"autoencoder": "autoencoder", "undistilled": "stage2"}.get(method, "distill3d")


def _check(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, expected one of {list(METHODS)}")


def describe(preset: Preset, method: str) -> tuple[dict, dict[str, str]]:
    """(config, inputs) that determine a method's numbers."""
    _check(method)
    clips = data.clips_of(preset.data, "test").fingerprint() | {"gap": preset.data.test_gap}
    config = {"preset": preset.name, "method": method, "data": clips}
    if method in WITHOUT_MODEL:
        return config, {} if method == "copy" else {"autoencoder": stages.run_id(preset, "autoencoder")}
    return config | {"stream": asdict(preset.stream)}, {"model": stages.run_id(preset, _stage(method))}


def measure(preset: Preset, method: str, record: bool = False) -> runs.Run:
    """The run that holds a method's numbers.

    Args:
        record: compute and record it in ``runs/`` unless that is done; False reads what was recorded, here or in the
            repository, and raises FileNotFoundError if there is nothing.

    Metrics: all of :data:`rainlab.metrics.MEASURES`; for STANDING_STILL also ``flicker``, of streams driven by one
    frozen pose for as many frames as a test clip has, ``flicker_border_ratio``, and ``flicker_step``, the same change
    step by step (label ``step``: index of the later frame); labelled ``method``. The per-clip values stay in
    ``values.json``.
    """
    config, inputs = describe(preset, method)
    if not record:
        return _recorded("evaluate", config, inputs)
    run = runs.open_run("evaluate", config, VERSION, inputs)
    with run.lock():
        return run if run.finished else _measure(run, preset, method)


def _recorded(name: str, config: dict, inputs: dict[str, str]) -> runs.Run:
    """The finished run, here or published with the repository."""
    id = runs.run_id(name, config, VERSION, inputs)
    try:
        return runs.load(id)
    except FileNotFoundError as error:
        which = f"preset {config['preset']!r}" + (f", method {config['method']!r}" if "method" in config else "")
        raise FileNotFoundError(f"no recorded {name} for {which} ({id}): make it with `make tables`") from error


def _measure(run: runs.Run, preset: Preset, method: str) -> runs.Run:
    held = held_out(preset)
    model = None if method == "copy" else load(preset, method)
    frames = generate(preset, method, held, model)
    values = metrics.evaluate(frames, held.frames, held.mask)
    if method in STANDING_STILL:
        frozen = np.repeat(held.condition[:STILL, :1], held.frames.shape[1], axis=1)
        still = stream(model, held.reference[:STILL], frozen, preset.stream)
        size = preset.stream.window // preset.stream.groups
        values["flicker"] = metrics.flicker(still)
        if size > 1:
            values["flicker_border_ratio"] = metrics.border_ratio(still, size)
        for step in range(1, still.shape[1]):
            change = metrics.bootstrap(metrics.flicker(still[:, step - 1 : step + 1]))
            run.record("flicker_step", *change, metrics.PROTOCOL, method=method, step=step)
    for name, value in values.items():
        run.record(name, *metrics.bootstrap(value), metrics.PROTOCOL, method=method)
    runs.write_json(run.path / "values.json", {name: value.tolist() for name, value in values.items()})
    np.save(run.path / "frames.npy", frames)
    return run.finish()


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
    bank, context = model.look(to_signed(torch.from_numpy(reference)))
    pose = model.pose_guider(to_unit(torch.from_numpy(condition)))
    b, f, _, h, w = pose.shape
    mask = losses.causal_mask(f) if causal else None

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        if guidance is None:
            return model.denoising_unet(latents, timesteps, context, pose, None, bank, mask)
        return guided_v(model.denoising_unet, latents, timesteps, context, pose, bank, guidance, mask)

    shape = (b, f, model.autoencoder.latent_channels, h, w)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return to_uint8(model.autoencoder.decode(schedule.ddim(predict, noise, steps))).numpy()


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
            level = int(times[slot]) * groups // schedule.TRAIN_TIMESTEPS
            picture = stream.model.autoencoder.decode(latents[:, slot : slot + 1])
            film[tick, level] = to_uint8(picture)[0, 0].numpy()
    return film


@torch.no_grad()
def temporal_attention(unet: UNet, *inputs, **options) -> dict[str, np.ndarray]:
    """Who looks at whom: attention weights over the frames in one forward pass of the network.

    Arguments are those of :meth:`rainlab.unet.UNet.forward`. Returns layer name -> ``(f, f)``, the mean over heads and
    places; row = the frame that looks, column = the frame looked at, rows sum to 1.
    """
    maps: dict[str, np.ndarray] = {}

    def watch(name: str) -> Callable:
        def hook(layer: TemporalAttention, received: tuple) -> None:
            maps[name] = layer.weights(*received).mean((0, 1)).numpy()

        return hook

    layers = {n: layer for n, layer in unet.named_modules() if isinstance(layer, TemporalAttention)}
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        unet(*inputs, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return maps


PAIRS = (("rain", "copy"), ("rain", "wrong"), ("rain", "undistilled"))


def compare(preset: Preset, record: bool = False) -> runs.Run:
    """Paired differences between methods on the same clips (Table 1): metric ``<measure>``, labels a and b, a - b."""
    inputs = {method: measure(preset, method, record).id for method in METHODS}
    config = {"preset": preset.name, "pairs": [list(pair) for pair in PAIRS]}
    if not record:
        return _recorded("compare", config, inputs)
    run = runs.open_run("compare", config, VERSION, inputs)
    if not run.finished:
        files = {method: runs.load(id).path / "values.json" for method, id in inputs.items()}
        values = {method: json.loads(file.read_text("utf-8")) for method, file in files.items()}
        for a, b in PAIRS:
            for name in ("psnr", "ssim", "psnr_fg", "ssim_fg", "tde", "sharpness_error"):
                run.record(name, *metrics.paired(values[a][name], values[b][name]), metrics.PROTOCOL, a=a, b=b)
        run.finish()
    return run


def ablations(preset: Preset, record: bool = False) -> dict[str, runs.Run]:
    """Label -> run of method "rain" for each of ABLATIONS (Table 3)."""
    return {label: measure(override(preset, change), "rain", record) for label, change in ABLATIONS.items()}


def motion_gain(preset: Preset, repeats: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Held-out v-loss per clip on staircase time steps, with and without the motion modules of stage 2, ``(n,)`` each.

    Same clips, noise and time steps for both; nothing is dropped.
    """
    clips = stages.training_set(preset, "stage2", split="test")
    means = []
    for stage in ("stage2", "stage1"):
        model = stages.load_model(preset, stage)
        per_sample = losses.sample_losses(model, preset, losses.staircase_times, dropout=0.0)
        means.append(losses.validate(per_sample, clips, preset.stream.window, True, repeats=repeats).numpy())
    return means[0], means[1]
