"""Held-out evaluation: every method sees the same clips, references and drivers, and is measured the same way.

A method's numbers are a run of their own, so that all tables read the same ones. Characters and motions of the test
split were never seen in training. The reference is a clip's first frame, the driver the condition pictures from
``test_gap`` frames later on: in a stream the reference is old, and close to it copying it would be hard to beat.
Streams are measured in full flow (:func:`rainlab.method.sampling.stream`): the clips are hardly longer than the window.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from functools import partial

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from rainlab import runs
from rainlab.baselines import animate_anyone, image_models, pose_animate
from rainlab.baselines.live2diff import Live2Diff
from rainlab.baselines.stream_diffusion import StreamDiffusion
from rainlab.config import Preset, identity, override
from rainlab.data import dataset
from rainlab.files import write_json
from rainlab.measure import features, metrics
from rainlab.method.rain import RAIN, to_signed, to_uint8
from rainlab.method.sampling import SolverStream, mirrored, stream
from rainlab.training import stages
from rainlab.training.optim import native_bf16

VERSION = 4  # raised when a method's numbers would come out differently
METHODS = {
    "copy": "copying the reference",
    "autoencoder": "autoencoder alone (ceiling)",
    "wrong": "RAIN, wrong reference",
    "undistilled": "RAIN before distillation, 4 steps",
    "flat": "RAIN without motion modules",
    "rain": "RAIN",
}
OTHERS = {
    "bf16": "RAIN in bf16",
    "fp8": "RAIN, products in fp8",
    "stream_diffusion": "StreamDiffusion",
    "stream_diffusion_look": "StreamDiffusion with reference",
    "live2diff": "Live2Diff",
    "live2diff_look": "Live2Diff with reference",
}
"""Ways to make frames of the same weights faster, or with less delay, that change them (Table 2)."""
SLOW = {
    "ddim": f"RAIN before distillation, {animate_anyone.STEPS} DDIM steps, guided",
    "animate_anyone": f"AnimateAnyone, {animate_anyone.STEPS} DDIM steps, guided",
    "pose_animate": f"PoseAnimate, {animate_anyone.STEPS} DDIM steps, guided, no reference network",
}
"""What distillation and streaming are compared with (Table 1); both take twice as many calls as steps, for guidance."""
STAGE = {
    "autoencoder": "autoencoder",
    "undistilled": "stage2",
    "ddim": "stage2",
    "animate_anyone": "stage2",
    "pose_animate": "stage1",
    "flat": "distill2d",
    "stream_diffusion": "distill2d",
    "stream_diffusion_look": "distill2d",
} | dict.fromkeys(("wrong", "rain", "bf16", "fp8", "live2diff", "live2diff_look"), "distill3d")
"""The stage after which a method's networks are taken; "copy" needs none."""
TRAINED = {"animate_anyone": {"stage2.times": "uniform"}}
"""What a method's training has different from the preset's."""
ABLATIONS = {
    "K = 16": {},
    "K = 8": {"stream.window": 8},
    "K = 16, causal mask": {"stream.causal": True},
}
"""Section 5.4: what is varied, as overrides of a preset; the first is the paper's setting."""
FURTHER = {
    "300 steps in 3D, all kept": {"distill3d.blend": 1.0},
    "1,200 steps in 3D": {"distill3d.blend": 1.0, "distill3d.steps": 1_200, "distill3d.learning_rate": 1e-4},
}
"""3D distillations of `small` that go further than the shipped one (notebook `22_distill`)."""
FRAMES = "frames.npy"  # what a method made, in the folder of its run
OF_TASKS = ("copy", "autoencoder", "wrong", "undistilled", "rain")  # methods measured on faces and streets
ZERO_SHOT_INNER = 5  # optimisation steps a time step of PoseAnimate's inversion
STANDING_STILL = ("undistilled", "flat", "rain")  # methods whose flicker is measured, by a frozen pose,
STILL = 16  # in that many clips: it differs little from clip to clip
COMMON = (64, 48)  # the size at which presets compare,
REDUCED = ("psnr", "ssim", "psnr_fg", "ssim_fg")  # in these measures


@dataclass(frozen=True)
class HeldOut:
    """Test clips as arrays: reference uint8 ``(b, h, w, 3)``, the driven frames and their condition uint8
    ``(b, f, h, w, 3)``; where they are known mask bool ``(b, f, h, w)``, flow ``(b, f-1, h, w, 2)`` and visible; and
    of the reference its own condition ``source`` and mask ``silhouette``."""

    reference: np.ndarray
    frames: np.ndarray
    condition: np.ndarray
    mask: np.ndarray | None
    flow: np.ndarray | None = None
    visible: np.ndarray | None = None
    source: np.ndarray | None = None
    silhouette: np.ndarray | None = None


def held_out(preset: Preset, clips: int | None = None) -> HeldOut:
    """The test clips of a preset, or the first ``clips`` of them."""
    source, gap = dataset.clips_of(preset.data, "test"), preset.data.test_gap
    chosen = source[:clips]
    names = ("frames", "condition", "mask", "flow", "visible")
    there = [name for name in names if getattr(chosen[0], name) is not None]
    driven = {name: np.stack([getattr(clip, name)[gap:] for clip in chosen]) for name in there}
    driven["source"] = np.stack([clip.condition[0] for clip in chosen])
    if "mask" in there:
        driven["silhouette"] = np.stack([clip.mask[0] for clip in chosen])
    return HeldOut(np.stack([clip.frames[0] for clip in chosen]), **{"mask": None} | driven)


def generate(preset: Preset, method: str, held: HeldOut, model: RAIN | None = None) -> np.ndarray:
    """Frames of a method for the held-out clips, uint8 ``(b, f, h, w, 3)``.

    ``method``: a key of METHODS, OTHERS or SLOW; "wrong" gives every driver the next clip's reference (a fixed
    permutation). ``model`` saves loading it again. Raises FileNotFoundError if weights are missing.
    """
    check_method(method)
    if method == "copy":
        return np.repeat(held.reference[:, None], held.frames.shape[1], axis=1)
    model = model or _trained(preset, method)
    if method == "autoencoder":
        with torch.no_grad():
            place = model.denoising_unet.conv_in.weight.device
            signed = (to_signed(torch.from_numpy(clip).to(place)) for clip in held.frames)
            made = (to_uint8(model.autoencoder.decode(model.autoencoder.encode(x))) for x in signed)
            return np.stack([pictures.cpu().numpy() for pictures in made])
    if method == "pose_animate":
        return _zero_shot(preset, model, held)
    reference = np.roll(held.reference, -1, axis=0) if method == "wrong" else held.reference
    return _streamed(preset, method, model, reference, held.condition)


def _streamed(preset: Preset, method: str, model: RAIN, reference: np.ndarray, condition: np.ndarray) -> np.ndarray:
    if method == "animate_anyone":
        window, omega = preset.stream.window, preset.stream.guidance
        each = [slice(i, i + 1) for i in range(len(reference))]
        films = [animate_anyone.animate(model, reference[i], condition[i], window, guidance=omega)
                 for i in tqdm(each, "clips", leave=False)]  # fmt: skip
        return np.concatenate(films)
    if method == "ddim":
        options = asdict(preset.stream) | {"steps_per_group": animate_anyone.STEPS // preset.stream.groups}
        return stream(model, reference, condition, SolverStream, **options)
    if method == "bf16":
        model = deepcopy(model).to(torch.bfloat16)
        with nullcontext() if native_bf16(torch.device(device())) else Bf16Products():
            return stream(model, reference, condition, **stream_options(preset, model))
    if not method.startswith(("stream_diffusion", "live2diff")):
        eight = {"fast": True, "fp8": True} if method == "fp8" else {}
        return stream(model, reference, condition, **stream_options(preset, model), **eight)
    cfg = preset.stream
    options = {"levels": cfg.groups, "guidance": cfg.guidance, "fast": True, "look": method.endswith("look")}
    if method.startswith("live2diff"):
        running = Live2Diff(model, cfg.window, cfg.window // 2, **options)
    else:
        running = StreamDiffusion(model, **options)
    before = cfg.window - cfg.group_size  # as much past as in RAIN's window
    driver = mirrored(condition.shape[1], before, running.latency_frames - 1)
    films = []
    for picture, clip in tqdm(zip(reference, condition, strict=True), "streams", len(reference), leave=False):
        running.reset()
        running.reference(picture)
        films.append(running.push([clip[i] for i in driver])[before:])
    return np.array(films)


def _zero_shot(preset: Preset, model: RAIN, held: HeldOut) -> np.ndarray:
    """Clips by PoseAnimate. Masks are carried from the reference's, where that is known, else there are none."""
    small, films = image_models.Small(model), []
    known = held.silhouette is not None
    options = pose_animate.Options(
        animate_anyone.STEPS, preset.stream.guidance, ZERO_SHOT_INNER, mgdm=known, carried=known
    )
    for i in tqdm(range(len(held.reference)), "clips", leave=False):
        picture, mask = held.reference[i], held.silhouette[i] if known else None
        given = picture, held.source[i], held.condition[i], small.prompt(picture), options, mask
        films.append(pose_animate.animate(small, *given)[0])
    return np.stack(films)


class Bf16Products(TorchDispatchMode):
    """Products of bf16 tensors are summed in fp32 and rounded: what units for bf16 do, on processors without them.

    PyTorch's own way there is some twenty times as slow.
    """

    PRODUCTS = frozenset(
        getattr(torch.ops.aten, name)
        for name in "mm addmm bmm baddbmm matmul linear convolution conv2d".split()  # inference mode keeps larger ones
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        half = [x for x in args if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16]
        if func.overloadpacket not in self.PRODUCTS or not half:
            return func(*args, **kwargs)
        wide = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
        return func(*wide, **kwargs).bfloat16()


def stream_options(preset: Preset, model: RAIN) -> dict:
    """A preset's options of :class:`rainlab.Stream` for ``model``, whatever preset that one was trained with."""
    options = asdict(preset.stream)
    return options if model.denoising_unet.cfg.guidance_dim else options | {"guidance": None}


def frozen(held: HeldOut, clips: int = STILL) -> HeldOut:
    """The first clips, driven by their first condition for as many frames; for flicker."""
    first = {field.name: getattr(held, field.name) for field in fields(held)}
    cut = {name: x if x is None else x[:clips] for name, x in first.items()}
    condition = np.repeat(cut["condition"][:, :1], held.frames.shape[1], axis=1)
    return HeldOut(**cut | {"condition": condition})


def check_method(method: str) -> None:
    """Raise ValueError for a name that is in none of METHODS, OTHERS and SLOW."""
    if method not in (known := METHODS | OTHERS | SLOW):
        raise ValueError(f"method: got {method!r}, expected one of {[*known]}")


def trained_as(preset: Preset, method: str) -> Preset:
    """The preset that a method's networks are trained with."""
    return override(preset, TRAINED.get(method, {}))


def device() -> str:
    """Where networks are measured: a GPU if there is one. (Pictures differ from a processor's by rounding.)"""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _trained(preset: Preset, method: str) -> RAIN:
    return stages.trained(trained_as(preset, method), STAGE[method], device())


def test_clips(preset: Preset) -> dict:
    """All that determines the held-out clips, for the hash of a run."""
    return dataset.clips_of(preset.data, "test").fingerprint() | {"gap": preset.data.test_gap}


def describe(preset: Preset, method: str) -> tuple[dict, dict[str, str]]:
    """(config, inputs) that determine a method's numbers."""
    check_method(method)
    config = {"preset": preset.name, "method": method, "data": test_clips(preset)}
    if method == "copy":
        return config, {}
    inputs = {"model": stages.run_id(trained_as(preset, method), STAGE[method])}
    return (config if method == "autoencoder" else config | {"stream": identity(preset.stream)}), inputs


def measure(preset: Preset, method: str, record: bool = False) -> runs.Run:
    """The run that holds a method's numbers.

    Args:
        record: compute and record it in ``runs/`` unless that is done; False reads what was recorded, here or in the
            repository, and raises FileNotFoundError if there is nothing.

    Metrics, labelled ``method``: those of :func:`rainlab.measure.metrics.evaluate`; of larger pictures REDUCED
    also at the size COMMON (``psnr_64x48``); ``true_motion``, how much the truth changes from frame to frame; for
    STANDING_STILL, OTHERS and SLOW also ``flicker``, the change in streams driven by one frozen pose for as many frames
    as a test clip has, ``flicker_border_ratio``, ``flicker_rhythm`` (:func:`rainlab.measure.metrics.rhythm` of a group,
    where four of them fit) and ``flicker_step``, the flicker step by step (label ``step``: index of the later frame).
    Where the exact flow is known ``warping_error`` and the truth's own ``true_warping``; of the studio ``id_studio``,
    ``lpips_studio`` and ``fvd_studio`` (n: overlapping windows) of :mod:`rainlab.measure.features`. The per-clip values
    stay in ``values.json``.
    """
    config, inputs = describe(preset, method)
    return runs.made(partial(_measure, preset, method), record, preset.name, "evaluate", config, VERSION, inputs)


def there(preset: Preset, methods: Iterable[str]) -> dict[str, runs.Run]:
    """Method -> its run, of those that are recorded."""
    return runs.there(measure, preset, methods)


def kept(preset: Preset, method: str, held: HeldOut) -> np.ndarray:
    """A method's frames for all test clips: those :func:`measure` kept in ``runs/``, or now made of ``held``."""
    config, inputs = describe(preset, method)
    run = runs.folder() / runs.run_id("evaluate", config, VERSION, inputs)
    if (run / runs.FILES[-1]).is_file() and (run / FRAMES).is_file():
        return np.load(run / FRAMES)
    return generate(preset, method, held)


def _measure(preset: Preset, method: str, run: runs.Run) -> None:
    held = held_out(preset)
    model = None if method == "copy" else _trained(preset, method)
    frames = generate(preset, method, held, model)
    values = metrics.evaluate(frames, held.frames, held.mask)
    if preset.data.size != COMMON and not any(n % m for n, m in zip(preset.data.size, COMMON, strict=True)):
        reduced = (x if x is None else metrics.smaller(x, COMMON) for x in (frames, held.frames, held.mask))
        at = "_{}x{}".format(*COMMON)
        values |= {name + at: value for name, value in metrics.evaluate(*reduced).items() if name in REDUCED}
    if held.frames.shape[1] > 1:
        values["true_motion"] = metrics.flicker(held.frames)
    if method in (*STANDING_STILL, *OTHERS, *SLOW):
        still = generate(preset, method, frozen(held), model)
        size = preset.stream.group_size
        values["flicker"] = metrics.flicker(still)
        if size > 1:
            values["flicker_border_ratio"] = metrics.border_ratio(still, size)
            if still.shape[1] > 4 * size:
                values["flicker_rhythm"] = metrics.rhythm(still, size)
        for step in range(1, still.shape[1]):
            change = metrics.bootstrap(metrics.flicker(still[:, step - 1 : step + 1]))
            run.record("flicker_step", *change, metrics.PROTOCOL, method=method, step=step)
    if held.flow is not None and held.frames.shape[1] > 1:
        for name, film in {"warping_error": frames, "true_warping": held.frames}.items():
            values[name] = metrics.warping_error(film, held.flow, held.visible)
    for name, value in values.items():
        run.record(name, *metrics.bootstrap(value), metrics.PROTOCOL, method=method)
    if preset.data.source == "studio" and features.fits(preset.data.size):
        for name, measure_of in {"id_studio": features.identity, "lpips_studio": features.perceptual}.items():
            values[name] = measure_of(frames, held.frames)
            run.record(name, *metrics.bootstrap(values[name]), features.PROTOCOL, method=method)
        if held.frames.shape[1] >= features.WINDOW:
            ours, theirs = (features.windows(x, 1) for x in (frames, held.frames))
            distance = metrics.frechet(ours, theirs), None, None, len(ours)
            run.record("fvd_studio", *distance, features.PROTOCOL, method=method)
    write_json(run.path / runs.VALUES, {name: value.tolist() for name, value in values.items()})
    np.save(run.path / FRAMES, frames)


def halves(preset: Preset, record: bool = False, draws: int = 20) -> runs.Run:
    """The run that tells how far from each other two halves of the held-out clips are, the scale of FVD-studio.

    Metric ``fvd_studio``: mean over ``draws`` splits with the range of 95 % of them; n: overlapping windows of a half.
    A method has twice as many, on the same clips as the truth: its distance would be 0 if it made no error.

    Raises:
        ValueError: clips that FVD-studio can't look at. FileNotFoundError: nothing recorded, naming the command.
    """
    if preset.data.source != "studio" or not features.fits(preset.data.size):
        got = f"{preset.data.source} of {preset.data.height}×{preset.data.width}"
        raise ValueError(f"preset {preset.name}: got clips of {got}, expected the studio's, a multiple of 64×48")
    inputs = {"features": runs.run_id("features", features.CONFIG, features.VERSION)}

    def make(run: runs.Run) -> None:
        truth = held_out(preset).frames
        rows = features.windows(truth, 1)
        each = rows.reshape(len(truth), -1, rows.shape[1])
        rng, found = np.random.default_rng(0), []
        for _ in range(draws):
            one, other = np.array_split(rng.permutation(len(truth)), 2)
            found.append(metrics.frechet(*(np.concatenate(each[part]) for part in (one, other))))
        n = len(truth) // 2 * each.shape[1]
        run.record("fvd_studio", np.mean(found), *np.quantile(found, [0.025, 0.975]), n, features.PROTOCOL)

    return runs.made(make, record, preset.name, "halves", {"draws": draws, "data": test_clips(preset)}, 1, inputs)


Pairs = tuple[tuple[str, str], ...]
PAIRS: Pairs = (("rain", "copy"), ("rain", "wrong"), ("rain", "flat"), ("rain", "undistilled"))
CENTRAL: Pairs = (
    ("rain", "animate_anyone"), ("rain", "pose_animate"), ("rain", "ddim"), ("ddim", "animate_anyone"),
)  # fmt: skip
"""What the paper is about: its stream against AnimateAnyone, PoseAnimate and its own network undistilled."""


def are_there(preset: Preset, pairs: Pairs) -> bool:
    """Whether all methods of pairs are recorded."""
    methods = {method for pair in pairs for method in pair}
    return len(there(preset, methods)) == len(methods)


PAIRED = ("psnr", "ssim", "psnr_fg", "ssim_fg", "tde", "sharpness_error", "flicker")


def compare(preset: Preset, record: bool = False, pairs: Pairs = PAIRS) -> runs.Run:
    """Paired differences between methods on the same clips (Table 1): metric ``<measure>``, labels a and b, a - b.

    ``record``: of methods in ``pairs`` what is not measured is measured; as in :func:`measure`.
    """
    methods = METHODS if pairs is PAIRS else dict.fromkeys(method for pair in pairs for method in pair)
    inputs = {method: measure(preset, method, record).id for method in methods}
    config = {"preset": preset.name, "pairs": [list(pair) for pair in pairs]}

    def make(run: runs.Run) -> None:
        values = {method: runs.get(id).values() for method, id in inputs.items()}
        for a, b in pairs:
            for name in PAIRED:
                if name in values[a] and name in values[b]:
                    run.record(name, *metrics.paired(values[a][name], values[b][name]), metrics.PROTOCOL, a=a, b=b)

    return runs.made(make, record, preset.name, "compare", config, VERSION, inputs)


def ablations(preset: Preset, record: bool = False) -> dict[str, runs.Run]:
    """Label -> run of method "rain" for each of ABLATIONS (Table 3)."""
    return {label: measure(override(preset, change), "rain", record) for label, change in ABLATIONS.items()}
