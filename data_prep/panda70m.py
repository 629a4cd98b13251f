"""Panda-70M: clips of all kinds of scenes, for style transfer by depth.

The data set (Chen et al., 2024) is a table, one row a video, with the times, captions and matching scores of the clips
in it. RAIN (section 5.3) takes 50,000 clips at random, of each a random patch resized to 512×512, and MiDaS' depth.

Examples:
  python -m data_prep.panda70m cut --folder data/panda --videos raw/panda --table panda70m_training_2m.csv \\
      --clips 50000 --least-score 0.43 --workers 16 --scheduler local
  python -m data_prep.panda70m annotate --folder data/panda --device cuda
  python -m data_prep.panda70m check --folder data/panda --least 16 --workers 16 --scheduler local
  python -m data_prep.panda70m manifest --folder data/panda --least 16
The videos, raw/panda/VIDEOID.mp4, may be some of the table's: the clips are chosen among theirs.
`prepare` takes the options of all and does them one after the other. Each can be interrupted and called again: good
files are kept, broken ones made again.
"""

import argparse
import ast
import csv
import hashlib
import heapq
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data_prep import raw, verbs
from rainlab.data.clips import SPLITS
from rainlab.data.video import VideoError

SIZE = (512, 512)  # RAIN, section 5.3
LICENCE = "Panda-70M research licence"


def listed(table: str | Path, there: dict[str, Path], least_score: float = 0.0) -> Iterator[tuple[str, float, float]]:
    """(video, first second, last second) of every clip in the table whose video is in `there`, in its order.

    A clip may be scored lower than `least_score`; then it is left out. FileNotFoundError for a table that is not there;
    ValueError naming table and line for one that can't be understood. Of other videos only the row's form is read: the
    table of the whole data set has 70 million clips.
    """
    if not Path(table).is_file():
        raise FileNotFoundError(f"{table}: got no such file, expected a table of Panda-70M; unzip it, correct the path")
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            if lacking := {"videoID", "timestamp", "matching_score"} - set(reader.fieldnames or ()):
                raise ValueError(f"got no column {', '.join(sorted(lacking))}")
            for row in reader:
                if not row["videoID"] or None in row or None in row.values():
                    raise ValueError(f"got another number of fields than the {len(reader.fieldnames)} columns")
                if row["videoID"] in there:
                    yield from _clips(row, least_score)
        except (ValueError, csv.Error) as error:
            expected = "expected a row of Panda-70M: videoID, timestamp as [['0:00:01.000', '0:00:07.733'], …]"
            fix = f"{expected}, matching_score as [0.43, …]; download it again, or remove the row"
            raise ValueError(f"{table}, line {reader.line_num}: {error}, {fix}") from error


def _clips(row: dict, least_score: float) -> list[tuple[str, float, float]]:
    times, scores = (_list(row[column]) for column in ("timestamp", "matching_score"))
    if len(times) != len(scores):
        raise ValueError(f"got {len(times)} times and {len(scores)} scores")
    clips = []
    for pair, score in zip(times, scores, strict=True):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(score, (int, float)):
            raise ValueError(f"got {pair!r}, scored {score!r}")
        start, stop = map(_seconds, pair)
        if start >= stop:
            raise ValueError(f"got a clip from {start:g} to {stop:g} seconds")
        if score >= least_score:
            clips.append((row["videoID"], start, stop))
    return clips


def _list(text: str) -> list:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"got {text[:60]!r}") from error
    if not isinstance(value, list):
        raise ValueError(f"got {text[:60]!r}")
    return value


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", str(text))
    if not match:
        raise ValueError(f"got the time {text!r}")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def cut(
    folder: str | Path,
    videos: str | Path,
    table: str | Path,
    clips: int | None = None,
    least_score: float = 0.0,
    least_patch: float = 0.75,
    most_seconds: float = 20.0,
    split: str = "train",
    size: tuple[int, int] = SIZE,
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Cut a random patch of `size` out of clips of the table, all or a random `clips` of those whose video is there.

    The choice and the patches depend on the clips' names alone, so that they are the same every time. A patch has the
    target's shape and least_patch … 1 times the largest possible size, evenly drawn. Clips over `most_seconds` are cut
    there: a clip is held in memory. Returns counts of written, kept and broken; `check` names the latter. Errors as of
    `listed`, and ValueError if there is no clip of these videos.
    """
    if not 0 < least_patch <= 1 or (clips is not None and clips < 1):
        raise ValueError(f"got least_patch {least_patch}, clips {clips}, expected 0 < least_patch <= 1, clips >= 1")
    there = raw.videos(videos)
    found = ((clip_name(split, *clip), *clip) for clip in listed(table, there, least_score))
    chosen = sorted(found) if clips is None else heapq.nsmallest(clips, found, key=lambda item: _number(item[0]))
    if not chosen:
        got = f"got no clip scored {least_score:g} or more of the {len(there)} videos in {videos}"
        raise ValueError(f"{table}: {got}, expected at least one; correct the folder or the score")
    items = [(clip, there[video], start, stop) for clip, video, start, stop in dict.fromkeys(chosen)]
    one = partial(_cut, folder=str(folder), size=tuple(size), least_patch=least_patch, most_seconds=most_seconds)
    return Counter(verbs.each(one, items, workers, progress, f"cut {split}", scheduler))


def clip_name(split: str, video: str, start: float, stop: float) -> str:
    """A clip's name: split, video, beginning and end in milliseconds."""
    return f"{split}_{video}_{start * 1000:.0f}-{stop * 1000:.0f}"


def _number(name: str) -> int:
    """A number as good as random, the same for the same name on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])


def _cut(item: tuple, folder: str, size: tuple[int, int], least_patch: float, most_seconds: float) -> str:
    clip, video, start, stop = item
    seconds = start, min(stop, start + most_seconds)
    return raw.cut(folder, clip, video, partial(_patch, seconds=seconds, size=size, least=least_patch))


def _patch(name: str, about: dict, seconds: tuple[float, float], size: tuple[int, int], least: float) -> raw.Piece:
    start, stop = (round(moment * about["fps"]) for moment in seconds)
    stop = min(stop, about["frames"])  # the last clip's end is rounded up
    if stop <= start:
        length = about["frames"] / about["fps"]
        raise VideoError(name, f"a video of {length:.1f} s", f"one that holds {seconds[0]:g} … {seconds[1]:g} s", "")
    draw = random.Random(_number(name))
    height, width = about["height"], about["width"]
    scale = draw.uniform(least, 1) * min(height / size[0], width / size[1])
    tall, wide = (max(1, round(side * scale)) for side in size)
    return raw.Piece(start, stop, (draw.randint(0, height - tall), draw.randint(0, width - wide), tall, wide), size)


def annotate(
    folder: str | Path,
    detect: Callable[[np.ndarray], np.ndarray | None] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Condition videos, the depth in grey; returns and does what `raw.annotate` does.

    detect: picture uint8 (h, w, 3) -> depth float (h, w) from 0 (far) to 1, or None; by default a depth estimator.
    """
    return raw.annotate(folder, detect or raw.Lazy("depth_estimator", device), grey, workers, progress, scheduler)


def grey(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth float (n, h, w) in 0 … 1 as grey pictures uint8 (n, h, w, 3); ValueError for other shapes or numbers."""
    if depth.shape[1:] != tuple(size) or not (depth.min() >= 0 and depth.max() <= 1):
        got = f"shape {depth.shape[1:]}, {depth.min():g} … {depth.max():g}"
        raise ValueError(f"depth: got {got}, expected {tuple(size)}, 0 … 1; scale what the estimator gives")
    return np.repeat((depth * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def _cut_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", required=True, help="folder with the videos, named VIDEOID.mp4")
    parser.add_argument("--table", required=True, help="the data set's csv file, unzipped")
    parser.add_argument("--clips", type=int, help="how many, chosen at random, always the same (all)")
    parser.add_argument("--least-score", type=float, default=0.0, help="leave out clips matching worse (0)")
    parser.add_argument("--least-patch", type=float, default=0.75, help="smallest patch, over the largest (0.75)")
    parser.add_argument("--most-seconds", type=float, default=20.0, help="of longer clips the beginning (20)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="the split that the table is (train)")


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    return verbs.main("panda70m", __doc__, cut, annotate, LICENCE, _cut_options, verbs.device_option, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
