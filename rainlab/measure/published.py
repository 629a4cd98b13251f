"""What published measures look through: networks trained on photographs, whose weights have to be brought along.

Files lie in the folder that the environment variable RAINLAB_WEIGHTS names (``weights`` beside the notebooks if it
names none), torchvision's in torch's own cache. Nothing is downloaded. Where a network's file is missing its measures
are left out, and :func:`found` says which are there.

FVD and FID-VID as in :mod:`rainlab.measure.legacy`; what packages bring is in :mod:`rainlab.measure.perception`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rainlab.files import check_digest, root
from rainlab.measure import legacy

FILES = {
    "i3d": ("i3d_pretrained_400.pt", "of DisCo's evaluation files, folder eval_fvd, into weights/"),
    "resnet3d": ("resnet-50-kinetics.pth", "of DisCo's evaluation files, folder eval_fvd, into weights/"),
    "clip": ("clip-vit-base-patch32", "the folder of huggingface.co/openai/clip-vit-base-patch32, into weights/"),
    "vgg": ("vgg16-397923af.pth", "from download.pytorch.org/models into ~/.cache/torch/hub/checkpoints/"),
    "alex": ("alexnet-owt-7be5be79.pth", "from download.pytorch.org/models into ~/.cache/torch/hub/checkpoints/"),
    "inception": ("weights-inception-2015-12-05-6726825d.pth",
                  "from github.com/toshas/torch-fidelity/releases into ~/.cache/torch/hub/checkpoints/"),
    "raft": ("raft_large_C_T_SKHT_V2-ff5fadd5.pth",
             "from download.pytorch.org/models into ~/.cache/torch/hub/checkpoints/"),
}  # fmt: skip
"""Network -> its file's name, where it comes from and goes. Eight digits before the ending begin the file's sha256."""


def found() -> dict[str, Path]:
    """Network -> its file, of those that are there.

    Raises ValueError for a file whose name holds another checksum than it has.
    """
    there = {}
    for network, (name, where) in FILES.items():
        stated = re.search(r"-([0-9a-f]{8})\.", name)
        folder = Path(torch.hub.get_dir(), "checkpoints") if stated else os.environ.get("RAINLAB_WEIGHTS")
        path = Path(folder or root() / "weights", name)
        if path.exists():
            check_digest(path, stated and stated[1], f"get it again, {where}")
            there[network] = path
    return there


def missing() -> str:
    """Which files are not there and where they come from, a line each; empty if none."""
    there = found()
    return "\n".join(f"{name} {where}" for network, (name, where) in FILES.items() if network not in there)


# -- networks --------------------------------------------------------------------------------------------------------


class Unit3D(nn.Module):
    """Convolution, norm, ReLU on a volume padded as TensorFlow's "same" does."""

    def __init__(self, before: int, after: int, kernel: int = 1, stride: int = 1, logits: bool = False):
        super().__init__()
        self.conv3d = nn.Conv3d(before, after, kernel, stride, bias=logits)
        self.bn = nn.Identity() if logits else nn.BatchNorm3d(after, eps=1e-3)
        self._how, self._last = ((kernel,) * 3, (stride,) * 3), nn.Identity() if logits else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self._last(self.bn(self.conv3d(_same(x, *self._how))))


class Pool3D(nn.Module):
    """Maximum over a volume padded in the same way, with zeros."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self._how = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_same(x, *self._how), *self._how)


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    pads: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        whole = max(k - (size % s or s), 0)
        pads += [whole // 2, whole - whole // 2]
    return F.pad(x, pads)


class Mixed(nn.Module):
    """An Inception block of four branches."""

    def __init__(self, before: int, a: int, b: int, c: int, d: int, e: int, f: int):
        super().__init__()
        self.b0, self.b1a, self.b1b = Unit3D(before, a), Unit3D(before, b), Unit3D(b, c, 3)
        self.b2a, self.b2b = Unit3D(before, d), Unit3D(d, e, 3)
        self.b3a, self.b3b = Pool3D((3, 3, 3), (1, 1, 1)), Unit3D(before, f)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], 1)


class I3D(nn.Module):
    """Inflated Inception (Carreira and Zisserman, arXiv 1705.07750), with the key names of its PyTorch weights.

    ``(b, 3, f, 224, 224)`` in [-1, 1] -> 400 logits ``(b, 400)``, the mean over time.
    """

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7, self.MaxPool3d_2a_3x3 = Unit3D(3, 64, 7, 2), Pool3D((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit3D(64, 64), Unit3D(64, 192, 3)
        self.MaxPool3d_3a_3x3 = Pool3D((1, 3, 3), (1, 2, 2))
        self.Mixed_3b, self.Mixed_3c = Mixed(192, 64, 96, 128, 16, 32, 32), Mixed(256, 128, 128, 192, 32, 96, 64)
        self.MaxPool3d_4a_3x3 = Pool3D((3, 3, 3), (2, 2, 2))
        self.Mixed_4b, self.Mixed_4c = Mixed(480, 192, 96, 208, 16, 48, 64), Mixed(512, 160, 112, 224, 24, 64, 64)
        self.Mixed_4d, self.Mixed_4e = Mixed(512, 128, 128, 256, 24, 64, 64), Mixed(512, 112, 144, 288, 32, 64, 64)
        self.Mixed_4f, self.MaxPool3d_5a_2x2 = Mixed(528, 256, 160, 320, 32, 128, 128), Pool3D((2, 2, 2), (2, 2, 2))
        self.Mixed_5b, self.Mixed_5c = Mixed(832, 256, 160, 320, 32, 128, 128), Mixed(832, 384, 192, 384, 48, 128, 128)
        self.logits = Unit3D(1024, 400, logits=True)

    def forward(self, x: Tensor) -> Tensor:
        for name, block in self.named_children():
            x = block(F.avg_pool3d(x, (1, 7, 7), 1)) if name == "logits" else block(x)
        return x.mean((2, 3, 4))


class Bottleneck3D(nn.Module):
    """A residual block of three convolutions."""

    def __init__(self, before: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(before, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2, self.bn2 = nn.Conv3d(width, width, 3, stride, 1, bias=False), nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, 4 * width, 1, bias=False), nn.BatchNorm3d(4 * width)
        self.downsample = None
        if stride != 1 or before != 4 * width:
            shortcut = nn.Conv3d(before, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm3d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet3D(nn.Module):
    """3D ResNet-50 (Hara et al., arXiv 1711.09577), with the key names of its weights.

    ``(b, 3, 16, 112, 112)``, grey levels without their mean -> features ``(b, 2048)``.
    """

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(3, 64, 7, (1, 2, 2), 3, bias=False), nn.BatchNorm3d(64)
        before = 64
        for i, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
            blocks = [Bottleneck3D(before, width, 1 if i == 0 else 2)]
            blocks += [Bottleneck3D(4 * width, width) for _ in range(count - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            before = 4 * width
        self.fc = nn.Linear(before, 400)  # not used: its weights are in the file

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3, 4))


def load(network: nn.Module, path: Path) -> nn.Module:
    """Fill a network from its published file, strictly; without running anything that the file holds.

    Raises ValueError for a damaged file, one that holds more than tensors, or one of another network.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {key.removeprefix("module."): value for key, value in held.get("state_dict", held).items()}
        network.load_state_dict(tensors)
    except Exception as error:  # of pickle, zip and shapes alike
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"{path.name}: no weights of {type(network).__name__} ({reason}); get it again") from error
    return network.eval().requires_grad_(False)


# -- measures --------------------------------------------------------------------------------------------------------


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames ``(f, h, w, 3)`` as float32 of ``size`` × ``size``, bicubic by Pillow, not rounded."""
    from PIL import Image

    def channel(values: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(values.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC))

    return np.stack([np.stack([channel(frame[..., i]) for i in range(3)], -1) for frame in frames])


def i3d_input(window: np.ndarray) -> Tensor:
    """A window ``(f, h, w, 3)`` as I3D takes it."""
    return torch.from_numpy(resized(window, 224) / 127.5 - 1).permute(3, 0, 1, 2)


def resnet3d_input(window: np.ndarray) -> Tensor:
    """A window ``(f, h, w, 3)`` as the 3D ResNet takes it."""
    return torch.from_numpy(resized(window, 112) - np.float32([114.7748, 107.7354, 99.4750])).permute(3, 0, 1, 2)


@torch.no_grad()
def window_features(network: nn.Module, prepare: Callable[[np.ndarray], Tensor], videos: np.ndarray) -> np.ndarray:
    """Features of all legacy windows of clips ``(b, f, h, w, 3)``, each through a GIF: ``(n, d)``."""
    cut = [legacy.through_gif(window) for video in videos for window in legacy.windows(video)]
    return np.stack([network(prepare(window)[None])[0].numpy() for window in tqdm(cut, "windows", leave=False)])
