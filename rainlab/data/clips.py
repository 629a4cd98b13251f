"""Clips: frames with their condition pictures, from the studio or from video files, behind one interface.

Training sees a `Sequence[Clip]` with a `fingerprint()`: `StudioClips` renders a clip when it is asked for,
`ManifestClips` reads it from real files. A manifest is a file of JSON lines, one `Entry` each, with paths relative to
its own folder.

    write_studio("data/studio", "train", count=100, frames=48, size=(128, 96))
    clip = ManifestClips("data/studio/manifest.jsonl", "train", size=(128, 96), frames=16)[0]
"""

import hashlib
import json
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from rainlab.data import pose
from rainlab.data.studio import body
from rainlab.data.video import VideoError, crop_to, probe, read_video, write_video
from rainlab.files import atomic_path

SPLITS = body.SPLITS
PARTS = ("videos", "conditions", "masks")  # a data set's sub-folders with a NAME.mp4 per clip; masks may be missing
STUDIO_LICENCE = "Apache-2.0"
PAUSE = (8, 56)  # frames left out after the first of a clip with a pause: from, to (in all: six seconds at 12 a second)
TOGETHER = 8  # clips asked for in one slice and rendered in one call: more gain nothing and need more memory


@dataclass(frozen=True, eq=False)
class Clip:
    """Some frames and the condition pictures that drive them.

    frames, condition: uint8 (f, h, w, 3) RGB. Or None where it is not known: mask, bool (f, h, w), the character; flow,
    float32 (f-1, h, w, 2), and visible, bool (f-1, h, w), of each pixel to the next frame. (More ground truth comes
    from the studio itself: `studio.body.render`.)
    """

    frames: np.ndarray
    condition: np.ndarray
    name: str
    fps: float
    split: str
    licence: str
    mask: np.ndarray | None = None
    flow: np.ndarray | None = None
    visible: np.ndarray | None = None


@dataclass(frozen=True)
class Entry:
    """One line of a manifest: frames start … stop-1 of a video of `size` (height, width), and the files beside it.

    The condition and mask videos have the video's size and number of frames, so that the same range holds for them.
    """

    path: str
    start: int
    stop: int
    size: tuple[int, int]
    fps: float
    condition: str
    mask: str | None
    split: str
    licence: str

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(self.size))  # JSON gives a list
        if not all(isinstance(number, int) for number in (self.start, self.stop, *self.size)):
            raise TypeError(f"got {self.start}, {self.stop}, {self.size}, expected start, stop, size as whole numbers")
        _check(self.split, self.stop - self.start, self.size, self.fps)
        if self.start < 0:
            raise ValueError(f"start: got {self.start}, expected 0 or more; count from the file's first frame")
        for file in (self.path, self.condition, self.mask):
            if file is not None and (not file or PurePosixPath(file).is_absolute()):
                raise ValueError(f"path: got {file!r}, expected one relative to the manifest's folder; write it so")


def _check(split: str, frames: int, size: tuple[int, int], fps: float) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}; correct the name")
    if frames < 1:
        raise ValueError(f"frames: got {frames}, expected at least 1; ask for more")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: got {size}, expected (height, width) in pixels, both positive; correct it")
    if not fps > 0:
        raise ValueError(f"fps: got {fps}, expected a positive number of frames per second; correct it")


def read_manifest(path: str | Path) -> list[Entry]:
    """Entries of a manifest. ValueError names the line that is wrong: missing and unknown keys are."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such manifest; write it with `python -m data_prep.<data set> manifest`")
    entries = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), 1):
        try:
            entries.append(Entry(**json.loads(line.decode("utf-8"))))
        except (TypeError, ValueError, RecursionError) as error:
            keys = ", ".join(field.name for field in fields(Entry))
            raise ValueError(f"{path}, line {number}: {error}; expected an object with the keys {keys}") from error
    return entries


def write_manifest(path: str | Path, entries: Sequence[Entry]) -> Path:
    """Write entries as JSON lines, atomically; returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in entries), encoding="utf-8")
    return Path(path)


class StudioClips(Sequence[Clip]):
    """`count` clips of the studio, the split's characters number start … start+count-1, each with a motion of its own.

    facing: motions that begin facing the camera and mostly stay so, so that frame 0 makes a good reference. pause: some
    of the motion after frame 0, as much as a draw of PAUSE says, is left out: a short clip then holds a reference and
    what is to be learned far from it.

    A clip is rendered when asked for: the same every time (see `studio.body.render`). A slice renders its clips
    together, at 64×48 pixels in half the time. Raises ValueError naming the argument that is wrong.
    """

    def __init__(
        self,
        split: str,
        count: int,
        frames: int = 16,
        size: tuple[int, int] = (64, 48),
        fps: float = 12.0,
        start: int = 0,
        facing: bool = False,
        pause: bool = False,
    ):
        _check(split, frames, size, fps)
        if count < 1 or start < 0:
            raise ValueError(f"got count {count} and start {start}, expected count >= 1 and start >= 0; correct them")
        self.split, self.count, self.start = split, count, start
        self.frames, self.size, self.fps, self.facing, self.pause = frames, tuple(size), fps, facing, pause

    def __len__(self) -> int:
        return self.count

    def _number(self, index: int) -> int:
        return self.start + range(self.count)[operator.index(index)]  # negative indices and IndexError as for any list

    def name(self, index: int) -> str:
        """The clip's name, known before it is rendered."""
        return f"{self.split}_{self._number(index):05d}"

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if not isinstance(index, slice):
            return self._render([index])[0]
        chosen = range(self.count)[index]
        parts = (chosen[i : i + TOGETHER] for i in range(0, len(chosen), TOGETHER))
        return [clip for part in parts for clip in self._render(part)]

    def _render(self, indices: Sequence[int]) -> list[Clip]:
        seeds = torch.cat([body.split_seeds(self.split, 1, self._number(index)) for index in indices])
        made, conditions = self._made(seeds)
        return [
            Clip(
                frames=made.frames[i].numpy(),
                condition=conditions[i],
                name=self.name(index),
                fps=self.fps,
                split=self.split,
                licence=STUDIO_LICENCE,
                mask=made.mask[i].numpy(),
                flow=made.flow[i].numpy(),
                visible=made.visible[i].numpy(),
            )
            for i, index in enumerate(indices)
        ]

    def _made(self, seeds: torch.Tensor) -> tuple[body.BodyClips, Sequence[np.ndarray]]:
        """What the studio knows of the clips of these seeds, and their condition pictures."""
        pause = body.pauses(seeds, *PAUSE) if self.pause else None
        made = body.render(seeds, seeds, self.frames, self.size, self.fps, facing=self.facing, pause=pause)
        return made, pose.draw(made.keypoints, self.size).numpy()

    def fingerprint(self) -> dict:
        """All that determines the clips, for the hash of a run."""
        settings = vars(self) | {"size": list(self.size)}
        settings = {key: value for key, value in settings.items() if value is not False}  # as before there were these
        return {"source": "studio", "version": body.VERSION} | settings


class ManifestClips(Sequence[Clip]):
    """The clips of one split of a manifest: every entry cut into windows of `frames` frames that follow each other.

    What is left at an entry's end is not used. Pictures are resized to `size` (bilinear with antialiasing); another
    shape (over 2 % off) is an error, or is cut to the centre with fit="crop". When made, checks that every file is
    there and every entry long enough and of a fitting shape; when a clip is read, that the video agrees with the
    manifest, and condition and mask with the video. VideoError for a file, ValueError for an argument.
    """

    def __init__(
        self, manifest: str | Path, split: str, size: tuple[int, int] = (64, 48), frames: int = 16, fit: str = "error"
    ):
        entries = read_manifest(manifest)
        self.folder, self.split, self.frames = Path(manifest).parent, split, frames
        self.size, self.fit = tuple(size), fit
        self.entries = [entry for entry in entries if entry.split == split]
        if not self.entries:
            splits = sorted({entry.split for entry in entries})
            raise ValueError(f"{manifest}: got no clip of split {split!r}, expected one of {splits}; choose another")
        _check(split, frames, size, self.entries[0].fps)
        for entry in self.entries:
            length, path = entry.stop - entry.start, self.folder / entry.path
            if length < frames:
                fix = f"ask for fewer frames, or leave it out: check --least {frames}, then manifest"
                raise VideoError(path, f"{length} frames", f"at least {frames}", fix)
            crop_to(entry.size, size, fit, path)
            for file in (entry.path, entry.condition, entry.mask):
                if file and not (self.folder / file).is_file():
                    fix = "make it, or write the manifest again"
                    raise VideoError(self.folder / file, "no such file", "a video", fix)
        self._windows = [(e, start) for e in self.entries for start in range(e.start, e.stop - frames + 1, frames)]

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int | slice) -> Clip | list[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        entry, start = self._windows[operator.index(index)]
        video = probe(self.folder / entry.path)
        self._same(entry.path, (video["height"], video["width"]), entry.size, "pixels", "as the manifest has it")
        parts = [entry.path, entry.condition] + ([entry.mask] if entry.mask else [])
        for part in parts[1:]:
            other = probe(self.folder / part)
            self._same(part, other["frames"], video["frames"], "frames", f"as in {entry.path}")
            self._same(part, (other["height"], other["width"]), entry.size, "pixels", f"as in {entry.path}")
        stop = start + self.frames
        pictures = [read_video(self.folder / part, start, stop, self.size, self.fit)[0] for part in parts]
        return Clip(
            frames=pictures[0],
            condition=pictures[1],
            name=f"{Path(entry.path).stem}@{start}",
            fps=entry.fps,
            split=entry.split,
            licence=entry.licence,
            mask=pictures[2][..., 0] > 127 if entry.mask else None,
        )

    def _same(self, file: str, got, expected, unit: str, why: str) -> None:
        if got != expected:
            fix = "make it again (annotate), or leave it out (check, then manifest)"
            raise VideoError(self.folder / file, f"{got} {unit}", f"{expected} {why}", fix)

    def fingerprint(self) -> dict:
        """All that determines the clips, for the hash of a run; files by their names, ranges and lengths in bytes."""
        content = hashlib.sha256()
        for entry in self.entries:
            files = [file for file in (entry.path, entry.condition, entry.mask) if file]
            lengths = [(self.folder / file).stat().st_size for file in files]
            content.update(json.dumps([asdict(entry), lengths]).encode())
        settings = {"split": self.split, "frames": self.frames, "size": list(self.size), "fit": self.fit}
        return {"source": "manifest", "content": content.hexdigest()} | settings


def write_clip(folder: str | Path, clip: Clip, parts: Sequence[str] = PARTS) -> Entry:
    """Write the `parts` of a clip as folder/PART/NAME.mp4 and return its entry, which names all parts the clip has.

    The frames are written as players show them (yuv420p, so even sizes only), condition and mask without loss.
    """
    pictures = {"videos": clip.frames, "conditions": clip.condition}
    if clip.mask is not None:
        pictures["masks"] = np.repeat(clip.mask[..., None], 3, axis=-1) * np.uint8(255)
    paths = {part: f"{part}/{clip.name}.mp4" for part in pictures}
    for part in paths.keys() & parts:
        write_video(Path(folder) / paths[part], pictures[part], clip.fps, lossless=part != "videos")
    return Entry(
        path=paths["videos"],
        start=0,
        stop=len(clip.frames),
        size=clip.frames.shape[1:3],
        fps=clip.fps,
        condition=paths["conditions"],
        mask=paths.get("masks"),
        split=clip.split,
        licence=clip.licence,
    )


def write_studio(
    folder: str | Path, split: str, count: int, frames: int = 16, size: tuple[int, int] = (64, 48), fps: float = 12.0
) -> Path:
    """Write `count` studio clips as mp4 files with conditions and masks; returns the path of folder/manifest.jsonl.

    One split a folder: a manifest that is there is replaced. `python -m data_prep.studio` writes several, and resumes.
    """
    entries = [write_clip(folder, clip) for clip in StudioClips(split, count, frames, size, fps)]
    return write_manifest(Path(folder) / "manifest.jsonl", entries)
