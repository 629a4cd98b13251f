"""A student of Talking Head Anime 4 as one ONNX file, a pose in and a picture out: for onnxruntime, also in a browser.

python -m rainlab.baselines.tha_export FOLDER character.onnx
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rainlab.baselines import siren, tha
from rainlab.data.studio.expression import POSE
from rainlab.files import atomic_path

OPSET = 18


class Graph(nn.Module):
    """Pose ``(45,)`` -> sRGB with alpha, uint8 ``(size, size, 4)``, as :meth:`rainlab.baselines.tha.Student.frame`.

    Whole pictures go through the layers, since runtimes are made for that; what is linear comes before a picture is
    enlarged, and the pose is multiplied once, as in :mod:`rainlab.baselines.siren`.
    """

    def __init__(self, student: tha.Student):
        super().__init__()
        self.face, self.body, self.corner = student.face, student.body, student.corner
        self.register_buffer("character", student.character[None].clone())
        levels, size = len(self.body.siren_layers), self.body.size
        sides = {"face": self.face.size} | {str(i): size >> (levels - 1 - i) for i in range(levels)}
        for name, side in sides.items():
            self.register_buffer(f"places_{name}", places(side))

    def forward(self, pose: Tensor) -> Tensor:
        *sines, last = (*self.face.siren.sine_layers, self.face.siren.last_linear)
        face = last(_through(sines, None, self.places_face, pose[: self.face.numbers]))
        (top, left), side = self.corner, self.face.size
        above, below = self.character[:, :, :top], self.character[:, :, top + side :]
        before, behind = (self.character[:, :, top : top + side, part] for part in _beside(left, left + side))
        picture = torch.cat([above, torch.cat([before, face, behind], 3), below], 2)
        x = None
        for level, layers in enumerate(self.body.siren_layers):
            x = _through(layers, x, getattr(self, f"places_{level}"), pose)
        grid, alpha, colour = self.body.last_linear(x).split((2, 1, 4), 1)
        flow = (getattr(self, f"places_{level}") + grid).permute(0, 2, 3, 1)
        warped = F.grid_sample(picture, flow, "bilinear", "border", align_corners=False)
        return tha.levels(((1 - alpha) * warped + alpha * colour)[0])


def places(side: int) -> Tensor:
    """x and y of pixels' middles, in half pictures from the centre: ``(1, 2, side, side)``."""
    along = (2 * torch.arange(side) + 1) / side - 1
    return torch.stack(torch.meshgrid(along, along, indexing="xy"))[None]


def _beside(left: int, right: int) -> tuple[slice, slice]:
    return slice(0, left), slice(right, None)


def _through(layers: Sequence[siren.Sine], coarser: Tensor | None, here: Tensor, pose: Tensor) -> Tensor:
    """Features of a level ``(1, c, h, w)`` from those of the coarser one, if there is one."""
    first, *others = layers
    weight = first.linear.weight
    by_place = weight[:, -2 - len(pose) : weight.shape[1] - len(pose)]
    x = F.conv2d(here, by_place) + first.same(pose)[:, None, None]
    if coarser is not None:
        linear = F.conv2d(coarser, weight[:, : -2 - len(pose)])
        x = x + F.interpolate(linear, scale_factor=2, mode="bilinear", align_corners=False)
    x = torch.sin(siren.OMEGA * x)
    for layer in others:
        x = torch.sin(siren.OMEGA * layer.linear(x))
    return x


def to_onnx(student: tha.Student, path: str | Path) -> Path:
    """Write a student; returns the file. ModuleNotFoundError without the extra ``export``."""
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("no exporter: onnxscript is missing; `pip install -e .[export]`") from error
    graph, pose = Graph(student).eval().requires_grad_(False), torch.zeros(len(POSE))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.onnx.export(graph, (pose,), dynamo=True, opset_version=OPSET, input_names=["pose"],
                                    output_names=["picture"], verbose=False)  # fmt: skip
    with atomic_path(Path(path)) as temporary:
        program.save(temporary)
    return Path(path)


class OnnxStudent:
    """Frames of a file of :func:`to_onnx` by onnxruntime, on ``threads`` threads (0: as many as there are)."""

    def __init__(self, path: str | Path, threads: int = 0):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("no onnxruntime; `pip install -e .[export]`") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def frame(self, pose: Tensor | np.ndarray) -> np.ndarray:
        """The picture of a pose ``(45,)``, uint8 ``(size, size, 4)``."""
        return self._session.run(None, {"pose": np.asarray(pose, np.float32)})[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m rainlab.baselines.tha_export", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of a published student: character.png and two files of weights")
    parser.add_argument("onnx", type=Path, help="the file to write")
    options = parser.parse_args(arguments)
    path = to_onnx(tha.load(options.folder), options.onnx)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opset {OPSET}")


if __name__ == "__main__":
    main()
