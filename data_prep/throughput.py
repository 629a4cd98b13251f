"""How many frames a second the verbs of Panda-70M get through on a machine, and what that means for 50,000 clips.

  python -m data_prep.throughput           threads
  python -m data_prep.throughput --dask    processes by Dask, too; needs `pip install -e .[cluster]`

Raw videos are stand-ins: the studio's clips, enlarged to 1280×720, 30 frames a second, H.264. Nothing else may run
meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F

from data_prep import panda70m, verbs
from rainlab import runs
from rainlab.data.clips import StudioClips
from rainlab.data.video import write_video
from rainlab.measure import bench

VERSION = 1
RAW, FPS = (720, 1280), 30
CLIPS, SECONDS = 4, 2  # that are cut, and of each
ROUNDS = 3
PAPER = (50_000, 8.5)  # clips (RAIN, section 5.3), and their mean length in seconds (Panda-70M, Table 1)


def throughput(dask: bool = False, size: tuple[int, int] = panda70m.SIZE, record: bool = False) -> runs.Run:
    """The run of the timings; ``record``: time it now, in place of what was recorded here; else the last one recorded.

    Metrics ``frames_per_second`` of raw video and ``speed`` relative to cutting with one thread, medians with quartiles
    of ROUNDS interleaved rounds, label ``contender``: the verb, and how many work. ``hours`` for PAPER at that rate.

    Raises:
        FileNotFoundError: nothing recorded. ModuleNotFoundError: ``dask`` without the package distributed.
    """
    if not record:
        if run := runs.find("throughput"):
            return run
        raise FileNotFoundError("nothing recorded of the data preparation's speed: `python -m data_prep.throughput`")
    config = {"raw": RAW, "size": size, "clips": CLIPS, "seconds": SECONDS, "dask": dask}
    run = runs.open_run("throughput", config, VERSION).clear()
    with TemporaryDirectory() as place:
        rows = bench.rounds("data_prep", _turns(Path(place), dask, size), "frames/s", ROUNDS)
    bench.record_rates(run, rows)
    for row in rows:
        hours = (PAPER[0] * PAPER[1] * FPS / rate / 3600 for rate in (row.median, row.high, row.low))
        run.record("hours", *hours, row.repetitions, bench.PROTOCOL, contender=row.contender)
    return run.finish()


def write_raw(folder: Path) -> Path:
    """The videos and their table, whose path is returned."""
    with open(folder / "panda.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("videoID", "url", "timestamp", "caption", "matching_score"))
        for number, clip in enumerate(StudioClips("train", CLIPS, SECONDS * FPS, (RAW[0] // 4, RAW[1] // 4), FPS)):
            pictures = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
            large = F.interpolate(pictures, size=RAW, mode="bilinear").permute(0, 2, 3, 1)
            write_video(folder / f"video{number}.mp4", np.ascontiguousarray(large), FPS)
            times = [["0:00:00.000", f"0:00:{SECONDS:06.3f}"]]
            table.writerow((f"video{number}", "", times, [""], [1.0]))
    return folder / "panda.csv"


def _turns(place: Path, dask: bool, size: tuple[int, int]) -> dict:
    """Contender -> a call that works on CLIPS clips and returns their frames."""
    videos, numbers = place / "raw", itertools.count()
    videos.mkdir()
    table = write_raw(videos)

    def cut(**options) -> int:
        made = panda70m.cut(place / f"cut{next(numbers)}", videos, table, size=size, **options)
        if made["written"] != CLIPS:
            raise RuntimeError(f"got {dict(made)}, expected {CLIPS} clips written")
        return CLIPS * SECONDS * FPS

    def check(folder: Path, **options) -> int:
        return sum(row["frames"] for row in verbs.check(folder, **options) if row["part"] == "videos")

    cut()
    done = place / "cut0"
    turns = {"cut, 1 thread": cut, "cut, 2 threads": partial(cut, workers=2)}
    if dask:
        turns["cut, 2 processes by Dask"] = partial(cut, workers=2, scheduler="local")
    return turns | {"check, 1 thread": partial(check, done), "check, 2 threads": partial(check, done, workers=2)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: record and print."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.throughput", description=__doc__.split("\n")[0])
    parser.add_argument("--dask", action="store_true", help="time processes by Dask, too")
    run = throughput(parser.parse_args(argv).dask, record=True)
    for row in run.metrics():
        if row["metric"] == "frames_per_second":
            hours = run.value("hours", contender=row["contender"])["value"]
            spread = f"[{row['ci_low']:.0f}, {row['ci_high']:.0f}]"
            print(f"{row['contender']:26} {row['value']:5.0f} frames/s {spread}, {PAPER[0]} clips: {hours:.0f} hours")
    print(run.id)
    return 0


if __name__ == "__main__":
    sys.exit(main())
