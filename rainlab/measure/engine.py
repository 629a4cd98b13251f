"""What it takes to build a TensorRT engine at the paper's geometry, without a GPU: `python -m rainlab.measure.engine`.

The weights are random, for time, size and memory do not depend on them: SD 1.5's UNet with motion modules, 512×512,
fp16, the decoder TAESDV. Ten minutes, 16 GB of memory and 6 GB of disk are enough.
"""

import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from rainlab import runs
from rainlab.config import Preset, identity, make_preset, override
from rainlab.method.export import build_engine, to_onnx
from rainlab.method.rain import RAIN
from rainlab.method.vae import TAESDV
from rainlab.provenance import peak_bytes

VERSION = 1


def build(preset: Preset | None = None, capability: str = "SM89") -> runs.Run:
    """The run "engine" of a preset's geometry; a finished one is returned as it is.

    Metrics: `export_seconds`, `build_seconds`, `engine_bytes`, and `peak_bytes`, the most memory that the process held.
    """
    preset = preset or make_preset("paper", {"data.height": 512})
    geometry = {
        "model": identity(preset.model),
        "stream": identity(preset.stream),
        "size": preset.data.size,
        "precision": "float16",
    }
    run = runs.open_run("engine", {"preset": preset.name, "capability": capability} | geometry, VERSION)
    if run.finished:
        return run
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(TAESDV().state_dict(), folder / "taesdv.safetensors")
        # a context encoder of our own: what the paper's gives enters the tick as one token
        parts = {"model.context": "small", "autoencoder.kind": "taesdv", "autoencoder.factor": 8,
                 "autoencoder.latent_channels": 4, "autoencoder.path": str(folder / "taesdv.safetensors")}  # fmt: skip
        torch.set_default_dtype(torch.float16)  # half the memory from the first moment on
        try:
            model = RAIN.build(override(preset, parts), motion=True, guidance=True).half()
        finally:
            torch.set_default_dtype(torch.float32)
        start = time.perf_counter()
        onnx = to_onnx(model, folder / "tick.onnx", preset.data.size)
        run.record("export_seconds", time.perf_counter() - start)
        del model
        built = build_engine(onnx, folder / "tick.engine", capability)
    run.record("build_seconds", built["seconds"])
    run.record("engine_bytes", built["bytes"])
    run.record("peak_bytes", float(peak_bytes()))
    return run.finish()


if __name__ == "__main__":
    for row in (done := build()).metrics():
        print(f"{row['metric']:16}{row['value']:.4g}")
    print(done.id)
