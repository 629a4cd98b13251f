"""What a training asks of a machine, before one rents it: `python -m rainlab.measure.plan --preset paper`.

A stage's own loss runs forward and backward on tensors without content (device "meta"): every storage is followed from
birth to death and the operations of every product are counted, in seconds and without the memory that is asked about.
Not counted: what libraries take for themselves, fragments between tensors, and the scratch of the optimiser's step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm

from rainlab import runs
from rainlab.config import PRESETS, Preset, geometry, identity, make_preset, override
from rainlab.data.dataset import Batch, Draw
from rainlab.method.context import ClipContext
from rainlab.method.pretrained import CLIP_CONFIG
from rainlab.method.rain import RAIN
from rainlab.method.vae import KL
from rainlab.provenance import peak_bytes
from rainlab.training import optim, stages
from rainlab.training.parameters import STAGES, check_stage, trainable

VERSION = 1
USABLE = 0.9  # of a GPU's memory: the rest is the library's own and fragments
SHARE = (0.2, 0.5)  # of its peak that a GPU reaches in training: assumed, poor and good
LIGHTER = {"optimizer": "adamw8bit", "ema": 0.0, "checkpointing": True}
"""What makes a training fit: averages in 8 bits, no moving average of the weights (RAIN names none), checkpointing."""
CHECKED = [(stage, False) for stage in STAGES] + [(stage, True) for stage in STAGES[1:]]
PARTS = ("frozen", "weights", "average", "gradients", "optimizer", "activations")
"""What is held, in the order of :class:`Need`."""


class Gpu(NamedTuple):
    """Memory in bytes, and operations a second of dense bf16 products summed in fp32, both of the data sheet."""

    memory: float
    peak: float


GPUS = {
    "RTX 3090": Gpu(24 * 2**30, 71e12),
    "RTX 4090": Gpu(24 * 2**30, 165e12),
    "L40S": Gpu(48 * 2**30, 362e12),
    "A100 80 GB": Gpu(80 * 2**30, 312e12),
    "H100 SXM": Gpu(80 * 2**30, 989e12),
}


@dataclass(frozen=True)
class Need:
    """What one stage holds, in bytes, and does, in floating-point operations. ``samples`` are computed at once."""

    samples: int
    frozen: int  # weights that are not trained: teacher, target, CLIP tower, autoencoder, earlier stages' networks
    weights: int  # weights that are
    average: int  # their moving average
    gradients: int
    optimizer: int
    activations: int  # the most that a forward and backward pass holds besides all these
    flops: int  # of one pass over the samples

    @property
    def peak(self) -> int:
        """Bytes, all together."""
        return sum(getattr(self, part) for part in PARTS)


def count(preset: Preset, stage: str, samples: int = 1, bf16: bool = False, accumulating: bool = False) -> Need:
    """Count one forward and backward pass of a stage of ``preset``.

    Args:
        accumulating: the gradients of a pass before are there already, and held all the time.
        bf16: as autocast computes on a GPU (products in bf16, norms and the loss in fp32); otherwise all is fp32, as on
            a processor without bf16.

    Raises:
        ValueError: ``stage`` is unknown, or ``samples`` is not at least 1.
    """
    check_stage(stage)
    if samples < 1:
        raise ValueError(f"samples: got {samples}, expected at least 1")
    loss, model, others = networks(preset, stage, "meta")
    cfg = stages.Training(preset, stage).loop
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = _bytes(parameters.values())
    average = weights if cfg.ema and not others else 0  # a distillation's average is its target
    with torch.device("meta"):
        batch = empty_batch(preset, stage, samples, model.autoencoder.latent_channels)
    there = [tensor for net in (model, *others) for tensor in (*net.parameters(), *net.buffers())]
    with (
        _Held([*there, *vars(batch).values()]) as held,
        _Autocast(torch.bfloat16 if bf16 else torch.float32) as autocast,
    ):
        for parameter in parameters.values() if accumulating else ():  # a gradient is added to that which is there
            parameter.register_post_accumulate_grad_hook(lambda trained: held.forget(trained.grad.untyped_storage()))
        value = loss(batch, Draw(0, 0, range(samples)))
        autocast.forget()
        torch.autograd.backward(value)
    gradients = _bytes(p.grad for p in parameters.values() if p.grad is not None)
    return Need(
        samples=samples,
        frozen=_bytes(there) - weights,
        weights=weights,
        average=average,
        gradients=gradients,
        optimizer=optim.state_bytes(parameters, cfg),
        activations=held.peak if accumulating else max(0, held.peak - gradients),
        flops=held.flops,
    )


def networks(preset: Preset, stage: str, device: str) -> tuple[Any, RAIN, list[nn.Module]]:
    """(loss, networks, further networks that it uses) of a stage with random weights, ready to be trained.

    What preset ``paper`` reads from published files is built from their geometry. Condition dropout and the student's
    own history are off, since they depend on chance.
    """
    small = {"model.context": "small", "autoencoder.kind": "small", "loss.embedding_scale": 0.0}
    preset = override(preset, {"loss.condition_dropout": 0.0, "distill3d.own_history": 0.0})
    bare = override(preset, small)
    motion, guidance = stage in stages.WINDOWED, stage.startswith("distill")
    others: list[nn.Module] = []
    with torch.device(device):
        model = RAIN.build(bare, motion=motion, guidance=guidance)
        if preset.model.context == "clip":
            from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

            model.context_encoder = ClipContext(CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_CONFIG)))
        if preset.autoencoder.kind != "small":
            from diffusers import AutoencoderKL

            from rainlab.measure import paper_scale

            model.autoencoder = KL(AutoencoderKL(**paper_scale.TYPES, **paper_scale.KL))
        if guidance:
            others = [RAIN.build(bare, motion=motion, guidance=own).denoising_unet for own in (False, True)]
    cfg, wanted = stages.Training(preset, stage).loop, set(trainable(model, stage))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    model.denoising_unet.checkpointing = model.reference_unet.checkpointing = cfg.checkpointing
    return stages.loss_of(preset, stage, model, *others), model, others


def empty_batch(preset: Preset, stage: str, samples: int, channels: int) -> Batch:
    """A batch of zeros as ``stage`` reads it, with latents of so many ``channels``."""
    frames, _, sink = stages.Training(preset, stage).sampling
    (h, w), factor = preset.data.size, preset.autoencoder.factor
    f, small = frames + sink, (channels, h // factor, w // factor)
    return Batch(
        reference=torch.zeros(samples, h, w, 3, dtype=torch.uint8),
        reference_latents=torch.zeros(samples, *small),
        latents=torch.zeros(samples, f, *small),
        condition=torch.zeros(samples, f, h, w, 3, dtype=torch.uint8),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _Held(TorchDispatchMode):
    """Bytes of the storages that operations make, now and at most, and the operations of products.

    ``there``: tensors that exist before and stay, for their views are no new storage.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self.there = {tensor.untyped_storage()._cdata for tensor in there}
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        counted = _FLOPS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if counted:
            self.flops += counted(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "meta":
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self.alive and key not in self.there:
            self.alive.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def forget(self, storage: torch.UntypedStorage) -> None:
        """Count a storage no longer."""
        self._freed(storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        if key in self.alive:
            self.alive.discard(key)
            self.now -= size


# The kernel of attention that never holds all scores at once. Its variant for processors knows device "meta"; a GPU's
# holds the same tensors.
_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _fused_backward_flops(grad, q, k, v, *_, **__) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


_FLOPS = {
    _FUSED: lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _fused_backward_flops,
}


class _Autocast:
    """Autocast for device "meta", which has none: products in ``low``, norms and the squared error in fp32.

    A torch mode would be the way to do it, but checkpointing's second pass runs outside of modes.
    """

    def __init__(self, low: torch.dtype):
        dtypes = {"linear": low, "conv2d": low, "group_norm": torch.float32, "layer_norm": torch.float32,
                  "mse_loss": torch.float32}  # fmt: skip
        functions = {name: self._wrapped(getattr(F, name), dtype) for name, dtype in dtypes.items()}
        attention = lambda q, k, v, *_, **__: _FUSED(*(self._cast(x, low) for x in (q, k, v)))[0]  # noqa: E731
        self.patch = mock.patch.multiple(F, scaled_dot_product_attention=attention, **functions)
        self.copies: dict[int, Tensor] | None = {}  # of trained weights, kept for their next use

    def __enter__(self) -> _Autocast:
        self.patch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.patch.stop()

    def forget(self) -> None:
        """The forward pass is over; what the second pass of a checkpoint copies lasts for its layer."""
        self.copies = None

    def _wrapped(self, function: Any, dtype: torch.dtype) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs = {key: self._cast(value, dtype) for key, value in kwargs.items()}
            return function(*(self._cast(value, dtype) for value in args), **kwargs)

        return call

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if self.copies is None or not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.copies:
            self.copies[id(value)] = value.to(dtype)
        return self.copies[id(value)]


# -- does the count hold? --------------------------------------------------------------------------------------------


def check(preset: Preset, threads: int = 1) -> runs.Run:
    """The run "plan_check" of a preset: passes over its batches, counted and measured here, each in its own process.

    Metrics, labelled by stage and checkpointing: ``counted_bytes`` and ``measured_bytes`` that a pass holds besides the
    networks, ``flops``, ``seconds`` (the fastest of three passes), and ``product_rate``, the operations a second of one
    large product of matrices in the same process. All in fp32. A finished run is returned as it is.
    """
    run = runs.open_run("plan_check", _describe(preset) | {"threads": threads}, VERSION)
    if run.finished:
        return run
    for stage, checkpointing in tqdm(CHECKED, desc="passes"):
        changed = override(preset, {f"{_field(stage)}.checkpointing": checkpointing})
        samples = stages.Training(changed, stage).loop.batch
        need, labels = count(changed, stage, samples), {"stage": stage, "checkpointing": checkpointing}
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc: what is freed is given back and not counted twice
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            got = pool.submit(passes, changed, stage, samples, threads).result()
        run.record("counted_bytes", float(need.activations + need.gradients), **labels)
        run.record("flops", float(need.flops), **labels)
        for metric, value in got.items():
            run.record(metric, value, **labels)
    return run.finish()


def _describe(preset: Preset) -> dict[str, Any]:
    """What a plan depends on."""
    loops = {stage: identity(stages.Training(preset, stage).loop) for stage in STAGES}
    return geometry(preset) | {"stages": loops, "stream": identity(preset.stream)}


def passes(preset: Preset, stage: str, samples: int, threads: int) -> dict[str, float]:
    """Forward and backward passes on the processor, in a process that has done nothing else; see :func:`check`."""
    torch.set_num_threads(threads)
    loss, model, _ = networks(preset, stage, "cpu")
    batch = empty_batch(preset, stage, samples, model.autoencoder.latent_channels)
    before, seconds = peak_bytes(), []
    for step in range(3):
        start = time.perf_counter()
        loss(batch, Draw(0, step, range(samples))).backward()
        seconds.append(time.perf_counter() - start)
        if step == 0:
            peak = peak_bytes() - before
        model.zero_grad()
    a = torch.ones(1536, 1536)
    products = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        products.append(time.perf_counter() - start)
    rate = 2 * len(a) ** 3 / min(products)
    return {"measured_bytes": float(peak), "seconds": min(seconds), "product_rate": rate}


# -- will it fit? ----------------------------------------------------------------------------------------------------


def _field(stage: str) -> str:
    return "train_autoencoder" if stage == "autoencoder" else stage


def lighter(preset: Preset, stage: str) -> dict[str, Any]:
    """LIGHTER as overrides of a stage: what a GPU of 24 GB needs at paper scale.

    A distillation keeps its average, which is its target network.
    """
    kept = {key: value for key, value in LIGHTER.items() if key != "ema" or not stage.startswith("distill")}
    return {f"{_field(stage)}.{key}": value for key, value in kept.items()}


def fit(preset: Preset, stage: str, gpu: Gpu) -> dict[str, Any]:
    """How a stage fits on one GPU, in bf16: the largest share of its batch whose peak is at most USABLE of the memory.

    Returns:
        ``peak``: bytes with one sample at once, ``samples`` at once (0: not even one), ``accumulate``: passes a step,
        ``hours``: (least, most) of the whole training, at SHARE of the GPU's peak.
    """
    cfg = stages.Training(preset, stage).loop
    one, two = _one_and_two(preset, stage)
    room = USABLE * gpu.memory - one.peak
    more = max(1, two.peak - one.peak)
    most = 0 if room < 0 else 1 + int(room / more)
    samples = max((n for n in range(1, min(most, cfg.batch) + 1) if cfg.batch % n == 0), default=0)
    total = cfg.steps * cfg.batch * (two.flops - one.flops)
    return {
        "peak": one.peak,
        "samples": samples,
        "accumulate": cfg.batch // samples if samples else 0,
        "hours": tuple(total / (share * gpu.peak) / 3600 for share in reversed(SHARE)),
    }


@lru_cache(maxsize=32)
def _one_and_two(preset: Preset, stage: str) -> tuple[Need, Need]:
    """One sample and two at once: all between them grows evenly."""
    one, two = (count(preset, stage, samples, bf16=True, accumulating=True) for samples in (1, 2))
    return one, two


def table(preset: Preset, gpus: Mapping[str, Gpu] | None = None) -> pd.DataFrame:
    """Every stage of a preset on every GPU, as the preset stands and with LIGHTER; columns as :func:`fit` returns."""
    rows = []
    for stage, way, changed in _ways(preset):
        for name, gpu in (gpus or GPUS).items():
            rows.append({"stage": stage, "way": way, "gpu": name} | fit(changed, stage, gpu))
    return pd.DataFrame(rows)


def _ways(preset: Preset) -> list[tuple[str, str, Preset]]:
    """(stage, in words, preset) for every stage that is trained: as it stands, and lighter."""
    trained = [stage for stage in STAGES if stages.Training(preset, stage).loop.steps]
    ways = lambda stage: {"as it stands": {}, "lighter": lighter(preset, stage)}.items()  # noqa: E731
    return [(stage, way, override(preset, changes)) for stage in trained for way, changes in ways(stage)]


def record(preset: Preset) -> runs.Run:
    """The run "plan" of a preset: its :func:`table`, a metric for each column, and what one sample takes, by part.

    A finished one is returned as it is.
    """
    gpus = {name: gpu._asdict() for name, gpu in GPUS.items()}
    run = runs.open_run("plan", _describe(preset) | {"gpus": gpus, "usable": USABLE, "share": SHARE}, VERSION)
    if run.finished:
        return run
    for stage, way, changed in _ways(preset):
        need = asdict(_one_and_two(changed, stage)[0])
        for part in PARTS:
            run.record(part, float(need[part]), stage=stage, way=way)
    for row in table(preset).to_dict("records"):
        labels = {key: row.pop(key) for key in ("stage", "way", "gpu")}
        least, most = row.pop("hours")
        for metric, value in (row | {"hours_least": least, "hours_most": most}).items():
            run.record(metric, float(value), **labels)
    return run.finish()


def recorded(run: runs.Run) -> pd.DataFrame:
    """The :func:`table` that a run of :func:`record` holds."""
    keys = ["stage", "way", "gpu"]
    rows = pd.DataFrame(row for row in run.metrics() if row.get("gpu"))
    rows = rows.pivot(index=keys, columns="metric", values="value").reset_index()
    rows["hours"] = list(zip(rows.pop("hours_least"), rows.pop("hours_most"), strict=True))
    rows = rows.astype({"samples": int, "accumulate": int})
    order = {name: i for names in (STAGES, ("as it stands", "lighter"), GPUS) for i, name in enumerate(names)}
    return rows.sort_values(keys, key=lambda column: column.map(order), ignore_index=True)


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """A :func:`table` in words: what one sample at once takes, how a batch is split, hours at SHARE of the peak."""
    digits = lambda value: f"{value:.0f}" if value >= 10 else f"{value:.2g}"  # noqa: E731
    hours = [" to ".join(map(digits, ends)) for ends in rows["hours"]]
    split = [f"{n} × {k}" if n else "does not fit" for n, k in zip(rows["samples"], rows["accumulate"], strict=True)]
    percent = " to ".join(f"{share:.0%}" for share in reversed(SHARE))
    columns = {
        "stage": rows["stage"],
        "": rows["way"],
        "GPU": rows["gpu"],
        "GiB, one sample": [f"{peak / 2**30:.1f}" for peak in rows["peak"]],
        "at once × passes": split,
        f"hours at {percent} of its peak": [h if n else "–" for h, n in zip(hours, rows["samples"], strict=True)],
    }
    return pd.DataFrame(columns)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: print :func:`table`."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.measure.plan", description="Memory and time of trainings.")
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument("--gpu", choices=sorted(GPUS), help="only this one")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="override values: data.height=512")
    options = parser.parse_args(arguments)
    changes = {key: json.loads(value) for key, _, value in (word.partition("=") for word in options.set)}
    gpus = {options.gpu: GPUS[options.gpu]} if options.gpu else None
    print(shown(table(make_preset(options.preset, changes), gpus)).to_string(index=False))


if __name__ == "__main__":
    main()
