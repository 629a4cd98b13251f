"""Protocol disco-legacy: what the rows of Table 1 were measured with, faults included.

DisCo's public evaluation code (github.com/Wangt-CN/DisCo, tool/metrics at 4772790) was taken over by others. It takes
PSNR, SSIM, L1 and LPIPS picture by picture, FVD and FID-VID on windows of 16 frames, one for every first frame, that
were written as GIF files:

- PSNR subtracts and squares bytes, which overflow: the mean is that of d² mod 256. An error of 16 grey levels counts as
  none, and pictures without anything in common get some 28 dB. Without error: 100.
- SSIM sees grey bytes, by a flat window of 7×7, borders left out.
- L1 is the mean absolute difference in grey levels divided by the number of pixels: it falls with the picture's size.
- LPIPS (VGG) is given [0, 1] where its network expects [-1, 1].
- FVD takes I3D's 400 logits at 224×224, FID-VID the 2048 features of a 3D ResNet-50 at 112×112.

Use :mod:`rainlab.measure.metrics` to measure; this is for comparing with what others reported. Pictures are uint8
``(b, f, h, w, 3)``; each measure gives one float64 a clip.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F

from rainlab import runs
from rainlab.config import Preset
from rainlab.measure import evaluate, metrics

PROTOCOL = "disco-legacy-1"
VERSION = 1
WINDOW = 16  # frames, for FVD and FID-VID
COMPARED = ("copy", "autoencoder", "rain")
Row = tuple[str, tuple, str, dict[str, str]]  # metric, estimate, protocol, labels
_GREY = np.array([9798, 19235, 3735])  # OpenCV's weights of R, G and B in 2^-15


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """PSNR in dB of bytes that overflow, mean over frames: ``(b,)``."""
    x, y = _pair(x, y)
    error = ((x - y) ** 2).mean((2, 3, 4), dtype=np.float64)  # uint8 throughout
    with np.errstate(divide="ignore"):
        return np.where(error == 0, 100.0, 10 * np.log10(255**2 / error)).mean(1)


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """SSIM of grey bytes as scikit-image computes it by default, mean over frames: ``(b,)``; at least 7×7 pixels."""
    x, y = (torch.from_numpy(grey(video).astype(np.float64)) for video in _pair(x, y))
    if min(x.shape[2:]) < 7:
        raise ValueError(f"pictures: got {x.shape[2]}×{x.shape[3]}, expected at least 7×7, the window of this SSIM")

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, 7, 1)

    a, b, unbiased = mean(x), mean(y), 49 / 48
    var_x, var_y = (unbiased * (mean(v * v) - m * m) for v, m in ((x, a), (y, b)))
    both = unbiased * (mean(x * y) - a * b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).numpy()


def l1(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean absolute difference in grey levels over the number of pixels: ``(b,)``."""
    x, y = _pair(x, y)
    return np.abs(x.astype(np.float64) - y).mean((1, 2, 3, 4)) / (x.shape[2] * x.shape[3])


def grey(pictures: np.ndarray) -> np.ndarray:
    """RGB bytes ``(..., 3)`` as grey bytes, rounded as OpenCV does."""
    return ((pictures.astype(np.int64) @ _GREY + 2**14) >> 15).astype(np.uint8)


def windows(video: np.ndarray, length: int = WINDOW) -> np.ndarray:
    """All windows of a clip ``(f, h, w, 3)`` that a frame begins, but the last: ``(f - length, length, h, w, 3)``.

    (The published loop stops one early.) ValueError for clips that have none.
    """
    if len(video) <= length:
        raise ValueError(f"clip: got {len(video)} frames, expected more than {length}: a window begins at each")
    return np.stack([video[i : i + length] for i in range(len(video) - length)])


def through_gif(frames: np.ndarray) -> np.ndarray:
    """Frames ``(f, h, w, 3)`` as they come back from a GIF: at most 256 colours each."""
    from PIL import Image, ImageSequence

    pictures = [Image.fromarray(frame) for frame in frames]
    with io.BytesIO() as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=100)
        file.seek(0)
        with Image.open(file) as film:
            back = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
            # equal frames in a row are stored once, with the time of both
            shown = [frame.info.get("duration", 100) // 100 for frame in ImageSequence.Iterator(film)]
    return np.repeat(back, shown, axis=0) if len(back) < len(frames) else np.stack(back)


def compare(preset: Preset, record: bool = False) -> runs.Run:
    """The run that holds COMPARED methods' PSNR and SSIM on the held-out clips by both protocols, and legacy L1.

    ``record`` as in :func:`evaluate.measure`. Metrics ``psnr``, ``ssim`` and ``l1``, told apart by protocol, labels
    ``method`` and ``mode`` ("correct" or "legacy").
    """
    return compared("protocol", VERSION, preset, _both, record)


def _both(frames: np.ndarray, truth: np.ndarray) -> Iterator[Row]:
    values = metrics.evaluate(frames, truth)
    for name in ("psnr", "ssim"):
        yield name, metrics.bootstrap(values[name]), metrics.PROTOCOL, {"mode": "correct"}
    for name, measure in {"psnr": psnr, "ssim": ssim, "l1": l1}.items():
        yield name, metrics.bootstrap(measure(frames, truth)), PROTOCOL, {"mode": "legacy"}


def compared(
    name: str,
    version: int,
    preset: Preset,
    measures: Callable[[np.ndarray, np.ndarray], Iterable[Row]],
    record: bool,
    looked_through: Mapping[str, str] | None = None,
) -> runs.Run:
    """A run of this name with what ``measures`` of (frames, truth) say of COMPARED methods, label ``method``.

    ``looked_through``: name -> checksum of what else determines the numbers. ``record`` as in :func:`evaluate.measure`.
    """
    described = {method: evaluate.describe(preset, method) for method in COMPARED}
    config = {method: about for method, (about, _) in described.items()}
    inputs = {method: id for method, (_, given) in described.items() for id in given.values()}
    inputs |= looked_through or {}

    def make(run: runs.Run) -> None:
        held = evaluate.held_out(preset)
        for method in COMPARED:
            frames = evaluate.kept(preset, method, held)
            for metric, estimate, protocol, labels in measures(frames, held.frames):
                run.record(metric, *estimate, protocol, method=method, **labels)

    return runs.made(make, record, preset.name, name, config, version, inputs)


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, video in {"frames": x, "truth": y}.items():
        if video.dtype != np.uint8 or video.ndim != 5 or video.shape[-1] != 3 or video.shape != x.shape:
            expected = "expected uint8 (b, f, h, w, 3), both of one shape"
            raise ValueError(f"{name}: got {video.dtype} {video.shape}, {expected}")
    return x, y
