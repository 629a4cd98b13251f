"""Measures through published networks that packages bring: LPIPS, FID (torchmetrics), CLIP (transformers), RAFT.

Their weights are those of :data:`rainlab.measure.published.FILES`: where a file is missing, its measure is left out by
:func:`compare` and raises FileNotFoundError, naming the file, where it is asked for. Nothing is downloaded. Videos are
uint8 ``(b, f, h, w, 3)``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rainlab import runs
from rainlab.config import Preset
from rainlab.measure import legacy, metrics
from rainlab.measure.published import (
    FILES,
    I3D,
    ResNet3D,
    found,
    i3d_input,
    load,
    missing,
    resnet3d_input,
    window_features,
)
from rainlab.training.weights import digest

VERSION = 2
RAFT_SIDE = 128  # pixels that RAFT's pyramid needs


@torch.no_grad()
def lpips(x: np.ndarray, y: np.ndarray, net: str = "vgg", legacy_range: bool = False) -> np.ndarray:
    """LPIPS by "vgg" or "alex", mean over frames: ``(b,)``; in the legacy range the net is fed [0, 1] for [-1, 1]."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    _file(net)  # torchmetrics would download it
    measure = LearnedPerceptualImagePatchSimilarity(net, normalize=not legacy_range)

    def value(*clips: np.ndarray) -> float:
        measure.reset()
        return float(measure(*(torch.from_numpy(clip).movedim(-1, 1).float() / 255 for clip in clips)))

    return np.array([value(*clips) for clips in zip(x, y, strict=True)])


@torch.no_grad()
def fid(x: np.ndarray, y: np.ndarray, features: int = 2048) -> float:
    """Fréchet distance of the frames of two sets of videos, in Inception's features (Heusel et al., 1706.08500).

    ImportError without torch-fidelity, whose Inception is the original one.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ImportError("FID needs torch-fidelity: pip install 'rainlab[fid]'")
    from torchmetrics.image.fid import FrechetInceptionDistance

    measure = FrechetInceptionDistance(features, feature_extractor_weights_path=str(_file("inception")))
    for real, videos in ((True, y), (False, x)):
        for clip in videos:
            measure.update(torch.from_numpy(clip).movedim(-1, 1), real=real)
    return float(measure.compute())


@cache
def _clip(folder: Path):
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    options = {"local_files_only": True}
    network = CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True, **options)
    return network.eval().requires_grad_(False), CLIPImageProcessor.from_pretrained(folder, **options)


@torch.no_grad()
def clip_vectors(videos: np.ndarray) -> Tensor:
    """What CLIP says of every frame, unit vectors ``(b, f, d)``."""
    network, prepare = _clip(_file("clip"))
    rows = [network(**prepare(list(clip), return_tensors="pt")).image_embeds for clip in videos]
    return F.normalize(torch.stack(rows), dim=-1)


def clip_i(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """CLIP-I: cosine of frame with frame, mean over frames: ``(b,)``."""
    return (clip_vectors(x) * clip_vectors(y)).sum(-1).mean(1).double().numpy()


def consistency(x: np.ndarray, apart: int = 1) -> np.ndarray:
    """Frame consistency: CLIP's cosine of frames that many apart, mean over the clip: ``(b,)``.

    Of neighbours it is what is usually reported, and misses drift; take larger distances, too.
    """
    vectors = clip_vectors(x)
    return (vectors[:, apart:] * vectors[:, :-apart]).sum(-1).mean(1).double().numpy()


@cache
def _raft(path: Path) -> torch.nn.Module:
    from torchvision.models.optical_flow import raft_large

    network = raft_large()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def flow(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RAFT's flow of a clip ``(f, h, w, 3)`` and where it is sure: ``(f-1, h, w, 2)``, bool ``(f-1, h, w)``.

    Sure: going there and back ends less than a pixel off, by the criterion of Sundaram et al. (ECCV 2010). Small
    pictures are enlarged first.
    """
    network, (h, w) = _raft(_file("raft")), clip.shape[1:3]
    scale = max(1.0, RAFT_SIDE / min(h, w))
    size = [-(-round(n * scale) // 8) * 8 for n in (h, w)]
    frames = torch.from_numpy(clip).movedim(-1, 1).float() / 127.5 - 1
    large = F.interpolate(frames, size, mode="bilinear", antialias=True)

    def moved(a: Tensor, b: Tensor) -> Tensor:
        found = torch.cat([network(a[i : i + 1], b[i : i + 1])[-1] for i in range(len(a))])
        small = F.interpolate(found, (h, w), mode="bilinear", antialias=True)
        return (small * torch.tensor([w / size[1], h / size[0]])[:, None, None]).permute(0, 2, 3, 1)

    there, back = moved(large[:-1], large[1:]), moved(large[1:], large[:-1])
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = (torch.stack([x, y], -1) + there) / (torch.tensor([w - 1, h - 1]) / 2) - 1
    returned = F.grid_sample(back.permute(0, 3, 1, 2), place, padding_mode="border", align_corners=True)
    off = (there + returned.permute(0, 2, 3, 1)).square().sum(-1)
    sure = off < 0.01 * (there.square() + returned.permute(0, 2, 3, 1).square()).sum(-1) + 0.5
    return there.numpy(), (sure & (place.abs() <= 1).all(-1)).numpy()


def warping_error(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """:func:`rainlab.measure.metrics.warping_error` by RAFT's flow of the truth: ``(b,)``."""
    flows, sure = zip(*map(flow, truth), strict=True)
    return metrics.warping_error(x, np.stack(flows), np.stack(sure))


def _file(network: str) -> Path:
    if network not in (there := found()):
        raise FileNotFoundError(f"{network} needs {' '.join(FILES[network])}")
    return there[network]


def compare(preset: Preset, record: bool = False) -> runs.Run:
    """The run that holds legacy.COMPARED methods in all published measures whose networks are there.

    ``record`` as in :func:`evaluate.measure`. Metrics ``fvd``, ``fid_vid``, ``lpips_vgg_legacy`` (protocol of
    :mod:`legacy`), ``lpips_vgg``, ``lpips_alex``, ``fid``, ``clip_i``, ``clip_consistency`` (label ``apart``),
    ``warping_raft`` (of :mod:`metrics`), label ``method``.

    Raises FileNotFoundError, naming the files, if no network is there.
    """
    there = found()
    if not there:
        raise FileNotFoundError(f"no network for a published measure is there; get one:\n{missing()}")
    sums = {network: digest(path if path.is_file() else path / "model.safetensors") for network, path in there.items()}
    return legacy.compared("published", VERSION, preset, partial(_measures, there), record, sums)


def _measures(there: dict[str, Path], frames: np.ndarray, truth: np.ndarray) -> Iterator[legacy.Row]:
    for name, network, kind, prepare in (
        ("fvd", "i3d", I3D, i3d_input),
        ("fid_vid", "resnet3d", ResNet3D, resnet3d_input),
    ):
        if network in there:
            look = partial(window_features, load(kind(), there[network]), prepare)
            ours, theirs = look(frames), look(truth)
            yield name, (metrics.frechet(ours, theirs), None, None, len(ours)), legacy.PROTOCOL, {}
    if "vgg" in there:
        yield "lpips_vgg_legacy", metrics.bootstrap(lpips(frames, truth, "vgg", True)), legacy.PROTOCOL, {}
    for net in ("vgg", "alex"):
        if net in there:
            yield f"lpips_{net}", metrics.bootstrap(lpips(frames, truth, net)), metrics.PROTOCOL, {}
    if "inception" in there and importlib.util.find_spec("torch_fidelity"):
        yield "fid", (fid(frames, truth), None, None, frames[..., 0, 0, 0].size), metrics.PROTOCOL, {}
    if "clip" in there:
        yield "clip_i", metrics.bootstrap(clip_i(frames, truth)), metrics.PROTOCOL, {}
        for apart in (d for d in (1, 2, 5, 10, 20, 50) if d < frames.shape[1]):
            yield "clip_consistency", metrics.bootstrap(consistency(frames, apart)), metrics.PROTOCOL, {"apart": apart}
    if "raft" in there:
        yield "warping_raft", metrics.bootstrap(warping_error(frames, truth)), metrics.PROTOCOL, {}
