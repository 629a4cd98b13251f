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


def _broken(folder: str | Path, clip: StudioClips, parts: tuple[str, ...], index: int = 0) -> list[str]:
    """The parts of a clip that are missing or not as they should be."""
    (height, width), name = clip.size, clip.name(index)
    expected = {"frames": clip.frames, "height": height, "width": width, "fps": clip.fps}
    return [part for part in parts if not verbs.check_file(Path(folder) / part / f"{name}.mp4", **expected)["ok"]]


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
) -> Counter:
    """Render the first `clips` clips of a split to videos/ and masks/; counts of clips written and kept."""
    studio = StudioClips(split, clips, frames, (height, width), fps)

    def one(index: int) -> str:
        broken = _broken(folder, studio, ("videos", "masks"), index)
        if broken:
            write_clip(folder, studio[index], broken)
        return "written" if broken else "kept"

    return Counter(verbs.each(one, range(clips), workers, progress, f"cut {split}"))


def annotate(folder: str | Path, workers: int = 1, progress: bool = False) -> Counter:
    """Draw the condition video of every video, from the studio's exact keypoints; counts of written, kept and skipped.

    Skipped are broken videos, which `cut` makes again and `check` names.
    """

    def one(name: str) -> str:
        split, number = _parse(name)
        try:
            video = probe(Path(folder) / "videos" / f"{name}.mp4")
        except VideoError:
            return "skipped"
        clip = StudioClips(split, 1, video["frames"], (video["height"], video["width"]), video["fps"], start=number)
        broken = _broken(folder, clip, ("conditions",))
        if broken:
            write_clip(folder, clip[0], broken)
        return "written" if broken else "kept"

    return Counter(verbs.each(one, verbs.files(folder, "videos"), workers, progress, "annotate"))


def _cut_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=SPLITS, default="train", help="whose characters (train)")
    parser.add_argument("--clips", type=int, default=8, help="how many, from the first on (8)")
    parser.add_argument("--frames", type=int, default=48, help="frames of each (48)")
    parser.add_argument("--height", type=int, default=128, help="pixels, even (128)")
    parser.add_argument("--width", type=int, default=96, help="pixels, even (96)")
    parser.add_argument("--fps", type=float, default=12.0, help="frames per second (12)")


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    return verbs.main("studio", __doc__, cut, annotate, split_of, STUDIO_LICENCE, _cut_options, argv)


if __name__ == "__main__":
    sys.exit(main())
