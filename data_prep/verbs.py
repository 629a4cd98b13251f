"""What all data sets share: check, report, manifest, work that resumes, and the command line around the four verbs.

A prepared data set is a folder with videos/NAME.mp4, conditions/NAME.mp4, if it has them masks/NAME.mp4 and
reports/NAME.json (see `data_prep.raw`), and a manifest.jsonl. Its script brings `cut` (raw material -> videos),
`annotate` (videos -> conditions), a function from a clip's name to its split, and the licence: `main` does the rest.
"""

import argparse
import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tqdm.contrib.concurrent import thread_map
from tqdm.std import tqdm

from rainlab.data.clips import PARTS, SPLITS, Entry, read_manifest, write_manifest
from rainlab.data.video import VideoError, iter_video, probe

UNKNOWN = {"ok": False, "frames": 0, "height": 0, "width": 0, "fps": 0.0, "reason": ""}  # a file nothing is known of


def files(folder: str | Path, part: str) -> dict[str, Path]:
    """Name -> path of one part's videos, in order of name; a name that begins with a dot is an unfinished write."""
    found = sorted((Path(folder) / part).glob("*.mp4"))
    return {path.stem: path for path in found if not path.name.startswith(".")}


def split_of(name: str) -> str:
    """The split that a clip's name begins with: train of train_91-3003CN5S."""
    split = name.partition("_")[0]
    if split not in SPLITS:
        raise ValueError(
            f"clip {name!r}: got no split, expected {'_, '.join(SPLITS)}_ at its beginning; move it elsewhere"
        )
    return split


def each(
    function: Callable,
    items: Iterable,
    workers: int = 1,
    progress: bool = False,
    label: str = "",
    scheduler: str | None = None,
) -> list:
    """[function(item) for item in items], `workers` at a time.

    They are threads of this process (PyAV and torch work outside Python's lock), with scheduler "local" processes of
    this machine, with the address of a Dask scheduler that cluster's workers, which have to see the same files and this
    code. For the latter two, function and items have to be such as can be pickled. The first error ends the work;
    ModuleNotFoundError without the package distributed, ValueError if no scheduler answers.
    """
    items, bar = list(items), {"desc": label, "disable": not progress}
    if scheduler is None:
        return thread_map(function, items, max_workers=workers, tqdm_class=tqdm, **bar)
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("no scheduler: distributed is missing; `pip install -e .[cluster]`") from error
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    try:
        client = Client(**local) if scheduler == "local" else Client(scheduler)
    except OSError as error:
        fix = "start one with `dask scheduler`, or correct the address"
        raise ValueError(f"scheduler: got no answer from {scheduler}, expected a Dask scheduler; {fix}") from error
    with client:
        futures = client.map(function, items, pure=False)  # files change: the same call is not the same work
        for future in tqdm(as_completed(futures), total=len(items), **bar):
            if future.status == "error":
                future.result()
        return client.gather(futures)


def read_report(folder: str | Path, name: str) -> dict:
    """What cut and annotate noted of a clip in reports/NAME.json; {} if nothing."""
    path = Path(folder) / "reports" / f"{name}.json"
    try:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError:
        return {"dropped": f"got an unreadable {path.name} in reports, expected JSON; run cut again"}


def check_file(path: str | Path, least: int = 1, **expected: float) -> dict:
    """Decode a video to its end: a dict of ok, frames, height, width, fps and, unless it is ok, the reason.

    Not ok: missing, torn, not decodable, under `least` frames, or other frames, height, width or fps than `expected`.
    """
    row = dict(UNKNOWN)
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


def check(
    folder: str | Path,
    least: int = 1,
    workers: int = 1,
    progress: bool = False,
    most_missing: float = 0.1,
    scheduler: str | None = None,
) -> list[dict]:
    """One row per file of a data set, as of `check_file` plus name, part and path (relative to the folder).

    Every clip needs a video of at least `least` frames and a condition; masks only if any clip has one. Condition and
    mask have to agree with the video in frames and size. Of clips with a report, those that cut has dropped have one
    row, with its reason, and the condition may lack a detection in at most the share `most_missing` of its frames.
    Raises ValueError if there is no clip at all.
    """
    there = {part: files(folder, part) for part in PARTS}
    reports = {path.stem for path in (Path(folder) / "reports").glob("[!.]*.json")}
    names = sorted(reports.union(*there.values()))
    if not names:
        raise ValueError(f"{folder}: got no mp4 file in {', '.join(PARTS)}, expected clips; run cut first")
    parts = [part for part in PARTS if part != "masks" or there["masks"]]
    rows_of = partial(_rows, folder=str(folder), parts=parts, least=least, most_missing=most_missing)
    return [row for rows in each(rows_of, names, workers, progress, "check", scheduler) for row in rows]


def _rows(name: str, folder: str, parts: list[str], least: int, most_missing: float) -> list[dict]:
    noted, rows, expected = read_report(folder, name), [], {}
    for part in parts:
        path = f"{part}/{name}.mp4"
        if "dropped" in noted:
            return [{"name": name, "part": part, "path": path} | UNKNOWN | {"reason": noted["dropped"]}]
        found = check_file(Path(folder) / path, least if part == "videos" else 1, **expected)
        if part == "conditions" and found["ok"] and noted:
            reason = _missing(noted, most_missing)
            found |= {"ok": not reason, "reason": reason}
        rows.append({"name": name, "part": part, "path": path} | found)
        if part == "videos" and found["ok"]:
            expected = {key: found[key] for key in ("frames", "height", "width")}
    return rows


def _missing(noted: dict, most: float) -> str:
    if "annotate" not in noted:
        return "got a condition of an earlier video, expected one of this; run annotate"
    frames, missing = noted["annotate"]["frames"], len(noted["annotate"]["missing"])
    fault = f"got nothing detected in {missing} of {frames} frames, expected at most {most:g} of them"
    return fault if missing > most * frames else ""


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
    licence: str,
    cut_options: Callable[[argparse.ArgumentParser], None],
    annotate_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    split_of: Callable[[str], str] = split_of,
    argv: list[str] | None = None,
) -> int:
    """The command line of one data set, data_prep.<name>; `description` is its docstring, examples included.

    cut and annotate are called with folder, workers, progress, scheduler (and what their options add to their parsers)
    and return counts of what was done. The exit status of check is 1 if it drops a file. `prepare` does all there is to
    do: cut, annotate, manifest.
    """
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", required=True, help="the prepared data set")
    common.add_argument("--workers", type=int, default=1, help="files worked on at the same time (1)")
    common.add_argument("--scheduler", help="local: in processes, by Dask; ADDRESS: on a Dask cluster (threads)")
    common.add_argument("--quiet", action="store_true", help="no progress bar")
    checking = argparse.ArgumentParser(add_help=False)
    checking.add_argument("--least", type=int, default=1, help="drop videos with fewer frames (1)")
    most = "drop clips where nobody is detected in more than this share of the frames (0.1)"
    checking.add_argument("--most-missing", type=float, default=0.1, help=most)
    style = {"description": description, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{name}", **style)
    verbs = parser.add_subparsers(dest="verb", required=True)
    cut_options(verbs.add_parser("cut", parents=[common], help="make the videos; good ones are kept", **style))
    annotating = verbs.add_parser("annotate", parents=[common], help="make the condition videos; likewise", **style)
    annotate_options(annotating)
    verbs.add_parser("check", parents=[common, checking], help="decode every file, report what is dropped", **style)
    listing = verbs.add_parser("manifest", parents=[common, checking], help="check, then write manifest.jsonl", **style)
    whole = {
        "parents": [common, checking],
        "conflict_handler": "resolve",
    }  # cut and annotate may have an option in common
    everything = verbs.add_parser("prepare", help="cut, annotate and manifest, one after the other", **whole, **style)
    cut_options(everything)
    annotate_options(everything)
    for last in (listing, everything):
        last.add_argument("--licence", default=licence, help=f"what the manifest says of every clip ({licence})")
    options = vars(parser.parse_args(argv))
    verb, folder, progress = options.pop("verb"), options.pop("folder"), not options.pop("quiet")
    licence = options.pop("licence", licence)
    try:
        checks = {key: options.pop(key) for key in ("least", "most_missing") if key in options}
        shared = {key: options[key] for key in ("workers", "scheduler")}
        own = {key: options[key] for key in vars(annotating.parse_args(["--folder", folder])).keys() & options.keys()}
        makers = {"cut": (cut, options), "annotate": (annotate, own)}
        if verb == "prepare":
            takes = inspect.signature(cut).parameters
            makers["cut"] = cut, {key: options[key] for key in options if key not in own or key in takes}
        for maker in [verb] if verb in makers else [*makers] if verb == "prepare" else []:
            function, given = makers[maker]
            done = function(folder, progress=progress, **given)
            print(f"{maker}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(done.items())))
        if verb in makers:
            return 0
        rows = check(folder, progress=progress, **checks, **shared)
        print(report(rows))
        if verb in ("manifest", "prepare"):
            print(summary(manifest(folder, rows, split_of, licence)))
            return 0
        return int(any(not row["ok"] for row in rows))
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        parser.error(str(error))


def device_option(parser: argparse.ArgumentParser) -> None:
    """--device, where a detector computes."""
    parser.add_argument("--device", default="cpu", help="where the detector computes: cpu or cuda (cpu)")
