"""Training data: clips as arrays, latents computed once, and draws that depend on nothing but (seed, step, sample).

Because every sample of every step has its own random generator, there is no generator state to save: an interrupted
run resumes bit for bit on its machine, and splitting a batch over processes or accumulation steps does not change it
but by rounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rainlab import runs
from rainlab.config import DataConfig
from rainlab.data.clips import TOGETHER, Clip, ManifestClips, StudioClips
from rainlab.data.faces import StudioFaces
from rainlab.data.scenes import StudioScenes
from rainlab.files import atomic_path, root, write_json
from rainlab.method.rain import to_signed
from rainlab.method.vae import VAE

STUDIO = {
    "studio": StudioClips,
    "faces": StudioFaces,
    "faces with gaps": partial(StudioFaces, gaps=True),
    "scenes": StudioScenes,
}
FROM_THE_FRONT = 0.8  # share of the samples whose reference is the frame that faces the camera
SAVED = 32  # clips rendered between two notes of how far it is: writing the arrays out takes longer the larger they are
VERSION = 1  # raised when the arrays of the same clips would come out differently


@dataclass
class Batch:
    """Samples of one optimiser (or accumulation) step; f frames are trained per reference."""

    reference: Tensor  # (b, h, w, 3) uint8
    reference_latents: Tensor  # (b, c, h', w')
    latents: Tensor  # (b, f, c, h', w')
    condition: Tensor  # (b, f, h, w, 3) uint8

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in vars(self).values()))


class Draw:
    """Random numbers for given samples of one step, the same however the batch is split."""

    def __init__(self, seed: int, step: int, samples: Sequence[int]):
        self.generators = []
        for sample in samples:
            state = np.random.SeedSequence([seed, step, sample]).generate_state(1, np.uint64)[0]
            self.generators.append(torch.Generator().manual_seed(int(state >> np.uint64(1))))

    def normal(self, *shape: int) -> Tensor:
        """``(b, *shape)`` standard normal."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])

    def uniform(self, *shape: int) -> Tensor:
        """``(b, *shape)`` in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=g) for g in self.generators])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """``(b, *shape)`` in [low, high)."""
        return torch.stack([torch.randint(low, high, shape, generator=g) for g in self.generators])


@lru_cache(maxsize=8)  # a manifest's files are scanned once
def clips_of(cfg: DataConfig, split: str) -> Sequence[Clip]:
    """The clips a configuration names: the studio's bodies, faces or scenes, or those of a manifest."""
    held_out = (cfg.test_clips, cfg.test_gap + cfg.test_frames)
    count, frames = (cfg.clips, cfg.frames) if split == "train" else held_out
    if studio := STUDIO.get(cfg.source):
        pause = cfg.facing and split == "train"  # a test clip has its gap instead
        return studio(split, count, frames, cfg.size, cfg.fps, facing=cfg.facing, pause=pause)
    return ManifestClips(root() / cfg.source, split, cfg.size, frames)


class TrainingSet:
    """Frames, conditions and (after :meth:`encode`) latents of clips.

    Args:
        clips: the source.
        pictures: frames and conditions, uint8 ``(n, f, h, w, 3)`` each, if they are kept as arrays (:func:`cached`);
            otherwise clips are read when asked for.
        margin: least distance, in frames, of a scattered target from its reference.
        facing: frame 0 of each clip faces the camera, a pause before the others: it is the reference of four samples
            in five, and nothing else.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        pictures: tuple[np.ndarray, np.ndarray] | None = None,
        margin: int = 1,
        facing: bool = False,
    ):
        self.clips, self.pictures, self.latents, self.margin = clips, pictures, None, max(1, margin)
        self.facing = facing
        self.count = len(clips)
        first = pictures[0][0] if pictures else clips[0].frames
        self.frames = len(first)

    def take(self, clip: int) -> tuple[np.ndarray, np.ndarray]:
        """(frames, conditions) of one clip, uint8 ``(f, h, w, 3)``."""
        if self.pictures:
            return self.pictures[0][clip], self.pictures[1][clip]
        one = self.clips[clip]
        return one.frames, one.condition

    @torch.no_grad()
    def encode(self, autoencoder: VAE, path: Path) -> TrainingSet:
        """Latents of every frame, computed once and kept in ``path`` (float16 ``.npy``); returns self."""
        if not path.exists():
            device = next(autoencoder.parameters()).device
            first = autoencoder.encode(to_signed(torch.tensor(self.take(0)[0][:1])).to(device))
            shape = (self.count, self.frames, *first.shape[1:])

            def fill(array: np.ndarray, clip: int) -> None:
                frames = to_signed(torch.tensor(self.take(clip)[0])).to(device)
                array[clip] = torch.cat([autoencoder.encode(part) for part in frames.split(32)]).cpu().numpy()

            with atomic_path(path) as temporary:
                array = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                for clip in tqdm(range(self.count), "latents", leave=False):
                    fill(array, clip)
                array.flush()
        self.latents = np.load(path, mmap_mode="r")
        return self

    def clip_at(self, seed: int, step: int, sample: int, size: int) -> int:
        """Which clip a sample of a step shows: every clip once an epoch, in an order shuffled anew each time."""
        epoch, place = divmod(step * size + sample, self.count)
        return int(np.random.default_rng([seed, 1, epoch]).permutation(self.count)[place])

    def batch(
        self, seed: int, step: int, samples: Sequence[int], size: int, frames: int, window: bool, sink: int = 0
    ) -> Batch:
        """Samples of a step: a reference frame and ``frames`` others of the same clip.

        ``window=True`` takes neighbouring frames (stage 2), else scattered ones, all at least ``margin`` away from the
        reference (stage 1). ``size`` is the whole batch, ``samples`` the part of it that is wanted. Behind a window
        follow ``sink`` neighbouring frames from elsewhere in the clip, before it or after it.
        """
        begin = int(self.facing)  # the first frame that may be a target
        need = frames if window else frames + 2 * self.margin - 1  # wherever the reference stands
        need += max(0, 2 * sink - 1)  # wherever the window stands, on one side of it there is room
        if need > self.frames - begin:
            raise ValueError(f"clips of {self.frames} frames: got {need} asked for; use longer clips (data.frames)")
        parts = []
        for sample in samples:
            clip = self.clip_at(seed, step, sample, size)
            rng = np.random.default_rng([seed, 2, step, sample])
            reference, first = (begin + int(rng.integers(n - begin)) for n in (self.frames, self.frames - frames + 1))
            far = begin + np.flatnonzero(abs(np.arange(begin, self.frames) - reference) >= self.margin)
            if self.facing and rng.random() < FROM_THE_FRONT:
                reference, far = 0, np.arange(1, self.frames)
            chosen = np.arange(first, first + frames) if window else np.sort(rng.permutation(far)[:frames])
            if sink:
                starts = np.arange(begin, self.frames - sink + 1)
                apart = starts[(starts + sink <= first) | (starts >= first + frames)]
                chosen = np.append(chosen, rng.choice(apart) + np.arange(sink))
            pictures, conditions = self.take(clip)
            latents = self.latents[clip] if self.latents is not None else np.zeros((self.frames, 0, 0, 0), np.float16)
            parts.append((pictures[reference], latents[reference], latents[chosen], conditions[chosen]))
        picture, reference, latents, condition = (np.stack(column) for column in zip(*parts, strict=True))
        half = lambda x: torch.from_numpy(x).float()  # noqa: E731
        return Batch(torch.from_numpy(picture), half(reference), half(latents), torch.from_numpy(condition))


def cached(clips: Sequence[Clip], margin: int = 1, facing: bool = False) -> tuple[TrainingSet, runs.Run]:
    """Render or decode every clip once into memory-mapped arrays, in a run of its own that later calls reuse.

    An interrupted call continues where its last note says the arrays are filled to.
    """
    run = runs.open_run("data", clips.fingerprint(), VERSION)
    files = [run.path / "frames.npy", run.path / "condition.npy"]
    with run.lock():
        if not run.finished:
            _fill(clips, run.path, files)
            run.record("clips", len(clips))
            run.finish()
    return TrainingSet(clips, tuple(np.load(file, mmap_mode="r") for file in files), margin, facing), run


def _fill(clips: Sequence[Clip], folder: Path, files: list[Path]) -> None:
    note = folder / "progress.json"
    done = json.loads(note.read_text())["clips"] if note.exists() and all(f.exists() for f in files) else 0
    first = clips[0]
    arrays = [
        np.lib.format.open_memmap(file, "r+" if done else "w+", np.uint8, (len(clips), *pictures.shape))
        for file, pictures in zip(files, (first.frames, first.condition), strict=True)
    ]

    with tqdm(total=len(clips), initial=done, desc="clips", leave=False) as bar:
        for begin in range(done, len(clips), TOGETHER):
            part = clips[begin : begin + TOGETHER]
            for i, clip in enumerate(part, begin):
                arrays[0][i], arrays[1][i] = clip.frames, clip.condition
            bar.update(len(part))
            done = begin + len(part)
            if done % SAVED == 0 or done == len(clips):
                for array in arrays:
                    array.flush()
                write_json(note, {"clips": done})
