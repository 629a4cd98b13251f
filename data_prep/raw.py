"""From raw videos to clips: what the scripts of the real data sets share.

    raw video ──Piece: frames, box, size──▶ videos/NAME.mp4 ──detect, draw──▶ conditions/NAME.mp4

reports/NAME.json says what was done to a clip: under `cut` from what and how it was cut, under `annotate` in which
frames nothing was detected, or under `dropped` why there is no clip. `check` reads it. Every file is written as a whole
or not at all, and a clip is made again if it is not what its report says: interrupted work goes on where it was.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from data_prep import verbs
from rainlab.data import detect as detectors
from rainlab.data.video import VideoError, iter_video, probe, resized, write_video
from rainlab.files import plain, write_json

TOGETHER = 16  # pictures that are drawn in one call
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


def videos(folder: str | Path) -> dict[str, Path]:
    """Stem -> path of all video files in a folder and those below it, in order of stem.

    ValueError if there is none, or if two have the same stem: clips are named after it.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise ValueError(f"got {found[path.stem]} and {path}, expected one video {path.stem}; rename or remove one")
        found[path.stem] = path
    if not found:
        raise ValueError(f"{folder}: got no video file, expected {', '.join(SUFFIXES)}; correct the folder")
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Piece:
    """What becomes a clip: frames start … stop-1 of a video, of each the box (top, left, height, width), resized.

    size: (height, width), even. judge: the clip's frames, uint8 (f, h, w, 3) -> why to drop it, or "" for a good one;
    rules: the numbers that it decides by, noted in the report, so that a clip is judged again under others.
    """

    start: int
    stop: int
    box: tuple[int, int, int, int]
    size: tuple[int, int]
    rules: dict = field(default_factory=dict)
    judge: Callable[[np.ndarray], str] | None = None


def cut(folder: str | Path, name: str, video: Path, plan: Callable[[str, dict], Piece]) -> str:
    """Make videos/NAME.mp4 of what plan(name, probe(video)) says, at the video's own rate, unless it is there.

    The clip is held in memory: half a gigabyte for 20 seconds of 512×512 pixels at 30 frames a second.
    Returns written or kept; or, with the reason in the report, broken (a VideoError, plan's included) or rejected (by
    the piece's judge).
    """
    try:
        about = probe(video)
        piece = plan(name, about)
        recipe = {"video": video.name, "bytes": video.stat().st_size, "frames": [piece.start, piece.stop]}
        recipe = plain(recipe | {"box": piece.box, "size": piece.size, "rules": piece.rules})
        noted, target = verbs.read_report(folder, name), Path(folder) / "videos" / f"{name}.mp4"
        if noted.get("cut") == recipe:
            if "dropped" in noted:
                return "rejected"
            expected = {"frames": piece.stop - piece.start, "fps": about["fps"]}
            expected |= {"height": piece.size[0], "width": piece.size[1]}
            if verbs.check_file(target, **expected)["ok"]:
                return "kept"
        note(folder, name, dropped="its cutting was interrupted; run cut again")  # so that no old condition counts
        top, left, height, width = piece.box
        part = slice(top, top + height), slice(left, left + width)
        frames = np.empty((piece.stop - piece.start, *piece.size, 3), np.uint8)
        for frame, picture in zip(frames, iter_video(video, piece.start, piece.stop), strict=True):
            frame[...] = resized(picture[part], piece.size)
    except VideoError as error:
        reason = f"{Path(error.path).name}: got {error.got}, expected {error.expected}"
        return drop(folder, name, "broken", reason, video)
    if reason := piece.judge(frames) if piece.judge else "":
        note(folder, name, cut=recipe, dropped=reason)
        return "rejected"
    write_video(target, frames, about["fps"])
    note(folder, name, cut=recipe)
    return "written"


def drop(folder: str | Path, name: str, outcome: str, reason: str, video: Path | None = None) -> str:
    """Note why there is no clip of this name; returns the outcome."""
    note(folder, name, dropped=reason, cut={"video": video.name if video else None})
    return outcome


def note(folder: str | Path, name: str, **report: Any) -> None:
    """Write reports/NAME.json."""
    write_json(Path(folder) / "reports" / f"{name}.json", report)


class Lazy:
    """A detector of `rainlab.data.detect`, by the name of its maker: made when first called, once a process.

    So it can be sent to other processes, and what it lacks is an error only where it is needed.
    """

    _made: dict[tuple[str, str], Any] = {}
    _lock = Lock()

    def __init__(self, name: str, device: str = "cpu"):
        self.key = name, device

    def __call__(self, picture: np.ndarray) -> Any:
        return self._detector()(picture)

    @property
    def name(self) -> str:
        """What is looking: there may be several for a purpose."""
        return self._detector().name

    def _detector(self) -> Any:
        with self._lock:
            if self.key not in self._made:
                name, device = self.key
                self._made[self.key] = getattr(detectors, name)(device)
            return self._made[self.key]


def annotate(
    folder: str | Path,
    detect: Callable[[np.ndarray], Any],
    draw: Callable[[np.ndarray, tuple[int, int]], Any],
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Make the condition video of every video: what detect finds in its pictures, drawn; black where it gives None.

    detect: picture uint8 (h, w, 3) -> array or None, called from `workers` threads at once. draw: (such arrays of n
    pictures, stacked, (height, width)) -> pictures uint8 (n, h, w, 3), array or tensor. Returns counts of written, kept
    and skipped; skipped are clips that cut has dropped, and broken videos, which cut makes again. A condition is kept
    while it agrees with its video and its report: to use another detector, remove the folder conditions/.
    """
    one = _Annotate(str(folder), detect, draw)
    here = scheduler is None and getattr(detect, "name", None)  # elsewhere it is made where it works
    label = f"annotate with {here}" if here else "annotate"
    return Counter(verbs.each(one, verbs.files(folder, "videos"), workers, progress, label, scheduler))


@dataclass(frozen=True)
class _Annotate:
    folder: str
    detect: Callable
    draw: Callable

    def __call__(self, name: str) -> str:
        video, target = (Path(self.folder) / part / f"{name}.mp4" for part in ("videos", "conditions"))
        noted = verbs.read_report(self.folder, name)
        if "dropped" in noted:
            return "skipped"
        try:
            about = probe(video)
            if "annotate" in noted and verbs.check_file(target, **about)["ok"]:
                return "kept"
            conditions = self._conditions(video, about)
        except VideoError:
            return "skipped"
        write_video(target, conditions, about["fps"], lossless=True)
        missing = np.flatnonzero(~conditions.any(axis=(1, 2, 3))).tolist()
        found = {"detector": getattr(self.detect, "name", None), "frames": len(conditions), "missing": missing}
        note(self.folder, name, **noted | {"annotate": found})
        return "written"

    def _conditions(self, video: Path, about: dict) -> np.ndarray:
        pictures, size = iter_video(video), (about["height"], about["width"])
        conditions = np.zeros((about["frames"], *size, 3), np.uint8)
        for first in range(0, about["frames"], TOGETHER):
            found = [self.detect(picture) for picture in islice(pictures, TOGETHER)]
            if there := [number for number, each in enumerate(found) if each is not None]:
                drawn = self.draw(np.stack([found[number] for number in there]), size)
                conditions[[first + number for number in there]] = np.asarray(drawn)
        return conditions
