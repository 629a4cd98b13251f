"""The protocol: what is measured on a video, and how sure the number is.

Pictures are uint8, or float in [0, 1], ``(b, f, h, w, 3)``; masks bool ``(b, f, h, w)``; NumPy or torch. Every measure
gives one float64 for each of the b clips, `bootstrap` and `paired` turn those into a mean with its interval.

Protocol rainlab-1: frames as they are (RGB, no resizing), compared on the scale [0, 1]; PSNR and SSIM of every frame,
their mean over the clip's frames, then the mean over clips; with `_fg` over the pixels of the true foreground only;
95 % percentile bootstrap over clips. A change that moves any number gets a new name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

PROTOCOL = "rainlab-1"
PSNR_CAP = 100.0  # dB, of a frame: an exact copy would count as infinite and no mean would survive it


# -- measures, one number a clip -------------------------------------------------------------------------------------


def psnr(x: Any, y: Any, mask: Any = None) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, of each frame (at most 100, see `PSNR_CAP`), mean over frames: ``(b,)``.

    With `mask`: from the squared error inside the mask; frames with an empty mask don't count, ValueError for a clip
    that has no other.
    """
    return _psnr(_squared_error(*_pair(x, y)), mask)


def ssim(x: Any, y: Any, mask: Any = None) -> np.ndarray:
    """Structural similarity by torchmetrics, on RGB, Gaussian window (σ = 1.5, 11×11), mean over frames: ``(b,)``.

    Border pixels count, their surroundings reflected, so that pictures need at least 6×6 pixels. With `mask`: mean of
    the similarity map inside the mask; empty masks as in `psnr`.
    """
    return _over_clip(_frame_means(_similarity(*_pair(x, y)), mask))


def temporal_difference_error(x: Any, y: Any) -> np.ndarray:
    """Mean of |(x[t+1] - x[t]) - (y[t+1] - y[t])| in grey levels 0 … 255: does x move as y does? ``(b,)``."""
    x, y = _pair(x, y)
    _at_least_two_frames(x)
    return 255 * _each(lambda a, b: (a.diff(dim=0) - b.diff(dim=0)).abs().mean(), x, y).double().numpy()


def flicker(x: Any) -> np.ndarray:
    """Mean of |x[t+1] - x[t]| in grey levels 0 … 255: ``(b,)``. Driven by a frozen pose it should be 0."""
    return _steps(x).mean(1)


def border_ratio(x: Any, group_size: int, first: int = 0) -> np.ndarray:
    """Flicker from group to group over flicker inside groups, ``(b,)``; 1 where the groups leave no trace.

    `first`: index of a frame that begins a group. A clip that never changes has 1, one that changes at borders only
    has infinity. ValueError unless there are steps of both kinds.
    """
    steps = _steps(x)
    border = (np.arange(1, steps.shape[1] + 1) - first) % group_size == 0
    if border.all() or not border.any():
        raise ValueError(
            f"got {steps.shape[1] + 1} frames in groups of {group_size}, expected steps inside and between groups: "
            "give more frames, or leave this measure out for groups of one"
        )
    between, inside = steps[:, border].mean(1), steps[:, ~border].mean(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(between == inside, 1.0, between / inside)


def rhythm(x: Any, period: int) -> np.ndarray:
    """How much of the flicker comes and goes every ``period`` frames, ``(b,)``: 1 where it has no such rhythm.

    Of the change from frame to frame over time: the mean power at 1/period and its multiples over the mean power at all
    frequencies but 0. White noise has 1, a jump every ``period`` frames and nothing between them the whole spectrum.
    A clip that never changes, or always by as much, has 1. ValueError for less than four periods, or periods under 2.
    """
    steps = _steps(x)
    whole = steps.shape[1] // period * period if period > 1 else 0
    if whole < 4 * period:
        raise ValueError(f"got {steps.shape[1] + 1} frames, period {period}, expected four periods or more, over 1")
    power = abs(np.fft.fft(steps[:, -whole:])[:, 1:]) ** 2
    beat, mean = power[:, whole // period - 1 :: whole // period].mean(1), power.mean(1)
    even = mean <= 1e-9 * steps.mean(1) ** 2 * whole**2  # nothing but rounding
    return np.where(even, 1.0, beat / np.where(even, 1.0, mean))


def sharpness_error(x: Any, y: Any) -> np.ndarray:
    """|energy(x) / energy(y) - 1|, energy being the mean squared difference of neighbouring pixels: ``(b,)``.

    0 is as sharp as the truth y, 1 is flat; noise can exceed 1. ValueError if the truth is flat.
    """
    energy, truth = (_gradient_energy(video) for video in _pair(x, y))
    if not truth.all():
        raise ValueError("sharpness: got a truth without any edge, expected pictures; leave this clip out")
    return abs(energy / truth - 1)


def warping_error(x: Any, flow: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Does a surface keep its colour as it moves? Mean |x[t] - x[t+1] where it has gone to| in grey levels: ``(b,)``.

    Args:
        flow: where a pixel of frame t goes until t+1, in pixels (x, y), ``(b, f-1, h, w, 2)``: the truth's, so that
            frames which do not move as they should are told from those which do. visible: bool ``(b, f-1, h, w)``,
            what is still seen there. Exact flow moves between pixels, so the truth has an error, too.
    """
    x, flow, visible = _videos(x), torch.as_tensor(flow), torch.as_tensor(visible)
    _at_least_two_frames(x)
    (b, f, h, w), sizes = x.shape[:4], (tuple(flow.shape), tuple(visible.shape))
    if sizes != ((b, f - 1, h, w, 2), (b, f - 1, h, w)):
        raise ValueError(f"flow, visible: got {sizes}, expected {((b, f - 1, h, w, 2), (b, f - 1, h, w))}")
    if not visible.flatten(1).any(1).all():
        raise ValueError("visible: got a clip without any visible pixel, expected some; leave it out")
    y, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    half = torch.tensor([w - 1, h - 1]) / 2

    def error(clip: Tensor, moved: Tensor, seen: Tensor) -> Tensor:
        there = (torch.stack([column, y], -1) + moved) / half - 1
        later = clip[1:].permute(0, 3, 1, 2)
        found = torch.nn.functional.grid_sample(later, there, padding_mode="border", align_corners=True)
        return ((found.permute(0, 2, 3, 1) - clip[:-1]).abs().mean(-1) * seen).sum() / seen.sum()

    return np.array([255 * float(error(_floats(a), b, c)) for a, b, c in zip(x, flow, visible, strict=True)])


def evaluate(frames: Any, truth: Any, mask: Any = None) -> dict[str, np.ndarray]:
    """The measures of a video against its truth by name, ``(b,)`` each; what both share is worked out once.

    psnr, ssim, sharpness_error; with a mask psnr_fg and ssim_fg; with more than one frame tde
    (:func:`temporal_difference_error`).
    """
    x, y = _pair(frames, truth)
    error, similarity = _squared_error(x, y), _similarity(x, y)
    values = {"psnr": _psnr(error, None), "ssim": _over_clip(_frame_means(similarity, None))}
    if mask is not None:
        values |= {"psnr_fg": _psnr(error, mask), "ssim_fg": _over_clip(_frame_means(similarity, mask))}
    if x.shape[1] > 1:
        values["tde"] = temporal_difference_error(x, y)
    return values | {"sharpness_error": sharpness_error(x, y)}


def smaller(x: Any, size: tuple[int, int]) -> Tensor:
    """Videos or masks at ``size`` (height, width): each pixel the mean of what it covers, a mask's where half is set.

    So that models of different resolutions compare. ValueError if a side is no multiple of the new one.
    """
    x = _tensor(x)
    (h, w), values = x.shape[2:4], x.float() if x.dtype == torch.bool else _floats(x)
    if h % size[0] or w % size[1]:
        raise ValueError(f"got pictures of {h}×{w}, expected multiples of {size[0]}×{size[1]}")
    blocks = values.unflatten(2, (size[0], -1)).unflatten(4, (size[1], -1)).mean((3, 5))
    return blocks >= 0.5 if x.dtype == torch.bool else blocks


# -- how sure --------------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over n clips with its 95 % interval; `run.record(metric, *estimate, PROTOCOL)` takes it as it is."""

    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


def bootstrap(values: Any, samples: int = 2000, seed: int = 0) -> Estimate:
    """Mean and 95 % percentile bootstrap interval of one number a clip, ``(n,)``; one clip alone has no interval.

    Deterministic. The percentile interval is a little too narrow for few clips: below ten, read it with care.
    ValueError for anything but a list of finite numbers.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values: got shape {values.shape} with values {values}, expected (n,) finite numbers, n > 0")
    if len(values) == 1:
        return Estimate(float(values[0]), None, None, 1)
    draws = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def paired(values_a: Any, values_b: Any, samples: int = 2000, seed: int = 0) -> Estimate:
    """`bootstrap` of a - b on the same clips: the interval leaves out 0 where the difference is more than chance."""
    a, b = np.asarray(values_a, np.float64), np.asarray(values_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"got {a.shape} and {b.shape} values, expected one of each for the same clips in one order")
    return bootstrap(a - b, samples, seed)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two sets of features ``(n, d)``, each taken for a Gaussian (Heusel et al., 1706.08500).

    Biased upwards, and the more so the fewer there are: compare sets of one size. ValueError for fewer than two.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"features: got {len(x)} and {len(y)}, expected at least two of each")
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.linalg.eigvalsh(half @ np.cov(y, rowvar=False) @ half)
    spread = np.trace(np.cov(x, rowvar=False)) + np.trace(np.cov(y, rowvar=False)) - 2 * np.sqrt(cross.clip(0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + spread)


# -- arrays ----------------------------------------------------------------------------------------------------------


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    x, y = _videos(x), _videos(y)
    if x.shape != y.shape:
        raise ValueError(f"got frames {tuple(x.shape)} and truth {tuple(y.shape)}, expected one shape; cut or resize")
    return x, y


def _videos(x: Any) -> Tensor:
    x = _tensor(x)
    if x.ndim != 5 or x.shape[-1] != 3 or 0 in x.shape:
        raise ValueError(f"got shape {tuple(x.shape)}, expected (b, f, h, w, 3); a single clip is x[None]")
    if x.dtype == torch.uint8 or (x.is_floating_point() and x.min() >= 0 and x.max() <= 1):
        return x
    raise ValueError(f"got {x.dtype} in [{x.min()}, {x.max()}], expected uint8 or float in [0, 1]; rescale it")


def _tensor(x: Any) -> Tensor:
    if not isinstance(x, Tensor):  # torch takes no read-only and no mirrored arrays
        x = torch.from_numpy(np.require(x, requirements=["C", "W"]))
    return x.detach().cpu()


def _each(function: Callable[..., Tensor], *videos: Tensor) -> Tensor:
    """`function` of the clips as float ``(f, h, w, 3)`` in [0, 1], stacked; one by one they stay in the cache."""
    return torch.stack([function(*map(_floats, clips)) for clips in zip(*videos, strict=True)])


def _floats(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _squared_error(x: Tensor, y: Tensor) -> Tensor:
    """``(b, f, h, w)``, mean over colours."""
    return _each(lambda a, b: (a - b).square().mean(-1), x, y)


def _similarity(x: Tensor, y: Tensor) -> Tensor:
    """SSIM map ``(b, f, h, w)``, mean over colours."""
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    def full_map(a: Tensor, b: Tensor) -> Tensor:
        a, b = a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)
        return similarity(a, b, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True)[1].mean(1)

    return _each(full_map, x, y)


def _frame_means(values: Tensor, mask: Any) -> np.ndarray:
    """Mean over (the masked) pixels of every frame: ``(b, f, h, w) -> (b, f)``, NaN where the mask is empty."""
    if mask is None:
        return values.double().mean((2, 3)).numpy()
    mask = torch.as_tensor(mask).cpu()
    if mask.dtype != torch.bool or mask.shape != values.shape:
        raise ValueError(f"mask: got {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(values.shape)}")
    seen = mask.sum((2, 3))
    if not seen.any(1).all():
        empty = torch.nonzero(~seen.any(1)).flatten().tolist()
        raise ValueError(f"mask: got no pixel in any frame of clips {empty}, expected a foreground; leave them out")
    return ((values.double() * mask).sum((2, 3)) / seen).numpy()


def _over_clip(frames: np.ndarray) -> np.ndarray:
    """Mean over the frames that count, ``(b, f) -> (b,)``."""
    return np.nanmean(frames, axis=1)


def _psnr(squared_error: Tensor, mask: Any) -> np.ndarray:
    mean = np.maximum(_frame_means(squared_error, mask), 10 ** (-PSNR_CAP / 10))
    return _over_clip(-10 * np.log10(mean))


def _at_least_two_frames(x: Tensor) -> None:
    if x.shape[1] < 2:
        raise ValueError(f"got {x.shape[1]} frame a clip, expected at least 2: this measure is about change")


def _steps(x: Any) -> np.ndarray:
    """Mean |x[t+1] - x[t]| in grey levels, ``(b, f-1)``."""
    x = _videos(x)
    _at_least_two_frames(x)
    return 255 * _each(lambda a: a.diff(dim=0).abs().mean((1, 2, 3)), x).double().numpy()


def _gradient_energy(x: Tensor) -> np.ndarray:
    return _each(lambda a: a.diff(dim=1).square().mean() + a.diff(dim=2).square().mean(), x).double().numpy()
