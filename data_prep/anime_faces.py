"""Anime faces: clips of 3 to 20 seconds with one face before a background that stands still, cut out of any videos.

RAIN's own 1,800 clips (section 5.2 and supplement 8) were cut by hand and are not public: simple static background,
various styles, directly facing, aspect about 1, 512×512, annotated by AnimeFaceDetector with 26 of its 28 points. Here
it also finds the faces, and boxes that overlap from sample to sample make tracks; a clip is the square around all boxes
of its track.

Examples:
  python -m data_prep.anime_faces cut --folder data/anime --videos raw/anime --device cuda
  python -m data_prep.anime_faces cut --folder data/anime --videos raw/held_out --split test --most-moving 0.1
  python -m data_prep.anime_faces annotate --folder data/anime --device cuda
  python -m data_prep.anime_faces check --folder data/anime --most-missing 0.1
  python -m data_prep.anime_faces manifest --folder data/anime --licence "by permission of the studio"
`prepare` takes the options of all and does them one after the other. Each can be interrupted and called again: good
files are kept, broken ones made again.
"""

import argparse
import glob
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep import raw, verbs
from rainlab.data import landmarks, pose
from rainlab.data.clips import SPLITS
from rainlab.data.video import VideoError, iter_video, probe, resized
from rainlab.files import write_json

SIZE = (512, 512)  # RAIN, section 5.2
LICENCE = "unknown, user-supplied"
GREY_LEVELS = 12  # a pixel that strays no farther from its usual grey stands still: coding noise is less
SIDE = 64  # motion is looked for in pictures of this size, SAMPLES of a clip: fine enough, and deaf to noise
SAMPLES = 32


def _rule(default: float, help: str) -> float:
    return field(default=default, metadata={"help": f"{help} ({default:g})"})


@dataclass(frozen=True)
class Rules:
    """What makes a clip. ValueError for numbers without sense."""

    least_seconds: float = _rule(3.0, "drop shorter tracks")
    most_seconds: float = _rule(20.0, "divide longer tracks evenly")
    rate: float = _rule(4.0, "look for faces so many times a second")
    score: float = _rule(0.5, "take faces the detector is as sure of; its own least is 0.5")
    overlap: float = _rule(0.3, "a face goes on where boxes overlap by this intersection over union")
    margin: float = _rule(0.5, "room around the face on every side, in sizes of its box")
    least_side: float = _rule(256, "drop squares with a smaller side, in pixels of the video")
    most_moving: float = _rule(0.2, "drop clips with a larger share of background pixels that move")

    def __post_init__(self):
        if not 0 < self.least_seconds <= self.most_seconds or not self.rate > 0 or not 0 < self.overlap <= 1:
            raise ValueError(f"got {self}, expected 0 < least_seconds <= most_seconds, rate > 0, 0 < overlap <= 1")


def link(samples: Iterable[tuple[int, np.ndarray]], overlap: float) -> list[list[tuple[int, np.ndarray]]]:
    """Tracks of faces: samples (frame, boxes (n, 4) as x0, y0, x1, y1) in order -> for each face [(frame, box), …].

    A box continues the track whose last box it overlaps most, if by at least `overlap` (intersection over union). A
    track ends at the first sample without its face; a face that comes back later is another track.
    """
    tracks, going = [], []
    for frame, boxes in samples:
        pairs = [(iou(track[-1][1], box), t, b) for t, track in enumerate(going) for b, box in enumerate(boxes)]
        continued: dict[int, list] = {}
        taken = set()
        for value, t, b in sorted(pairs, key=lambda pair: -pair[0]):
            if value >= overlap and t not in taken and b not in continued:
                taken.add(t)
                continued[b] = going[t]
        for b, box in enumerate(boxes):
            if b not in continued:
                continued[b] = []
                tracks.append(continued[b])
            continued[b].append((frame, box))
        going = list(continued.values())
    return tracks


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    width, height = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    both = width * height
    return float(both / max(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both, 1e-9))


def square(face: np.ndarray, height: int, width: int, margin: float) -> tuple[int, int, int, int]:
    """The square (top, left, side, side) around a box x0, y0, x1, y1 with a margin, moved and cut into the picture."""
    side = min(math.ceil((face[2:] - face[:2]).max() * (1 + 2 * margin)), height, width)
    left, top = np.clip(np.round((face[:2] + face[2:] - side) / 2), 0, [width - side, height - side])
    return int(top), int(left), side, side


def moving(frames: np.ndarray, face: np.ndarray) -> float:
    """The share of the background that moves in a clip, 0 … 1.

    frames: uint8 (f, h, w, 3); face: the box x0, y0, x1, y1 that the face keeps to, in shares of width and height.
    Background is what lies above the chin and a quarter of the face's size or more away from it: hair and shoulders may
    move. Moving is a pixel more than GREY_LEVELS grey levels from its median over time; the share is the mean over time
    and background, of at most SAMPLES frames at SIDE×SIDE pixels. 0 where no background is in sight.
    """
    numbers = np.linspace(0, len(frames) - 1, min(SAMPLES, len(frames))).round().astype(int)
    grey = np.stack([resized(frames[number], (SIDE, SIDE)) for number in numbers]).mean(-1)
    (x0, y0), (x1, y1) = face[:2] - (face[2:] - face[:2]) / 4, face[2:] + (face[2:] - face[:2]) / 4
    y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
    background = (y < face[3]) & ~((x > x0) & (x < x1) & (y > y0) & (y < y1))
    strays = np.abs(grey - np.median(grey, axis=0)) > GREY_LEVELS
    return float(strays[:, background].mean()) if background.any() else 0.0


def cut(
    folder: str | Path,
    videos: str | Path,
    split: str = "train",
    detect: Callable[[np.ndarray], np.ndarray] | None = None,
    device: str = "cpu",
    size: tuple[int, int] = SIZE,
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
    **rules: float,
) -> Counter:
    """Cut clips of faces out of all videos in the folder `videos` and those below it.

    detect: picture uint8 (h, w, 3) -> boxes (n, 4) x0, y0, x1, y1 in pixels, or (n, 5) with a score; by default
    `rainlab.data.detect.face_detector` on `device`. rules: fields of `Rules`. What was detected is kept in tracks/, so
    that it is not done again for the same video and rules. Returns counts of clips written, kept, rejected (the
    background moves) and broken (videos); `check` names the latter two.
    """
    detect = detect or raw.Lazy("face_detector", device)
    one = partial(_faces, folder=str(folder), split=split, detect=detect, size=tuple(size), rules=Rules(**rules))
    counts = verbs.each(one, raw.videos(videos).values(), workers, progress, f"cut {split}", scheduler)
    return sum(counts, Counter())


def _faces(video: Path, folder: str, split: str, detect: Callable, size: tuple[int, int], rules: Rules) -> Counter:
    name = f"{split}_{video.stem}"
    try:
        about = probe(video)
        tracks = _tracks(video, about, Path(folder) / "tracks" / f"{name}.json", detect, rules)
    except VideoError as error:
        return Counter([raw.drop(folder, name, "broken", f"got {error.got}, expected {error.expected}", video)])
    pieces = _pieces(tracks, about, size, rules)
    clips = {f"{name}-{number:03d}": piece for number, piece in enumerate(pieces)}
    done = Counter(raw.cut(folder, clip, video, lambda *_, piece=piece: piece) for clip, piece in clips.items())
    for path in (Path(folder) / "reports").glob(f"{glob.escape(name)}*.json"):  # what earlier calls made of this video
        noted = verbs.read_report(folder, path.stem)
        if path.stem in clips or noted.get("cut", {}).get("video") != video.name:
            continue
        if (Path(folder) / "videos" / f"{path.stem}.mp4").exists():
            raw.drop(folder, path.stem, "", "got a clip of other rules, expected one of the last cut; remove it", video)
        else:
            path.unlink()
    return done


def _tracks(video: Path, about: dict, path: Path, detect: Callable, rules: Rules) -> list[list[tuple]]:
    """All tracks of a video; read from `path` if they are there, else written there."""
    looked = {key: getattr(rules, key) for key in ("rate", "score", "overlap")}
    origin = {"video": video.name, "bytes": video.stat().st_size} | looked
    noted = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if noted.get("origin") != origin:
        step = max(1, round(about["fps"] / rules.rate))
        samples = []
        for frame, picture in enumerate(iter_video(video)):
            if frame % step == 0:
                boxes = np.asarray(detect(picture), np.float64)
                boxes = boxes.reshape(len(boxes), -1 if len(boxes) else 4)
                if boxes.shape[1] not in (4, 5):
                    raise ValueError(f"faces: got boxes of shape {boxes.shape}, expected (n, 4) or (n, 5)")
                sure = boxes[:, 4] >= rules.score if boxes.shape[1] == 5 else slice(None)
                samples.append((frame, boxes[sure, :4]))
        tracks = [[(frame, *box) for frame, box in track] for track in link(samples, rules.overlap)]
        noted = {"origin": origin, "tracks": tracks}
        write_json(path, noted)
    return noted["tracks"]


def _pieces(tracks: list[list[tuple]], about: dict, size: tuple[int, int], rules: Rules) -> list[raw.Piece]:
    pieces = []
    for track in map(np.asarray, tracks):
        first, last = int(track[0, 0]), int(track[-1, 0]) + 1
        parts = max(1, math.ceil((last - first) / about["fps"] / rules.most_seconds))
        for start, stop in pairwise(np.linspace(first, last, parts + 1).round().astype(int).tolist()):
            boxes = track[(track[:, 0] >= start) & (track[:, 0] < stop), 1:]
            if stop - start < rules.least_seconds * about["fps"] or not len(boxes):
                continue
            face = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
            top, left, side, _ = box = square(face, about["height"], about["width"], rules.margin)
            if side >= rules.least_side:
                within = ((face - [left, top, left, top]) / side).round(4)
                judge = partial(_judge, face=within, most=rules.most_moving)
                pieces.append(
                    raw.Piece(
                        start, stop, box, size, {"face": within.tolist(), "most_moving": rules.most_moving}, judge
                    )
                )
    return pieces


def _judge(frames: np.ndarray, face: np.ndarray, most: float) -> str:
    share = moving(frames, face)
    expected = f"expected at most {most:g}; take it with a higher --most-moving"
    return f"got a background of which {share:.2f} moves, {expected}" if share > most else ""


def annotate(
    folder: str | Path,
    detect: Callable[[np.ndarray], np.ndarray | None] | None = None,
    draw: Callable[[np.ndarray, tuple[int, int]], np.ndarray] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Condition videos, the face's landmarks; returns and does what `raw.annotate` does.

    detect: picture uint8 (h, w, 3) -> landmarks (28, 2 or 3) as `dots` takes them, or None; by default
    `rainlab.data.detect.landmark_detector` on `device`. draw: (landmarks of n frames (n, 28, …), (height, width)) ->
    condition pictures uint8 (n, h, w, 3), by default `dots`.
    """
    detect = detect or raw.Lazy("landmark_detector", device)
    return raw.annotate(folder, detect, draw or dots, workers, progress, scheduler)


def dots(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """RAIN's condition, 26 coloured dots on black, uint8 (n, h, w, 3), of points (n, 28, 2 or 3): x, y in pixels and
    confidence. Points less confident than `pose.CONFIDENT` are left out; dots are as large as suits the median face.
    """
    height, width = size
    faces = (landmarks.of_drawn(points, pose.CONFIDENT) + 0.5) / (width, height)  # a pixel's middle is a whole number
    radius = int(np.median([landmarks.dot_radius(face, height) for face in faces if np.isfinite(face).all()] or [1]))
    return np.stack([landmarks.draw(face, size, radius) for face in faces])


def _cut_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", required=True, help="folder of videos; those below it count, too")
    parser.add_argument("--split", choices=SPLITS, default="train", help="the split that these videos are (train)")
    verbs.device_option(parser)
    for rule in fields(Rules):
        parser.add_argument(
            f"--{rule.name.replace('_', '-')}", type=float, default=rule.default, help=rule.metadata["help"]
        )


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    return verbs.main("anime_faces", __doc__, cut, annotate, LICENCE, _cut_options, verbs.device_option, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
