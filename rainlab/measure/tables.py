"""The paper's three tables: its reported rows beside what was measured here, read from runs.

Each table is a pandas DataFrame of text: method, source ("reported, Table 1" or "measured here"), the measures as
"value [low, high]" and n, the number of clips or rounds behind them. Reported numbers come without interval and n, and
from another data set, size and machine: `NOTES` says so with every table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rainlab import runs
from rainlab.config import Preset
from rainlab.measure import ablations, bench, evaluate, latency, reference_designs, reported, systems, zero_shot
from rainlab.training import stages

Table = Any  # a pandas DataFrame of text; pandas is imported where it is needed

NOTES = {
    "table1": "Table 1, quality. Reported rows: UBC-Fashion, 768×512 (height × width). Our rows: held-out studio "
    "characters, another data set at another size, so the two kinds of rows do not compare. [95 % interval], n clips. "
    "*: overflowed PSNR. fg: inside the true foreground. Sharpness error: how far the energy of the edges is from the "
    "truth's; 0 is as sharp, 1 is flat. Motion error: how far the change from frame to frame is from the truth's, in "
    "grey levels; a picture that stands still scores the true motion. At 64×48: both pictures made smaller "
    "first, each pixel the mean of what it covers, so that presets compare. FVD-studio: how far two halves of the true "
    "clips are from each other tells how little a small distance means.",
    "table2": "Table 2, speed. Reported rows: as their authors say. Our rows: a small network and small pictures on "
    "another machine, so the two kinds of rows do not compare; × DDIM is a ratio within one network and machine. "
    "Medians [quartiles] of n interleaved rounds. GFLOP: what the plain way to do the same multiplies and adds, in "
    "products, convolutions and attention. Ceiling: what one large product reaches on that machine. StreamDiffusion "
    "and Live2Diff run here on the same network, guider and decoder, a frame at a time, in four steps (Live2Diff's "
    "reported row: two), and do not encode the pictures that come in, as they would. StreamDiffusion has no attention "
    "over frames, Live2Diff one to the past alone; neither has attention to a reference, but where the row says so.",
    "table3": "Table 3, ablations. Reported rows: UBC-Fashion, 768×512. Our rows: held-out studio characters, one "
    "training each. The two kinds of rows do not compare; the order of ours is reported, not asserted. "
    f"[95 % interval], n clips. Flicker (change of frames that should stand still) and border ratio: the first "
    f"{evaluate.STILL} of them, driven by a frozen pose. True motion: how much the clips themselves change from frame "
    "to frame, the yardstick for motion error and flicker.",
}
"""What has to stand with each table."""
GRID = (
    "One factor at a time around K = 16, p = 4, N = 1; all variants on the same stage 1 and 2D distillation. Mean over "
    "trainings and clips, 95 % interval of both drawn anew; n: trainings × clips. FVD-studio: Fréchet distance to the "
    "truth of all windows of 16 frames, in features of a small motion network; it has an interval over trainings only. "
    "Border ratio: flicker from group to group over that inside groups. Rhythm: power of the flicker every K/p frames "
    "over that at any rate, 1 is none."
)
FASTER = (
    "The trained weights of Table 1 streamed in other ways, none of which they were trained for: StreamDiffusion lacks "
    "the attention its network learned with, Live2Diff's attention sees less than it was trained on."
)
LATE = (
    "Conditions arrive at the clips' own rate in real time; p50 / p95 / p99 over n ticks. Latency: from a condition to "
    "its frame, shown at an even pace; nearly all of it is the wait for the window to fill, (K - 1) / rate. Queue: the "
    "wait of a complete group. Ready: from nothing to a stream with reference. Memory: peak, above that of the imports."
)

# -- joined with our runs --------------------------------------------------------------------------------------------

COLUMNS = {
    "psnr": ("PSNR ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "psnr_fg": ("PSNR fg ↑", 2),
    "ssim_fg": ("SSIM fg ↑", 3),
    "sharpness_error": ("sharpness error ↓", 3),
    "tde": ("motion error ↓", 2),
    "psnr_face": ("PSNR face ↑", 2),
    "ssim_face": ("SSIM face ↑", 3),
    "psnr_64x48": ("PSNR at 64×48 ↑", 2),
    "ssim_64x48": ("SSIM at 64×48 ↑", 3),
    "psnr_fg_64x48": ("PSNR fg at 64×48 ↑", 2),
    "flicker": ("flicker ↓", 2),
    "flicker_border_ratio": ("border ratio ↓", 2),
    "flicker_rhythm": ("rhythm ↓", 2),
    "warping_error": ("warping error ↓", 2),
    "true_warping": ("true warping", 2),
    "id_studio": ("ID-studio ↑", 3),
    "lpips_studio": ("LPIPS-studio ↓", 3),
    "fvd_studio": ("FVD-studio ↓", 3),
    "consistency": ("consistency ↑", 3),
    "mask_iou": ("mask IoU ↑", 2),
    "true_motion": ("true motion", 2),
    "frames_per_second": ("frames/s ↑", 1),
    "speed": ("× DDIM ↑", 2),
    "latency_frames": ("latency, frames ↓", 0),
    "gflop": ("GFLOP a frame ↓", 2),
    "share": ("% of the ceiling ↑", 0),
    "peak_bytes": ("peak memory, MB ↓", 0),
}
"""Metric of a run -> its column and the digits shown; arrows point to the better end."""
DELAYS = {
    "latency, ms": ("latency", 0, 1e3),
    "queue, ms": ("queue", 1, 1e3),
    "tick, ms": ("tick", 0, 1e3),
    "jitter, ms": ("jitter", 1, 1e3),
    "first frame, s": ("first_frame", 2, 1),
    "ready, s": ("ready", 2, 1),
    "busy, %": ("busy", 0, 100),
    "weights, MB": ("weights_bytes", 0, 1e-6),
    "memory, MB": ("peak_bytes", 0, 1e-6),
}
"""Column -> metric of :mod:`rainlab.measure.latency`, digits, factor."""
NOTHING = "–"  # not reported, or not measured


def table1(preset: Preset, record: bool = False, slow: bool = False) -> Table:
    """Quality of every method of :data:`evaluate.METHODS`; ``record`` as in :func:`evaluate.measure`.

    Those of :data:`evaluate.SLOW` where they are recorded; ``slow`` trains and records them, too. Raises
    FileNotFoundError, naming the command, if nothing is recorded.
    """
    for method in evaluate.SLOW if slow else ():
        stages.finished(evaluate.trained_as(preset, method), evaluate.STAGE[method])
        evaluate.measure(preset, method, record=True)
    shown = ("psnr", "ssim", "psnr_fg", "ssim_fg", "sharpness_error", "tde")
    found = {label: evaluate.measure(preset, method, record).metrics() for method, label in evaluate.METHODS.items()}
    found |= {evaluate.SLOW[method]: run.metrics() for method, run in evaluate.there(preset, evaluate.SLOW).items()}
    there = {row["metric"] for rows in found.values() for row in rows}
    shown += tuple(name for name in COLUMNS if name.endswith(("_64x48", "_studio")) and name in there)
    if "fvd_studio" in there and (halves := runs.existing(evaluate.halves, preset, record)):
        found["true films, half against half"] = halves.metrics()
    ours = [measured(label, rows, shown) for label, rows in found.items()]
    more = tuple(COLUMNS[metric][0] for metric in shown[2:])
    return frame([*_quality("Table 1", reported.TABLE1), *ours], (*reported.QUALITY[:2], *more, *reported.QUALITY[2:]))


def table2(preset: Preset, record: bool = False) -> Table:
    """Frames a second, how much faster than DDIM, latency; ``record`` as in :func:`bench.speed`."""
    run = bench.speed(preset, record)
    machine = json.loads((run.path / "provenance.json").read_text("utf-8"))["hardware"]
    rows = [{"method": method, "frames/s ↑": speed, "source": f"reported, {by}", "on": on or NOTHING,
             "size": size or NOTHING} for method, speed, by, on, size in reported.TABLE2]  # fmt: skip
    shown = ("frames_per_second", "speed", "latency_frames", "gflop", "share")
    ceiling = run.value("ceiling")["value"]
    where = {"on": f"{machine['cpu']}, threads: {run.config['threads']}", "size": "×".join(map(str, preset.data.size))}
    for contender in dict.fromkeys(row["contender"] for row in run.metrics() if row["metric"] == "frames_per_second"):
        own = {row["metric"]: row for row in run.metrics() if row["contender"] == contender}
        work = own["flops_per_frame"]["value"]
        own["gflop"] = {"metric": "gflop", "value": work / 1e9}
        own["share"] = {"metric": "share", "value": 100 * work * own["frames_per_second"]["value"] / ceiling}
        rows.append(measured(contender, own.values(), shown) | where)
    return frame(rows, ("on", "size", *(COLUMNS[metric][0] for metric in shown)))


def table3(preset: Preset, record: bool = False) -> Table:
    """The ablations of section 5.4, one training each; ``record`` as in :func:`evaluate.ablations`."""
    shown = ("psnr", "ssim", "psnr_fg", "tde", "flicker", "true_motion", "flicker_border_ratio")
    found = evaluate.ablations(preset, record) | {"K = 16, no motion modules": evaluate.measure(preset, "flat", record)}
    ours = [measured(label, run.metrics(), shown) for label, run in found.items()]
    temporal = tuple(COLUMNS[metric][0] for metric in shown[3:])
    first, last = reported.QUALITY[:2], reported.QUALITY[2:]
    return frame([*_quality("Table 3", reported.TABLE3), *ours], (*first, "PSNR fg ↑", *last, *temporal))


def named(variant: str, method: str) -> str:
    """A row of the grid in words."""
    return variant if method == "rain" else f"{variant}, before distillation"


def grid(preset: Preset, change: bool = False) -> Table:
    """All variants of :mod:`rainlab.measure.ablations`, or how each differs from the base.

    Raises FileNotFoundError, naming the command, if they are not recorded.
    """
    run = ablations.grid(preset)
    shown = ("psnr", "ssim", "psnr_fg", "fvd_studio", "lpips_studio", "id_studio", "sharpness_error", "tde",
             "warping_error", "flicker", "flicker_border_ratio", "flicker_rhythm")  # fmt: skip
    rows, count = [], f"{len(run.config['seeds'])} × {preset.data.test_clips}"
    for label, method in dict.fromkeys((row["variant"], row["method"]) for row in run.metrics()):
        own = [row for row in run.metrics() if (row["variant"], row["method"]) == (label, method)]
        if change:
            own = changes(own)
        own = [row for row in own if row.get("seed", "all") == "all"]
        if own:
            rows.append(measured(named(label, method), own, shown) | {"n": count})
    return frame(rows, tuple(COLUMNS[metric][0] for metric in shown))


def differences(preset: Preset, record: bool = False, pairs: evaluate.Pairs = evaluate.PAIRS) -> Table:
    """Paired differences between methods on the same clips, from :func:`evaluate.compare`."""
    shown, names = evaluate.PAIRED, evaluate.METHODS | evaluate.SLOW
    found = evaluate.compare(preset, record, pairs).metrics()
    rows = []
    for a, b in pairs:
        pair = [row for row in found if (row["a"], row["b"]) == (a, b)]
        rows.append(measured(f"{names[a]} − {names[b]}", pair, shown))
    return frame(rows, tuple(COLUMNS[metric][0] for metric in shown))


def faster(preset: Preset, record: bool = False) -> Table:
    """What the ways of :data:`evaluate.OTHERS` cost in quality, as far as recorded, beside RAIN and copying.

    ``record``: record them, as in :func:`evaluate.measure`.
    """
    shown = ("psnr", "ssim", "psnr_fg", "sharpness_error", "tde", "flicker", "true_motion")
    for name in evaluate.OTHERS if record else ():
        evaluate.measure(preset, name, record)
    names = evaluate.METHODS | evaluate.OTHERS
    found = evaluate.there(preset, ("copy", "rain", *evaluate.OTHERS))
    rows = [measured(names[method], run.metrics(), shown) for method, run in found.items()]
    return frame(rows, tuple(COLUMNS[metric][0] for metric in shown))


def delays(preset: Preset, record: bool = False) -> Table:
    """Motion to photon by K, p, N: quantiles "p50 / p95 / p99"; ``record`` as for :func:`latency.latency`."""
    from pandas import DataFrame

    found = latency.latency(preset, record).metrics()
    rows = []
    for setting in dict.fromkeys(row["setting"] for row in found):
        own = [row for row in found if row["setting"] == setting]
        shown = {name: _joined(own, *how) for name, how in DELAYS.items()}
        rows.append({"setting": setting} | shown | {"n": str(own[0]["n"])})
    return DataFrame(rows)


def _joined(rows: list[dict[str, Any]], metric: str, digits: int, scale: float) -> str:
    """All values of a metric, in the order recorded."""
    return " / ".join(f"{scale * row['value']:.{digits}f}" for row in rows if row["metric"] == metric)


def without_modules(preset: Preset) -> Table:
    """PoseAnimate's ablation (its Figure 5), RAIN and copying beside it, as far as recorded."""
    found = zero_shot.there(preset)
    rows = [measured(method, run.metrics(), zero_shot.MEASURES) for method, run in found.items()]
    return frame(rows, tuple(COLUMNS[metric][0] for metric in zero_shot.MEASURES))


def designs(preset: Preset, record: bool = False) -> Table:
    """Ways to show the reference (AnimateAnyone's Table 3), below them how each differs from the reference network."""
    run, shown = reference_designs.compare(preset, record=record), reference_designs.MEASURES
    n, rows = f"{len(run.config['seeds'])} × {reference_designs.CLIPS}", []
    own = {design: [row for row in run.metrics() if row["design"] == design] for design in reference_designs.DESIGNS}
    for design, label in reference_designs.DESIGNS.items():
        rows.append(measured(label, own[design], shown) | {"n": n})
    for design, label in list(reference_designs.DESIGNS.items())[:-1]:
        rows.append(measured(f"{label}, against reference network", changes(own[design]), shown) | {"n": n})
    return frame(rows, tuple(COLUMNS[metric][0] for metric in shown))


def three_systems(preset: Preset) -> Table:
    """Speed and memory of the pose-driven systems, from :func:`systems.compare`; speed is relative to RAIN's stream."""
    shown = ("frames_per_second", "gflop", "peak_bytes", "latency_frames")
    rows, recorded = [], systems.compare(preset).metrics()
    for label in (systems.NOTHING, *systems.LABELS):
        own = {row["metric"]: row for row in recorded if row["contender"] == label}
        own["peak_bytes"] |= {"value": own["peak_bytes"]["value"] / 1e6}
        if "flops_per_frame" in own:
            own["gflop"] = {"metric": "gflop", "value": own["flops_per_frame"]["value"] / 1e9}
        times = {"× RAIN ↑": cell(own["speed"], 3)} if "speed" in own else {}
        rows.append(measured(label, own.values(), shown) | times)
    return frame(rows, (COLUMNS[shown[0]][0], "× RAIN ↑", *(COLUMNS[metric][0] for metric in shown[1:])))


def verdict(preset: Preset, a: str, b: str) -> str:
    """What method ``a`` does better and worse than ``b`` on the same clips, in words, with the mean differences.

    Undecided is what the 95 % interval of the paired difference does not tell from 0.
    """
    said: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for row in evaluate.compare(preset).metrics():
        if (row["a"], row["b"]) == (a, b):
            column, digits = COLUMNS[row["metric"]]
            gain = row["value"] * (1 if column.endswith("↑") else -1)
            decided = row["ci_low"] > 0 or row["ci_high"] < 0
            word = "undecided" if not decided else "better" if gain > 0 else "worse"
            said[word].append(f"{column[:-2]} ({row['value']:+.{digits}f})")
    told = "; ".join(f"{word} in {', '.join(found)}" for word, found in said.items() if found)
    return f"On the same clips, compared with {evaluate.METHODS[b]}, {evaluate.METHODS[a]} is {told}."


def _quality(name: str, table: Mapping[str, tuple]) -> list[dict[str, str]]:
    """Reported rows of a table with the columns of reported.QUALITY; overflowed PSNR values carry an asterisk."""
    rows = []
    for method, numbers in table.items():
        cells = {column: f"{x:g}" for column, x in zip(reported.QUALITY, numbers, strict=True) if x is not None}
        if method in reported.OVERFLOWED and reported.OVERFLOWED[method] == numbers[0]:
            cells[reported.QUALITY[0]] += "*"
        rows.append({"method": method, "source": f"reported, {name}"} | cells)
    return rows


def measured(method: str, recorded: Iterable[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, str]:
    """One of our rows: the cells of those of ``metrics`` that were recorded."""
    values = {row["metric"]: row for row in recorded}
    found = {COLUMNS[metric][0]: cell(values[metric], COLUMNS[metric][1]) for metric in metrics if metric in values}
    n = next((str(values[metric]["n"]) for metric in metrics if values.get(metric, {}).get("n")), NOTHING)
    return {"method": method, "source": "measured here", **found, "n": n}


def changes(recorded: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows ``<metric>_change`` among those recorded, each as one of its metric."""
    ending = "_change"
    found = [row for row in recorded if row["metric"].endswith(ending)]
    return [row | {"metric": row["metric"].removesuffix(ending)} for row in found]


def cell(row: Mapping[str, Any], digits: int) -> str:
    """A recorded number as "value [low, high]", or the value alone if it has no interval."""
    keys = ("value", "ci_low", "ci_high")
    numbers = [f"{round(row[key], digits) + 0.0:.{digits}f}" for key in keys if row.get(key) is not None]  # no -0.0
    return numbers[0] if len(numbers) == 1 else "{} [{}, {}]".format(*numbers)


def frame(rows: list[dict[str, str]], columns: Iterable[str]) -> Table:
    from pandas import DataFrame

    names = ["method", "source", *columns, "n"]
    return DataFrame([[row.get(name, NOTHING) for name in names] for row in rows], columns=names)


# -- shown -----------------------------------------------------------------------------------------------------------


def show(table: Table, name: str = "table") -> Any:
    """The table for a notebook, an IPython HTML object: reported rows grey. The same table gives the same HTML."""
    from IPython.display import HTML

    def shade(row: Any) -> list[str]:
        return ["color: #777; background: #f4f5f7" if row["source"].startswith("reported") else ""] * len(row)

    style = table.style.apply(shade, axis=1).hide(axis="index").set_uuid(name)
    left = {"selector": "th, td", "props": "text-align: left; white-space: nowrap"}
    return HTML(style.set_table_styles([left]).to_html())


def text(table: Table) -> str:
    """The table as plain text, aligned on the left."""
    lines = [list(table.columns), *table.to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
