"""What all data sets share: check, report, manifest, work that resumes, and the command line around the four verbs.

A prepared data set is a folder with videos/NAME.mp4, conditions/NAME.mp4, if it has them masks/NAME.mp4, and a
manifest.jsonl. Its script brings `cut` (raw material -> videos), `annotate` (videos -> conditions), a function from a
clip's name to its split, and the licence, and hands them to `main`.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm.contrib.concurrent import thread_map
from tqdm.std import tqdm

from rainlab.data.clips import PARTS, Entry, read_manifest, write_manifest
from rainlab.data.video import VideoError, iter_video, probe


def files(folder: str | Path, part: str) -> dict[str, Path]:
    """Name -> path of one part's videos, in order of name; a name that begins with a dot is an unfinished write."""
    found = sorted((Path(folder) / part).glob("*.mp4"))
    return {path.stem: path for path in found if not path.name.startswith(".")}


def each(function: Callable, items: Iterable, workers: int = 1, progress: bool = False, label: str = "") -> list:
    """[function(item) for item in items] on `workers` threads (PyAV and torch work outside Python's lock)."""
    items = list(items)
    return thread_map(function, items, max_workers=workers, tqdm_class=tqdm, desc=label, disable=not progress)


def check_file(path: str | Path, least: int = 1, **expected: float) -> dict:
    """Decode a video to its end: a dict of ok, frames, height, width, fps and, unless it is ok, the reason.

    Not ok: missing, torn, not decodable, under `least` frames, or other frames, height, width or fps than `expected`.
    """
    row = {"ok": False, "frames": 0, "height": 0, "width": 0, "fps": 0.0, "reason": ""}
    try:
        row |= probe(path)
        for _ in iter_video(path):
            pass
    except VideoError as error:
        return row | {"reason": f"got {error.got}, expected {error.expected}"}
    other = [key for key, value in expected.items() if not math.isclose(row[key], value, rel_tol=1e-3)]
    wrong = [f"{key}: got {row[key]:g}, expected {expected[key]:g}" for key in other]
    if row["frames"] < least:
        wrong.append(f"frames: got {row['frames']}, expected at least {least}")
    return row | {"ok": not wrong, "reason": "; ".join(wrong)}


def check(folder: str | Path, least: int = 1, workers: int = 1, progress: bool = False) -> list[dict]:
    """One row per file of a data set, as of `check_file` plus name, part and path (relative to the folder).

    Every clip needs a video of at least `least` frames and a condition; masks only if any clip has one. Condition and
    mask have to agree with the video in frames and size. Raises ValueError if there is no clip at all.
    """
    there = {part: files(folder, part) for part in PARTS}
    names = sorted(set().union(*there.values()))
    if not names:
        raise ValueError(f"{folder}: got no mp4 file in {', '.join(PARTS)}, expected clips; run cut first")

    def rows_of(name: str) -> list[dict]:
        rows, expected = [], {}
        for part in [part for part in PARTS if part != "masks" or there["masks"]]:
            path = f"{part}/{name}.mp4"
            found = check_file(Path(folder) / path, least if part == "videos" else 1, **expected)
            rows.append({"name": name, "part": part, "path": path} | found)
            if part == "videos" and found["ok"]:
                expected = {key: found[key] for key in ("frames", "height", "width")}
        return rows

    return [row for rows in each(rows_of, names, workers, progress, "check") for row in rows]


def report(rows: list[dict]) -> str:
    """The rows of `check` as plain text: a table of counts per part, then every dropped file with its reason."""
    lines = [f"{'part':12}{'files':>7}{'ok':>7}{'dropped':>9}{'frames':>9}"]
    for part in dict.fromkeys(row["part"] for row in rows):
        these = [row for row in rows if row["part"] == part]
        good = [row for row in these if row["ok"]]
        counts = len(these), len(good), len(these) - len(good), sum(row["frames"] for row in good)
        lines.append("{:12}{:7}{:7}{:9}{:9}".format(part, *counts))
    names = {row["name"] for row in rows}
    bad = [row for row in rows if not row["ok"]]
    lines += ["", f"{len(names) - len({row['name'] for row in bad})} of {len(names)} clips are complete"]
    return "\n".join(lines + [f"dropped {row['path']}: {row['reason']}" for row in bad])


def manifest(folder: str | Path, rows: list[dict], split_of: Callable[[str], str], licence: str) -> Path:
    """Write folder/manifest.jsonl with the clips whose rows (of `check`) are all ok; returns its path.

    split_of(name) gives "train", "val" or "test". Raises ValueError if no clip is left.
    """
    dropped = {row["name"] for row in rows if not row["ok"]}
    masks = {row["name"]: row["path"] for row in rows if row["part"] == "masks"}
    entries = [
        Entry(
            path=row["path"],
            start=0,
            stop=row["frames"],
            size=(row["height"], row["width"]),
            fps=row["fps"],
            condition=f"conditions/{row['name']}.mp4",
            mask=masks.get(row["name"]),
            split=split_of(row["name"]),
            licence=licence,
        )
        for row in rows
        if row["part"] == "videos" and row["name"] not in dropped
    ]
    if not entries:
        raise ValueError(f"{folder}: got no complete clip, expected at least one; see the reasons check gives")
    return write_manifest(Path(folder) / "manifest.jsonl", entries)


def summary(path: str | Path) -> str:
    """A manifest in one line per split: clips, frames, licences."""
    entries = read_manifest(path)
    lines = []
    for split in dict.fromkeys(entry.split for entry in entries):
        these = [entry for entry in entries if entry.split == split]
        frames = sum(entry.stop - entry.start for entry in these)
        licences = ", ".join(sorted({entry.licence for entry in these}))
        lines.append(f"{Path(path).name}: {split} {len(these)} clips, {frames} frames, licence {licences}")
    return "\n".join(lines)


def main(
    name: str,
    description: str,
    cut: Callable[..., Counter],
    annotate: Callable[..., Counter],
    split_of: Callable[[str], str],
    licence: str,
    cut_options: Callable[[argparse.ArgumentParser], None],
    argv: list[str] | None = None,
) -> int:
    """The command line of one data set, data_prep.<name>; `description` is its docstring, examples included.

    cut and annotate are called with folder, workers, progress (and what `cut_options` adds to cut's parser) and return
    counts of what was done. The exit status of check is 1 if it drops a file.
    """
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", required=True, help="the prepared data set")
    common.add_argument("--workers", type=int, default=1, help="files worked on at the same time (1)")
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    checking = argparse.ArgumentParser(add_help=False)
    checking.add_argument("--least", type=int, default=1, help="drop videos with fewer frames (1)")
    style = {"description": description, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{name}", **style)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut_options(verbs.add_parser("cut", parents=[common], help="make the videos; good ones are kept", **style))
    verbs.add_parser("annotate", parents=[common], help="make the condition videos; good ones are kept", **style)
    verbs.add_parser("check", parents=[common, checking], help="decode every file, report what is dropped", **style)
    verbs.add_parser("manifest", parents=[common, checking], help="check, then write manifest.jsonl", **style)
    options = vars(parser.parse_args(argv))
    verb, folder, progress = options.pop("verb"), options.pop("folder"), not options.pop("quiet")
    try:
        if verb in ("cut", "annotate"):
            done = {"cut": cut, "annotate": annotate}[verb](folder, progress=progress, **options)
            print(f"{verb}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(done.items())))
            return 0
        rows = check(folder, progress=progress, **options)
        print(report(rows))
        if verb == "manifest":
            print(summary(manifest(folder, rows, split_of, licence)))
            return 0
        return int(any(not row["ok"] for row in rows))
    except ValueError as error:
        parser.error(str(error))
