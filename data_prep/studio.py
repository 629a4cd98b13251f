"""The studio's clips as real files: mp4 videos with masks, condition videos and a manifest.

Examples:
  python -m data_prep.studio cut --folder data/studio --split train --clips 200
  python -m data_prep.studio cut --folder data/studio --split test --clips 20 --workers 4
  python -m data_prep.studio annotate --folder data/studio
  python -m data_prep.studio check --folder data/studio --least 16
  python -m data_prep.studio manifest --folder data/studio --least 16
Each can be interrupted and called again: good files are kept, broken ones made again.
"""

import argparse
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from data_prep import verbs
from rainlab.data.clips import SPLITS, STUDIO_LICENCE, StudioClips, write_clip
from rainlab.data.video import VideoError, probe


def split_of(name: str) -> str:
    """The split in a clip's name: train of train_00012."""
    return _parse(name)[0]


def _parse(name: str) -> tuple[str, int]:
    if not re.fullmatch(rf"({'|'.join(SPLITS)})_\d+", name):
        raise ValueError(f"video {name!r}: got no studio clip's name, expected one like train_00012; move it elsewhere")
    split, number = name.split("_")
    return split, int(number)


def _make(index: int, folder: str, clips: StudioClips, parts: tuple[str, ...]) -> str:
    """Write those of a clip's parts that are missing or not as they should be."""
    (height, width), name = clips.size, clips.name(index)
    expected = {"frames": clips.frames, "height": height, "width": width, "fps": clips.fps}
    broken = [part for part in parts if not verbs.check_file(Path(folder) / part / f"{name}.mp4", **expected)["ok"]]
    if broken:
        write_clip(folder, clips[index], broken)
    return "written" if broken else "kept"


def cut(
    folder: str | Path,
    split: str = "train",
    clips: int = 8,
    frames: int = 48,
    height: int = 128,
    width: int = 96,
    fps: float = 12.0,
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Render the first `clips` clips of a split to videos/ and masks/; counts of clips written and kept."""
    studio = StudioClips(split, clips, frames, (height, width), fps)
    make = partial(_make, folder=str(folder), clips=studio, parts=("videos", "masks"))
    return Counter(verbs.each(make, range(clips), workers, progress, f"cut {split}", scheduler))


def annotate(folder: str | Path, workers: int = 1, progress: bool = False, scheduler: str | None = None) -> Counter:
    """Draw the condition video of every video, from the studio's exact keypoints; counts of written, kept and skipped.

    Skipped are broken videos, which `cut` makes again and `check` names.
    """
    names = verbs.files(folder, "videos")
    return Counter(verbs.each(partial(_annotate, folder=str(folder)), names, workers, progress, "annotate", scheduler))


def _annotate(name: str, folder: str) -> str:
    split, number = _parse(name)
    try:
        video = probe(Path(folder) / "videos" / f"{name}.mp4")
    except VideoError:
        return "skipped"
    clip = StudioClips(split, 1, video["frames"], (video["height"], video["width"]), video["fps"], start=number)
    return _make(0, folder, clip, ("conditions",))


def _cut_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=SPLITS, default="train", help="whose characters (train)")
    parser.add_argument("--clips", type=int, default=8, help="how many, from the first on (8)")
    parser.add_argument("--frames", type=int, default=48, help="frames of each (48)")
    parser.add_argument("--height", type=int, default=128, help="pixels, even (128)")
    parser.add_argument("--width", type=int, default=96, help="pixels, even (96)")
    parser.add_argument("--fps", type=float, default=12.0, help="frames per second (12)")


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    return verbs.main("studio", __doc__, cut, annotate, STUDIO_LICENCE, _cut_options, split_of=split_of, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
