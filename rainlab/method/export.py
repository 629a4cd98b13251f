"""The tick outside of PyTorch: ONNX, onnxruntime, TensorRT for RTX.

    python -m rainlab.method.export small --onnx tick.onnx
    python -m rainlab.method.export small --onnx tick.onnx --half --engine tick.engine --capability SM89
    python -m rainlab.method.export small --onnx tick.onnx --time

    stream = TickStream(model, run=OnnxTick("tick.onnx"))    # the same interface, the same frames
    stream = TickStream(model.cuda().half(), run=TensorRTTick("tick.engine"))

An engine is built without a GPU, for the kind of GPU that is named. The reference network stays in PyTorch: it runs
when a character is chosen, not in the stream.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from rainlab.config import StreamConfig
from rainlab.files import atomic_path
from rainlab.method.rain import RAIN, to_signed
from rainlab.method.stream import Stream
from rainlab.method.tick import Constants, State, Tick, TickStream, made_for

OPSET = 20
PLAIN = ("conditions", "fresh", "noise", "order", "levels", "seen", "strength")  # then the state, then the constants


def example(model: RAIN, cfg: StreamConfig, size: tuple[int, int]) -> tuple[Tick, tuple[Any, ...]]:
    """A tick for one stream of pictures of a size (h, w), and arguments to call it with: zeros, nothing is computed."""
    tick = Tick(model, cfg)
    device, dtype = tick.mix.device, tick.dtype
    slots = torch.arange(tick.window, device=device)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        picture = torch.zeros(1, *size, 3, dtype=torch.uint8, device=device)
        bank, context = model.look(to_signed(picture).to(dtype))
        constants = tick.constants(bank, context, cfg.guidance if tick.guidance_dim else None)
        state, strength = tick.start(1, size), torch.ones((), dtype=dtype, device=device)
        pictures = picture[:, None].repeat(1, tick.group_size, 1, 1, 1)
        fresh, noise = state.latents[:, : tick.group_size], state.latents[:, None].repeat(1, tick.steps, 1, 1, 1, 1)
    shapes = (pictures, fresh, noise), (strength, state, constants)
    (pictures, fresh, noise), (strength, state, constants) = pytree.tree_map(
        lambda fake: torch.zeros(fake.shape, dtype=fake.dtype, device=device), shapes
    )
    seen = torch.ones(tick.window, dtype=torch.bool, device=device)
    levels = slots // tick.group_size
    return tick, (pictures, fresh, noise, slots + tick.group_size, levels, seen, strength, state, constants)


def names(state: State, constants: Constants) -> tuple[list[str], list[str]]:
    """Of the inputs and outputs of an exported tick, in order."""
    memory = [f"memory.{i}" for i in range(len(state.memory))]
    kept = [f"kept.{i}" for i in range(len(constants.kept))]
    moving = ["latents", "features", *memory]
    return [*PLAIN, *moving, "added", "looked", *kept], ["frames", *(f"next.{name}" for name in moving)]


class Flat(nn.Module):
    """A tick whose arguments and results are tensors one after the other."""

    def __init__(self, tick: Tick, spec: Any):
        super().__init__()
        self.tick, self._spec = tick, spec

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(pytree.tree_flatten(self.tick(*pytree.tree_unflatten(list(tensors), self._spec)))[0])


def to_onnx(model: RAIN, path: str | Path, size: tuple[int, int], cfg: StreamConfig | None = None) -> Path:
    """Write the tick of one stream as ONNX (opset OPSET), in the model's precision.

    Args:
        model: what it is made from. size: (h, w) of the pictures. cfg: K, p, N; the preset's by default.

    Returns:
        the path; weights above 2 GB lie beside it, in a file with ``.data`` behind its name.

    Raises:
        ValueError: the model's context has more tokens than one. ModuleNotFoundError: install ``rainlab[export]``.
    """
    path, cfg = Path(path), cfg or model.preset.stream
    tick, given = example(model, cfg, size)
    flat, spec = pytree.tree_flatten(given)
    inputs, outputs = names(given[-2], given[-1])
    flat_tick = Flat(tick, spec).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch.export about itself
        program = torch.onnx.export(flat_tick, tuple(flat), dynamo=True, opset_version=OPSET, input_names=inputs,
                                    output_names=outputs, verbose=False)  # fmt: skip
    program.model.metadata_props["rainlab"] = json.dumps(made_for(model, cfg, batch=1) | {"size": size})
    heavy = sum(tensor.numel() * tensor.element_size() for tensor in model.denoising_unet.parameters()) > 1.5e9
    if heavy:  # its data file is named inside, so it cannot be renamed afterwards
        path.parent.mkdir(parents=True, exist_ok=True)
        program.save(path, external_data=True)
    else:
        with atomic_path(path) as temporary:
            program.save(temporary)
    return path


def _note(onnx: str | Path) -> str:
    """What the tick was made for, as JSON. Raises ValueError for a file that :func:`to_onnx` did not write."""
    import onnx as library

    try:
        properties = library.load(str(onnx), load_external_data=False).metadata_props
    except Exception as error:  # protobuf's own kinds
        raise ValueError(f"{Path(onnx).name}: no ONNX file ({error})") from error
    for entry in properties:
        if entry.key == "rainlab":
            return entry.value
    raise ValueError(f"{Path(onnx).name}: got an ONNX file without rainlab's note, expected one that to_onnx wrote")


class Exported(ABC):
    """A tick outside of PyTorch, in place of :meth:`rainlab.method.tick.Tick.forward`; streams may share it.

    ``made_for``: what it was exported for, and the device. Inputs are read and results written where they are: nothing
    is copied, and nothing allocated from a stream's second call on. What it returns holds until the call after the next
    of that stream.
    """

    made_for: dict[str, Any]

    def __call__(self, *arguments: Any) -> tuple[Tensor, State]:
        conditions, state = arguments[0], arguments[-2]
        inputs, outputs = names(*arguments[-2:])
        given = [tensor.contiguous() for tensor in pytree.tree_leaves(arguments)]
        like = [conditions, state.latents, state.features, *state.memory]
        places = state.places or [
            [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in like] for _ in range(2)
        ]
        results = places[places[0][1] is state.latents]  # one of them holds the state that is read
        self._execute(dict(zip(inputs, given, strict=True)), dict(zip(outputs, results, strict=True)))
        frames, latents, features, *memory = results
        return frames, State(latents, features, memory, places)

    @abstractmethod
    def _execute(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Compute outputs, by name, from inputs."""


class OnnxTick(Exported):
    """A tick by onnxruntime on the processor.

    Raises:
        FileNotFoundError: no file. ValueError: a file that :func:`to_onnx` did not write.
    """

    def __init__(self, path: str | Path, threads: int | None = None):
        import onnxruntime

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; write it with `python -m rainlab.method.export`")
        self.made_for = json.loads(_note(path)) | {"device": "cpu"}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others need the cores between ticks
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def _execute(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        binding = self.session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(name, "cpu", 0, _numpy(tensor.dtype), tuple(tensor.shape), tensor.data_ptr())
        self.session.run_with_iobinding(binding)


def _numpy(dtype: torch.dtype) -> Any:
    return np.dtype(str(dtype).removeprefix("torch.")).type


def _tensorrt(ahead: bool) -> Any:
    """TensorRT for RTX cards, which builds engines ahead for other GPUs, or TensorRT: the two have one interface."""
    name, extra = ("tensorrt_rtx", "rtx") if ahead else ("tensorrt", "tensorrt")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"no {name}: pip install 'rainlab[{extra}]'", name=name) from error


def build_engine(onnx: str | Path, path: str | Path, capability: str | None = "SM89") -> dict[str, float]:
    """Build an engine from an ONNX file; returns ``seconds`` and ``bytes``.

    Args:
        onnx: written by :func:`to_onnx`; the engine computes in its precision.
        capability: the kind of GPU it is for: "SM89" is an RTX 4090's; built by TensorRT-RTX, without a GPU. None: by
            TensorRT, for the GPU that is here.

    Raises:
        ModuleNotFoundError: install the extra ``rtx`` or ``tensorrt``. ValueError: an unknown kind, or a graph that
            cannot be built.
    """
    trt = _tensorrt(capability is not None)
    if capability is not None and capability not in trt.ComputeCapability.__members__:
        raise ValueError(f"capability: got {capability!r}, expected one of {list(trt.ComputeCapability.__members__)}")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ValueError(f"{Path(onnx).name}: TensorRT cannot read it: {errors}")
    network.name = _note(onnx)
    config = builder.create_builder_config()
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    start = time.perf_counter()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        kind = capability or "this GPU"
        raise ValueError(f"{Path(onnx).name}: TensorRT built no engine for {kind}; its log above says why")
    with atomic_path(path) as temporary:
        temporary.write_bytes(memoryview(serialized))
    return {"seconds": time.perf_counter() - start, "bytes": float(Path(path).stat().st_size)}


class TensorRTTick(Exported):
    """A tick by an engine of :func:`build_engine` on a CUDA device, where all arguments lie.

    Args:
        ahead: whether it was built ahead, for a named kind of GPU, by TensorRT-RTX; else by TensorRT.

    Raises:
        FileNotFoundError: no file. RuntimeError: no CUDA device, or an engine for another kind of GPU. ValueError: an
            engine that :func:`build_engine` did not write.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cuda", ahead: bool = True):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file; build it with `python -m rainlab.method.export`")
        if not torch.cuda.is_available():
            raise RuntimeError(f"{Path(path).name}: an engine needs a CUDA device and there is none; use OnnxTick")
        trt = _tensorrt(ahead)
        self._device = torch.zeros((), device=device).device  # with its number
        with torch.cuda.device(self._device):
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self.engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
            if self.engine is None:
                raise RuntimeError(f"{Path(path).name}: built for another kind of GPU; build it for this --capability")
            try:
                note = json.loads(self.engine.name)
            except ValueError as error:
                raise ValueError(f"{Path(path).name}: got another engine, expected one by build_engine") from error
            self._context = self.engine.create_execution_context()
            self._stream = torch.cuda.Stream()  # on the default one TensorRT waits more than it must
        self.made_for = note | {"device": str(self._device)}
        self._lock = threading.Lock()  # addresses belong to the context

    def _execute(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        with self._lock, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            for name, tensor in (inputs | outputs).items():
                self._context.set_tensor_address(name, tensor.data_ptr())
            self._stream.wait_stream(here)
            done = self._context.execute_async_v3(self._stream.cuda_stream)
            here.wait_stream(self._stream)
        if not done:
            raise RuntimeError("the engine failed; TensorRT's log above says why")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    import rainlab

    parser = argparse.ArgumentParser(prog="python -m rainlab.method.export", description="The tick outside of PyTorch.")
    parser.add_argument("model", help="a preset's name or a model file, as for rainlab.load")
    parser.add_argument("--onnx", type=Path, required=True, metavar="PATH", help="where the ONNX file goes")
    parser.add_argument("--half", action="store_true", help="in fp16 instead of fp32")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="of the pictures; default: the preset's")
    parser.add_argument("--engine", type=Path, metavar="PATH", help="build a TensorRT-RTX engine, too")
    kinds = "the GPU it is for; SM89 (default) is an RTX 4090's; here: the one that is here, by TensorRT"
    parser.add_argument("--capability", default="SM89", help=kinds)
    parser.add_argument("--time", action="store_true", help="run it by onnxruntime beside Stream, here")
    options = parser.parse_args(arguments)
    if options.half and options.time:
        parser.error("--time: fp16 is slower than fp32 on a processor: leave out --half")
    model = rainlab.load(options.model)
    model = model.half() if options.half else model
    size = tuple(options.size or model.preset.data.size)
    print(f"{to_onnx(model, options.onnx, size)}: {options.onnx.stat().st_size / 1e6:.1f} MB, opset {OPSET}")
    if options.engine:
        built = build_engine(options.onnx, options.engine, None if options.capability == "here" else options.capability)
        what = f"{built['bytes'] / 1e6:.1f} MB for {options.capability}"
        print(f"{options.engine}: {what}, built in {built['seconds']:.0f} s")
    if options.time:
        compare(model, options.onnx, size)


def compare(model: RAIN, onnx: Path, size: tuple[int, int], rounds: int = 7) -> None:
    """Print frames/s of the plain stream, the fast one and the exported one, in alternating rounds."""
    streams = {"plain": Stream(model), "fast": Stream(model, fast=True)}
    streams["exported"] = TickStream(model, run=OnnxTick(onnx))
    picture = np.zeros((*size, 3), np.uint8)
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for stream in streams.values():
        stream.reference(picture)
        stream.push([picture] * (stream.window + stream.group_size))
    for _ in range(rounds):
        for name, stream in streams.items():
            start = time.perf_counter()
            frames = stream.push([picture] * stream.window)
            rates[name].append(len(frames) / (time.perf_counter() - start))
    for name, each in rates.items():
        ratio = statistics.median(a / b for a, b in zip(each, rates["plain"], strict=True))
        print(f"{name:10}{statistics.median(each):8.1f} frames/s  {ratio:.2f} × plain")


if __name__ == "__main__":
    main()
