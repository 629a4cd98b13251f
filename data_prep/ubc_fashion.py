"""UBC-Fashion: people who show clothes before a clean background, 500 videos to train on and 100 to test on.

The data set (Zablotskaia et al., DwNet, 2019) is two lists of addresses, fashion_train.txt and fashion_test.txt; its
own script downloads the videos. RAIN (section 5.1) resizes them to 512×768 and takes DWPose's body key points.

Examples:
  python -m data_prep.ubc_fashion cut --folder data/ubc --videos raw/ubc \\
      --train-list raw/ubc/fashion_train.txt --test-list raw/ubc/fashion_test.txt --workers 8
  python -m data_prep.ubc_fashion annotate --folder data/ubc --device cuda
  python -m data_prep.ubc_fashion check --folder data/ubc --most-missing 0.1
  python -m data_prep.ubc_fashion manifest --folder data/ubc --most-missing 0.1
`prepare` takes the options of all and does them one after the other. Each can be interrupted and called again: good
files are kept, broken ones made again.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from data_prep import raw, verbs
from rainlab.data import pose
from rainlab.data.video import crop_to

SIZE = (768, 512)  # RAIN, section 5.1: 512×768, width × height
LICENCE = "CC BY-NC 4.0"


def names(train_list: str | Path, test_list: str | Path) -> dict[str, str]:
    """Name of a video -> its split, of the data set's lists: an address a line, the video's file name at its end.

    FileNotFoundError for a list that is not there; ValueError naming list and line for what is no address of an mp4
    file and for a video that was listed before: a test video in training would falsify all that is measured.
    """
    found: dict[str, str] = {}
    for split, path in (("train", train_list), ("test", test_list)):
        if not Path(path).is_file():
            fix = "get it from the data set's page, vision.cs.ubc.ca/datasets/fashion"
            raise FileNotFoundError(f"{path}: got no such file, expected the list of {split} videos; {fix}")
        before = len(found)
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
            if not line.strip():
                continue
            file = PurePosixPath(urlsplit(line.strip()).path)
            if file.suffix != ".mp4":
                expected = "an address that ends in NAME.mp4; give the data set's own list"
                raise ValueError(f"{path}, line {number}: got {line.strip()!r}, expected {expected}")
            if file.stem in found:
                expected = f"every video once, but it is in {found[file.stem]} already; are the lists the right ones?"
                raise ValueError(f"{path}, line {number}: got {file.name}, expected {expected}")
            found[file.stem] = split
        if len(found) == before:
            raise ValueError(f"{path}: got an empty list, expected an address a line; download it again")
    return found


def cut(
    folder: str | Path,
    videos: str | Path,
    train_list: str | Path,
    test_list: str | Path,
    size: tuple[int, int] = SIZE,
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Resize the listed videos, found anywhere in the folder `videos`, to fill `size` = (height, width), centre kept.

    Returns counts of written, kept, missing and broken; `check` names the latter two. Errors as of `names`, and
    ValueError if none of the videos is there.
    """
    listed, there = names(train_list, test_list), raw.videos(videos)
    if not listed.keys() & there.keys():
        raise ValueError(f"{videos}: got none of the {len(listed)} listed videos, expected all; correct the folder")
    items = [(f"{split}_{name}", there.get(name)) for name, split in listed.items()]
    one = partial(_cut, folder=str(folder), size=tuple(size))
    return Counter(verbs.each(one, items, workers, progress, "cut", scheduler))


def _cut(item: tuple[str, Path | None], folder: str, size: tuple[int, int]) -> str:
    name, video = item
    if video is None:
        noted = verbs.read_report(folder, name)
        if "cut" in noted and "dropped" not in noted:
            return "kept"  # the raw video was removed after it had been cut
        return raw.drop(folder, name, "missing", "got no such raw video, expected it as listed; download it again")
    return raw.cut(folder, name, video, partial(_whole, size=size))


def _whole(name: str, about: dict, size: tuple[int, int]) -> raw.Piece:
    rows, columns = crop_to((about["height"], about["width"]), size, "crop", name)
    box = rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
    return raw.Piece(0, about["frames"], box, size)


def annotate(
    folder: str | Path,
    detect: Callable[[np.ndarray], np.ndarray | None] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
    scheduler: str | None = None,
) -> Counter:
    """Condition videos, the body's skeleton; returns and does what `raw.annotate` does.

    detect: picture uint8 (h, w, 3) -> key points (18, 3) as `pose.draw` takes them, or None; by default DWPose.
    """
    detect = detect or raw.Lazy("body_detector", device)
    return raw.annotate(folder, detect, pose.draw, workers, progress, scheduler)


def _cut_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--videos", required=True, help="folder of the downloaded videos; those below it count, too")
    parser.add_argument("--train-list", required=True, help="the data set's fashion_train.txt")
    parser.add_argument("--test-list", required=True, help="the data set's fashion_test.txt")


def main(argv: list[str] | None = None) -> int:
    """The command line; see the module's text."""
    return verbs.main("ubc_fashion", __doc__, cut, annotate, LICENCE, _cut_options, verbs.device_option, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
