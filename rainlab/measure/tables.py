"""The paper's three tables: its reported rows beside what was measured here, read from runs.

Each table is a pandas DataFrame of text: method, source ("reported, Table 1" or "measured here"), the measures as
"value [low, high]" and n, the number of clips or rounds behind them. Reported numbers come without interval and n, and
from another data set, size and machine: `NOTES` says so with every table.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rainlab.config import Preset
from rainlab.files import atomic_path
from rainlab.measure import bench, evaluate, latency
from rainlab.training import stages, weights

Table = Any  # a pandas DataFrame of text; pandas is imported where it is needed

# -- what the paper reports (arXiv 2412.19489v1) ---------------------------------------------------------------------

QUALITY = ("PSNR ↑", "SSIM ↑", "LPIPS ↓", "FVD ↓")

TABLE1 = {
    "MRAA": (None, 0.749, 0.212, 253.6),
    "TPSMM": (None, 0.746, 0.213, 247.5),
    "BDMM": (24.07, 0.918, 0.048, 168.3),
    "DreamPose": (None, 0.885, 0.068, 238.7),
    "DreamPose without finetuning": (34.75, 0.879, 0.111, 279.6),
    "AnimateAnyone": (38.49, 0.931, 0.044, 81.6),
    "RAIN": (23.99, 0.921, 0.063, 85.2),
}
"""UBC-Fashion, 512 pixels wide and 768 high; columns of QUALITY."""

OVERFLOWED = {"DreamPose without finetuning": 34.75, "AnimateAnyone": 38.49, "RAIN": 37.20}
"""PSNR computed with uint8 overflow: method -> dB. The footnote: "These PSNR values above 30 are the results of
overflow. Their authors use code that treat image array as uint8 type. If the overflowed algorithm is used, the PSNR
value of RAIN is 37.20." """

TABLE2 = (
    ("StreamDiffusion", "37.13", "Table 2", "RTX 4090", "512×512"),
    ("Live2Diff", "16.43", "Table 2", "RTX 4090", "512×512"),
    ("RAIN", "18.11", "Table 2", "RTX 4090", "512×512"),
    ("PersonaLive", "15.82", "its authors", None, None),
    ("PersonaLive", "10.03 – 12.10", "others", "RTX 5090", None),
    ("MotionStream", "29", "its authors", "H100", None),
    ("StreamDiffusionV2", "58 – 64", "its authors", "4 × H100", None),
)
"""Method, frames a second, who reported them, and what on. RAIN with TensorRT and TinyVAE, DWPose's time included."""

TABLE3 = {
    "K = 16": (23.99, 0.921, 0.063, 85.2),
    "K = 8": (23.72, 0.919, 0.064, 145.8),
    "K = 16, causal mask": (23.63, 0.918, 0.066, 284.5),
}
"""Section 5.4, data and columns of TABLE1."""

NOTES = {
    "table1": "Table 1, quality. Reported rows: UBC-Fashion, 768×512 (height × width). Our rows: held-out studio "
    "characters, another data set at another size, so the two kinds of rows do not compare. [95 % interval], n clips. "
    "*: overflowed PSNR. fg: inside the true foreground. Sharpness error: how far the energy of the edges is from the "
    "truth's; 0 is as sharp, 1 is flat. Motion error: how far the change from frame to frame is from the truth's, in "
    "grey levels; a picture that stands still scores the true motion. At 64×48: both pictures made smaller "
    "first, each pixel the mean of what it covers, so that presets compare.",
    "table2": "Table 2, speed. Reported rows: 512×512 on an RTX 4090. Our rows: a small network and small pictures on "
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
    "psnr_64x48": ("PSNR at 64×48 ↑", 2),
    "ssim_64x48": ("SSIM at 64×48 ↑", 3),
    "psnr_fg_64x48": ("PSNR fg at 64×48 ↑", 2),
    "flicker": ("flicker ↓", 2),
    "flicker_border_ratio": ("border ratio ↓", 2),
    "true_motion": ("true motion", 2),
    "frames_per_second": ("frames/s ↑", 1),
    "speed": ("× DDIM ↑", 2),
    "latency_frames": ("latency, frames ↓", 0),
    "gflop": ("GFLOP a frame ↓", 2),
    "share": ("% of the ceiling ↑", 0),
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


def table1(preset: Preset, record: bool = False) -> Table:
    """Quality of every method of :data:`evaluate.METHODS`; ``record`` as in :func:`evaluate.measure`.

    Raises FileNotFoundError, naming the command, if nothing is recorded.
    """
    shown = ("psnr", "ssim", "psnr_fg", "ssim_fg", "sharpness_error", "tde")
    found = {label: evaluate.measure(preset, method, record).metrics() for method, label in evaluate.METHODS.items()}
    measured = {row["metric"] for rows in found.values() for row in rows}
    shown += tuple(name for name in COLUMNS if name.endswith("_64x48") and name in measured)
    ours = [_measured(label, rows, shown) for label, rows in found.items()]
    more = tuple(COLUMNS[metric][0] for metric in shown[2:])
    return _frame([*_quality("Table 1", TABLE1), *ours], (*QUALITY[:2], *more, *QUALITY[2:]))


def table2(preset: Preset, record: bool = False) -> Table:
    """Frames a second, how much faster than DDIM, latency; ``record`` as in :func:`bench.speed`."""
    run = bench.speed(preset, record)
    machine = json.loads((run.path / "provenance.json").read_text("utf-8"))["hardware"]
    rows = [{"method": method, "frames/s ↑": speed, "source": f"reported, {by}", "on": on or NOTHING,
             "size": size or NOTHING} for method, speed, by, on, size in TABLE2]  # fmt: skip
    shown = ("frames_per_second", "speed", "latency_frames", "gflop", "share")
    ceiling = run.value("ceiling")["value"]
    where = {"on": f"{machine['cpu']}, threads: {run.config['threads']}", "size": "×".join(map(str, preset.data.size))}
    for contender in dict.fromkeys(row["contender"] for row in run.metrics() if row["metric"] == "frames_per_second"):
        own = {row["metric"]: row for row in run.metrics() if row["contender"] == contender}
        work = own["flops_per_frame"]["value"]
        own["gflop"] = {"metric": "gflop", "value": work / 1e9}
        own["share"] = {"metric": "share", "value": 100 * work * own["frames_per_second"]["value"] / ceiling}
        rows.append(_measured(contender, own.values(), shown) | where)
    return _frame(rows, ("on", "size", *(COLUMNS[metric][0] for metric in shown)))


def table3(preset: Preset, record: bool = False) -> Table:
    """The ablations of section 5.4; ``record`` as in :func:`evaluate.ablations`."""
    shown = ("psnr", "ssim", "psnr_fg", "tde", "flicker", "true_motion", "flicker_border_ratio")
    found = evaluate.ablations(preset, record) | {"K = 16, no motion modules": evaluate.measure(preset, "flat", record)}
    ours = [_measured(label, run.metrics(), shown) for label, run in found.items()]
    temporal = tuple(COLUMNS[metric][0] for metric in shown[3:])
    return _frame([*_quality("Table 3", TABLE3), *ours], (*QUALITY[:2], "PSNR fg ↑", *QUALITY[2:], *temporal))


def differences(preset: Preset, record: bool = False) -> Table:
    """Paired differences between methods on the same clips, from :func:`evaluate.compare`."""
    shown = evaluate.PAIRED
    found = evaluate.compare(preset, record).metrics()
    rows = []
    for a, b in evaluate.PAIRS:
        pair = [row for row in found if (row["a"], row["b"]) == (a, b)]
        rows.append(_measured(f"{evaluate.METHODS[a]} − {evaluate.METHODS[b]}", pair, shown))
    return _frame(rows, tuple(COLUMNS[metric][0] for metric in shown))


def faster(preset: Preset, record: bool = False) -> Table:
    """What the ways of :data:`evaluate.OTHERS` cost in quality, beside RAIN and copying; ``record`` as there."""
    shown = ("psnr", "ssim", "psnr_fg", "sharpness_error", "tde", "flicker", "true_motion")
    named = {name: evaluate.METHODS[name] for name in ("copy", "rain")} | evaluate.OTHERS
    rows = [_measured(label, evaluate.measure(preset, name, record).metrics(), shown) for name, label in named.items()]
    return _frame(rows, tuple(COLUMNS[metric][0] for metric in shown))


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
    told = "; ".join(f"{word}: {', '.join(found)}" for word, found in said.items() if found)
    return f"{evaluate.METHODS[a]} against {evaluate.METHODS[b]}. {told[0].upper() + told[1:]}."


def _quality(name: str, table: Mapping[str, tuple]) -> list[dict[str, str]]:
    """Reported rows of a table with the columns of QUALITY; overflowed PSNR values carry an asterisk."""
    rows = []
    for method, numbers in table.items():
        cells = {column: f"{x:g}" for column, x in zip(QUALITY, numbers, strict=True) if x is not None}
        if method in OVERFLOWED and OVERFLOWED[method] == numbers[0]:
            cells[QUALITY[0]] += "*"
        rows.append({"method": method, "source": f"reported, {name}"} | cells)
    return rows


def _measured(method: str, recorded: Iterable[Mapping[str, Any]], metrics: Iterable[str]) -> dict[str, str]:
    """One of our rows: the cells of those of ``metrics`` that were recorded."""
    values = {row["metric"]: row for row in recorded}
    found = {COLUMNS[metric][0]: cell(values[metric], COLUMNS[metric][1]) for metric in metrics if metric in values}
    n = next((str(values[metric]["n"]) for metric in metrics if values.get(metric, {}).get("n")), NOTHING)
    return {"method": method, "source": "measured here", **found, "n": n}


def cell(row: Mapping[str, Any], digits: int) -> str:
    """A recorded number as "value [low, high]", or the value alone if it has no interval."""
    keys = ("value", "ci_low", "ci_high")
    numbers = [f"{round(row[key], digits) + 0.0:.{digits}f}" for key in keys if row.get(key) is not None]  # no -0.0
    return numbers[0] if len(numbers) == 1 else "{} [{}, {}]".format(*numbers)


def _frame(rows: list[dict[str, str]], columns: Iterable[str]) -> Table:
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


def _all(preset: Preset, ablated: Preset) -> dict[str, Table]:
    return {"table1": table1(preset), "table2": table2(preset), "table3": table3(ablated)}


def print_all(preset: Preset, ablated: Preset) -> None:
    """Print the three tables from what is recorded, the third of the preset ``ablated``.

    Raises FileNotFoundError, naming the command, if nothing is recorded.
    """
    for name, table in _all(preset, ablated).items():
        which = (ablated if name == "table3" else preset).name
        print(f"\n{textwrap.fill(f'Preset {which}. {NOTES[name]}', 120)}\n\n{text(table)}")


def results(preset: Preset, ablated: Preset) -> str:
    """figures/RESULTS.md: the tables and paired differences with their protocol, Table 3 of the preset ``ablated``."""
    parts = [
        "# Results",
        f"Preset `{preset.name}` (Table 3: `{ablated.name}`) on two CPU cores: mean with 95 % bootstrap interval over "
        "the held-out clips. The runs behind these numbers are in [runs](runs), made by `python -m doit preset=… "
        "record=yes`; notebooks 30, 40 and 41 explain them and measure again with `-p record True`.",
    ]
    for name, table in _all(preset, ablated).items():
        title, _, note = NOTES[name].partition(". ")
        parts += [f"## {title}", note, _markdown(table)]
    parts += ["## Faster ways, same weights", FASTER, _markdown(faster(preset))]
    parts += ["## Motion to photon", LATE, _markdown(delays(preset))]
    note = "On the same clips; an interval that leaves out 0 is more than chance over clips. Flicker: a frozen pose."
    parts += ["## Paired differences", note, _markdown(differences(preset))]
    parts += [verdict(preset, "rain", other) for other in ("undistilled", "flat")]
    return "\n\n".join(parts)


def long(preset: Preset, ablated: Preset) -> dict[str, Table]:
    """The three tables' numbers one a row: method, source, metric, value, ci_low, ci_high, n, protocol, run."""
    from pandas import DataFrame

    flat = ("K = 16, no motion modules", evaluate.measure(ablated, "flat"))
    ours = {
        "table1": [(label, evaluate.measure(preset, method)) for method, label in evaluate.METHODS.items()],
        "table2": [("", bench.speed(preset))],  # its rows name their method
        "table3": [*evaluate.ablations(ablated).items(), flat],
    }
    rows = {
        "table1": list(_reported("Table 1", TABLE1)),
        "table2": [{"method": method, "source": f"reported, {by}", "metric": "frames/s", "value": value}
                   for method, value, by, *_ in TABLE2],
        "table3": list(_reported("Table 3", TABLE3)),
    }  # fmt: skip
    for name, found in ours.items():
        for label, run in found:
            about = {"source": "measured here", "run": run.id}
            single = [row for row in run.metrics() if not row.keys() & {"step", "stretch"}]
            rows[name] += [row | about | {"method": label or row["contender"]} for row in single]
    columns = ["method", "source", "metric", "value", "ci_low", "ci_high", "n", "protocol", "run"]
    return {name: DataFrame(each, columns=columns) for name, each in rows.items()}


def _reported(title: str, table: Mapping[str, tuple]) -> Iterable[dict[str, Any]]:
    for method, numbers in table.items():
        for column, value in zip(QUALITY, numbers, strict=True):
            if value is not None:
                yield {"method": method, "source": f"reported, {title}", "metric": column[:-2], "value": value}


def save_all(folder: Path, preset: Preset, ablated: Preset) -> None:
    """Write RESULTS.md, and of each table `<name>.csv` (one number a row) and `<name>.tex` (as shown)."""
    for name, numbers in long(preset, ablated).items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            numbers.to_csv(temporary, index=False)
    for name, table in _all(preset, ablated).items():
        with atomic_path(folder / f"{name}.tex") as temporary:
            temporary.write_text(table.style.hide(axis="index").to_latex(hrules=True, convert_css=True), "utf-8")
    with atomic_path(folder / "RESULTS.md") as temporary:
        temporary.write_text(results(preset, ablated) + "\n", "utf-8")


def pace(preset: Preset) -> str:
    """A sentence on the recorded frames a second of the ways to stream."""
    run = bench.speed(preset)
    machine = json.loads((run.path / "provenance.json").read_text("utf-8"))["hardware"]
    rates = {row["contender"]: row["value"] for row in run.metrics() if row["metric"] == "frames_per_second"}
    own = next(name for name in rates if name.startswith("stream"))
    names = {own: "plain", f"{own}, fast": "with `fast=True`", f"{own}, compiled": "compiled",
             f"{own}, exported (onnxruntime)": "by onnxruntime", "StreamDiffusion, fast": "StreamDiffusion",
             "Live2Diff, fast": "Live2Diff (both fast, on the same network)"}  # fmt: skip
    told = ", ".join(f"{rates[name]:.0f} {words}" for name, words in names.items() if name in rates)
    return f"Frames/s on {run.config['threads']} threads of a CPU ({machine['cpu']}), no GPU: {told}."


def readme(preset: Preset) -> str:
    """The README's results: what is bad about them, and the paper's row, ours, copying and the ceiling."""
    table = table1(preset)
    shown = table[table["method"].isin(["RAIN", evaluate.METHODS["copy"], evaluate.METHODS["autoencoder"]])]
    columns = ["method", "source", "PSNR ↑", "SSIM ↑", "PSNR fg ↑", "sharpness error ↓", "motion error ↓"]
    rain, ceiling = (evaluate.measure(preset, method) for method in ("rain", "autoencoder"))
    below = ceiling.value("psnr")["value"] - rain.value("psnr")["value"]
    moving, error, flicker = (rain.value(name)["value"] for name in ("true_motion", "tde", "flicker"))
    bad = (
        f"At preset `{preset.name}` RAIN's pictures are {below:.1f} dB below what its autoencoder alone reaches. Its "
        f"motion error is {error / moving:.1f} times that of a picture that stands still ({moving:.2f}, the true "
        f"motion), and driven by a frozen pose it flickers by {flicker:.2f} grey levels a frame."
    )
    full = "The full tables with protocol, ablations and speed: [figures/RESULTS.md](figures/RESULTS.md)."
    more = f"{pace(preset)} {full}"
    return "\n\n".join([bad, _markdown(shown[columns]), verdict(preset, "rain", "undistilled"), more])


def card(preset: Preset) -> str:
    """The model card's numbers of a preset: what each stage trained, for how long, and what came out."""
    rows = []
    for stage in stages.STAGES:
        run = stages.recorded(preset, stage)
        file = weights.SHIPPED / f"{run.id}.safetensors"
        curve = [row for row in run.metrics() if row["metric"] == "loss"]
        machine = json.loads((run.path / "provenance.json").read_text("utf-8"))["hardware"]["cpu"]
        rows.append({
            "stage": f"`{stage}`", "steps": f"{curve[-1]['step']:,}",
            "samples a step": str(run.config["train"]["batch"]),
            "minutes": f"{curve[-1]['seconds'] / 60:.0f}", "processor": machine,
            "MB": f"{file.stat().st_size / 1e6:.1f}", "run": run.id,
        })  # fmt: skip
    results = []
    for method in ("copy", "autoencoder", "rain"):
        found = {row["metric"]: row for row in evaluate.measure(preset, method).metrics()}
        shown = {COLUMNS[name][0]: cell(found[name], COLUMNS[name][1]) for name in COLUMNS if name in found}
        results.append({"method": evaluate.METHODS[method]} | shown)
    names = list(dict.fromkeys(name for row in results for name in row))
    data = preset.data
    clips = f"{data.test_clips} held-out characters × {data.test_frames} frames; RAIN streams them in four steps"
    return "\n\n".join([
        f"## Preset `{preset.name}`: training", _rows(rows),
        f"## Preset `{preset.name}`: measured", f"{clips}; mean [95 % interval].",
        _rows([{name: row.get(name, NOTHING) for name in names} for row in results]),
    ])  # fmt: skip


def _rows(rows: list[dict[str, Any]]) -> str:
    from pandas import DataFrame

    return _markdown(DataFrame(rows, dtype=object))


def _markdown(table: Table) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
