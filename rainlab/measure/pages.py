"""Pages made of the tables: RESULTS.md, CSV and LaTeX, the README's results, the model card's numbers, the console."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rainlab import runs
from rainlab.config import Preset
from rainlab.files import atomic_path
from rainlab.measure import (
    ablations,
    bench,
    evaluate,
    latency,
    protocols,
    reference_designs,
    reported,
    systems,
    tables,
    talking_heads,
    zero_shot,
)
from rainlab.measure.tables import Table
from rainlab.training import stages, weights

ORIGINS = (
    "A run's folder holds what determined it (`config.json`: the clips' numbers, the run that the weights are from), "
    "its numbers, what each clip scored (`values.json`), versions and machine (`provenance.json`). The command "
    "measures it again."
)
PROTOCOLS = (
    "What a number means is told by its protocol, a column of the CSV files and of every run's metrics; what a "
    "protocol does, by the digest of its code (`python -m rainlab.measure.protocols`). A test holds code and digest "
    "together, so that a name never comes to mean something else."
)
CENTRAL = (
    "All of one stage 1. PoseAnimate: nothing more is trained, the reference network is switched off. AnimateAnyone: a "
    "stage 2 of its own, with one noise level for all frames of a window, then 20 DDIM steps with classifier-free "
    "guidance (RAIN's ω) over windows of K frames that overlap by 4, the whole clip known from the start. RAIN before "
    "distillation: 20 guided DDIM steps down the stairs. Below: paired differences on the same clips."
)
WITHOUT = (
    "Held-out characters driven by somebody else, smaller and to one side; the truth is the character itself in that "
    "motion (notebook 71_pose_animate). Consistency: ID-studio of neighbouring frames; mask IoU: at the latents' size."
)
DESIGNS = (
    "AnimateAnyone's Table 3: each design is trained through stage 1 with three seeds for the same arithmetic, and "
    "draws each frame for itself by 20 guided DDIM steps. Mean over trainings and clips, 95 % interval of both drawn "
    "anew; n: trainings × clips."
)
HEADS = (
    "Its tables on the studio's faces (notebooks 80_tha_students, 81_tha_distillation), beside its reported rows, of "
    "512×512. Students learn one character and are asked for poses that no lesson shows; n: poses. Rotators turn "
    "characters that they never saw; mean over two trainings and n characters. Table 8: at 64×64, n characters, no "
    "interval. fg: inside the true foreground; face: of that, inside the square in which a face moves."
)
SYSTEMS = (
    "Random weights, clips of a window's length, interleaved rounds on two threads: medians [quartiles]. Memory: the "
    "most that a process holds which makes one clip (`python -m rainlab.measure.systems`). Rates compare within this "
    "table; Table 2 was measured on a faster machine."
)


def _all(preset: Preset, ablated: Preset) -> dict[str, Table]:
    return {"table1": tables.table1(preset), "table2": tables.table2(preset), "table3": tables.table3(ablated)}


def print_all(preset: Preset, ablated: Preset) -> None:
    """Print the three tables from what is recorded, the third of the preset ``ablated``.

    Raises FileNotFoundError, naming the command, if nothing is recorded.
    """
    for name, table in _all(preset, ablated).items():
        which = (ablated if name == "table3" else preset).name
        print(f"\n{textwrap.fill(f'Preset {which}. {tables.NOTES[name]}', 120)}\n\n{tables.text(table)}")


def results(preset: Preset, ablated: Preset, others: Sequence[Preset] = ()) -> str:
    """figures/RESULTS.md: the tables and paired differences with their protocol, Table 3 of the preset ``ablated``.

    ``others``: presets of the paper's other tasks.
    """
    parts = [
        "# Results",
        f"Preset `{preset.name}` (Table 3: `{ablated.name}`) on two CPU cores: mean with 95 % bootstrap interval over "
        "the held-out clips. The runs behind these numbers are in [runs](runs), made by `python -m doit preset=… "
        "record=yes`; notebooks 30, 40 and 41 explain them and measure again with `-p record True`.",
    ]
    for name, table in _all(preset, ablated).items():
        title, _, note = tables.NOTES[name].partition(". ")
        parts += [f"## {title}", note, _markdown(table)]
    for which in (preset, ablated):
        if evaluate.are_there(which, evaluate.CENTRAL):
            parts += [f"## Against AnimateAnyone and PoseAnimate, preset {which.name}", CENTRAL]
            parts += [_markdown(tables.table1(which)), _markdown(tables.differences(which, pairs=evaluate.CENTRAL))]
            break
    if zero_shot.there(preset):
        parts += ["## PoseAnimate without its modules", WITHOUT, _markdown(tables.without_modules(preset))]
    if runs.existing(reference_designs.compare, ablated):
        parts += [f"## Ways to show the reference, preset {ablated.name}", DESIGNS, _markdown(tables.designs(ablated))]
    if runs.existing(systems.compare, preset):
        parts += ["## Three systems, speed and memory", SYSTEMS, _markdown(tables.three_systems(preset))]
    if runs.existing(ablations.grid, ablated):
        parts += ["## Table 3, more variants", tables.GRID, _markdown(tables.grid(ablated))]
        parts += ["## The same against K = 16, p = 4, N = 1", _markdown(tables.grid(ablated, change=True))]
    parts += ["## Faster ways, same weights", tables.FASTER, _markdown(tables.faster(preset))]
    parts += ["## Motion to photon", tables.LATE, _markdown(tables.delays(preset))]
    note = "On the same clips; an interval that leaves out 0 is more than chance over clips. Flicker: a frozen pose."
    parts += ["## Paired differences", note, _markdown(tables.differences(preset))]
    parts += [tables.verdict(preset, "rain", other) for other in ("undistilled", "flat")]
    for other in others:
        parts += [f"## Preset `{other.name}`", _clips(other), _measured(evaluate.there(other, evaluate.OF_TASKS))]
    for other in others:
        if other.data.source == "faces" and (found := talking_heads.recorded(other)):
            parts += ["## Talking Head Anime 4", HEADS]
            parts += [text for title, table in found.items() for text in (f"### {title}", _markdown(table))]
    parts += ["## Where a number is from", ORIGINS, _rows(origins(preset, ablated, others))]
    digests = [{"protocol": name, "code": f"`rainlab/measure/{modules[0]}.py`", "digest": protocols.DIGESTS[name]}
               for name, modules in protocols.MODULES.items()]  # fmt: skip
    parts += ["## Protocols", PROTOCOLS, _rows(digests)]
    return "\n\n".join(parts)


def origins(preset: Preset, ablated: Preset, others: Sequence[Preset] = ()) -> list[dict[str, str]]:
    """For each measured row of the tables the run, the weights it looked at, seed, commit, and the command for it."""
    rows = []

    def add(which: Preset, label: str, run: runs.Run, job: str) -> None:
        notes = json.loads((run.path / "provenance.json").read_text("utf-8"))
        words = f"record={'measured' if which.name == preset.name else 'yes'} {job}" if job else "record=yes"
        rows.append({
            "row": label, "preset": which.name, "run": f"[{run.id}](runs/{run.id})",
            "weights": run.inputs.get("model", tables.NOTHING), "seeds": str(run.config.get("seeds", 0)),
            "commit": (notes["commit"] or tables.NOTHING)[:7],
            "command": f"`python -m doit preset={which.name} {words}`",
        })  # fmt: skip

    jobs = {"job:table1": evaluate.METHODS, "full=yes job:table1": evaluate.SLOW}
    jobs["full=yes job:table2"] = evaluate.OTHERS
    for which in (preset, ablated):
        for job, methods in jobs.items():
            for method, run in evaluate.there(which, methods).items():
                add(which, methods[method], run, job)
    for label, run in list(evaluate.ablations(ablated).items())[1:]:
        add(ablated, label, run, "job:ablations")
    if grid := runs.existing(ablations.grid, ablated):
        add(ablated, "all variants", grid, "full=yes job:ablations")
    add(preset, "speed", bench.speed(preset), "job:table2")
    add(preset, "motion to photon", latency.latency(preset), "full=yes job:table2")
    for other in others:  # one notebook does all
        for method, run in evaluate.there(other, evaluate.OF_TASKS).items():
            add(other, evaluate.METHODS[method], run, "")
    return rows


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
        "table1": list(_reported("Table 1", reported.TABLE1)),
        "table2": [{"method": method, "source": f"reported, {by}", "metric": "frames/s", "value": value}
                   for method, value, by, *_ in reported.TABLE2],
        "table3": list(_reported("Table 3", reported.TABLE3)),
    }  # fmt: skip
    for name, found in ours.items():
        for label, run in found:
            about = {"source": "measured here", "run": run.id}
            single = [row for row in run.metrics() if not row.keys() & {"step", "stretch"}]
            rows[name] += [row | about | {"method": label or row["contender"]} for row in single]
    if several := runs.existing(ablations.grid, ablated):
        about = {"source": "measured here, all variants", "run": several.id}
        both = [row for row in several.metrics() if row.get("seed", "all") == "all"]
        rows["table3"] += [row | about | {"method": tables.named(row["variant"], row["method"])} for row in both]
    columns = ["method", "source", "metric", "value", "ci_low", "ci_high", "n", "protocol", "run"]
    return {name: DataFrame(each, columns=columns) for name, each in rows.items()}


def _reported(title: str, table: Mapping[str, tuple]) -> Iterable[dict[str, Any]]:
    for method, numbers in table.items():
        for column, value in zip(reported.QUALITY, numbers, strict=True):
            if value is not None:
                yield {"method": method, "source": f"reported, {title}", "metric": column[:-2], "value": value}


def save_all(folder: Path, preset: Preset, ablated: Preset, others: Sequence[Preset] = ()) -> None:
    """Write RESULTS.md, and of each table `<name>.csv` (one number a row) and `<name>.tex` (as shown).

    ``others``: as for :func:`results`.
    """
    for name, numbers in long(preset, ablated).items():
        with atomic_path(folder / f"{name}.csv") as temporary:
            numbers.to_csv(temporary, index=False)
    for name, table in _all(preset, ablated).items():
        with atomic_path(folder / f"{name}.tex") as temporary:
            temporary.write_text(table.style.hide(axis="index").to_latex(hrules=True, convert_css=True), "utf-8")
    with atomic_path(folder / "RESULTS.md") as temporary:
        temporary.write_text(results(preset, ablated, others) + "\n", "utf-8")


def pace(preset: Preset) -> str:
    """A sentence on the recorded frames a second of the ways to stream."""
    run = bench.speed(preset)
    machine = json.loads((run.path / "provenance.json").read_text("utf-8"))["hardware"]
    rates = {row["contender"]: row["value"] for row in run.metrics() if row["metric"] == "frames_per_second"}
    own = next(name for name in rates if name.startswith("stream"))
    names = {own: "plain", f"{own}, fast": "with `fast=True`", f"{own}, compiled": "compiled",
             f"{own}, exported (onnxruntime)": "by onnxruntime",
             "StreamDiffusion with reference, fast": "StreamDiffusion with its reference",
             "Live2Diff with reference, fast": "Live2Diff with its own (both fast, on the same network)"}  # fmt: skip
    told = ", ".join(f"{rates[name]:.0f} {words}" for name, words in names.items() if name in rates)
    return f"Frames/s on {run.config['threads']} threads of a CPU ({machine['cpu']}), no GPU: {told}."


def readme(preset: Preset) -> str:
    """The README's results: what is bad about them, and the paper's row, ours, copying and the ceiling."""
    table = tables.table1(preset)
    shown = table[table["method"].isin(["RAIN", evaluate.METHODS["copy"], evaluate.METHODS["autoencoder"]])]
    columns = ["method", "source", "PSNR ↑", "SSIM ↑", "PSNR fg ↑", "sharpness error ↓", "motion error ↓"]
    rain, ceiling = (evaluate.measure(preset, method) for method in ("rain", "autoencoder"))
    below = ceiling.value("psnr")["value"] - rain.value("psnr")["value"]
    moving, error, flicker = (rain.value(name)["value"] for name in ("true_motion", "tde", "flicker"))
    bad = (
        f"At preset `{preset.name}` RAIN's pictures are {below:.1f} dB below what its autoencoder alone reaches. Its "
        f"motion error is {error / moving:.2f} times that of a picture that stands still ({moving:.2f}, the true "
        f"motion), and driven by a frozen pose it flickers by {flicker:.2f} grey levels a frame."
    )
    if rival := runs.existing(evaluate.measure, preset, "stream_diffusion_look"):
        psnr, theirs, still = (rival.value(name)["value"] for name in ("psnr", "tde", "flicker"))
        bad += (
            f" StreamDiffusion with its reference, frame by frame with noise that never changes, has a motion error of "
            f"{theirs:.2f} and a flicker of {still:.2f} on the same network without motion modules, at {psnr:.2f} dB."
        )
    origin = f"Reported: UBC-Fashion, 768×512. Measured here: {_clips(preset)} The two kinds of rows do not compare."
    full = "The full tables with protocol, ablations and speed: [figures/RESULTS.md](figures/RESULTS.md)."
    words = (
        "Motion error: how much the change from frame to frame differs from the true one, in grey levels; fg: inside "
        "the character's outline; sharpness error: 0 is as sharp as the truth."
    )
    parts = [f"{bad} {origin}", _markdown(shown[columns]), tables.verdict(preset, "rain", "undistilled")]
    return "\n\n".join([*parts, f"{words} {pace(preset)} {full}"])


def card(preset: Preset) -> str:
    """The model card's numbers of a preset: what each stage trained, for how long, and what came out."""
    rows = []
    for stage in stages.STAGES:
        if not (run := stages.recorded(preset, stage)):
            continue
        file = weights.SHIPPED / f"{run.id}.safetensors"
        curve = [row for row in run.metrics() if row["metric"] == "loss"]
        provenance = json.loads((run.path / "provenance.json").read_text("utf-8"))
        begun = f" from step {int(warm['step']):,}" if (warm := provenance.get("warm")) else ""
        rows.append({
            "stage": f"`{stage}`", "steps": f"{curve[-1]['step']:,}",
            "samples a step": str(run.config["train"]["batch"]),
            "minutes": f"{curve[-1]['seconds'] / 60:.0f}{begun}", "processor": provenance["hardware"]["cpu"],
            "MB": f"{file.stat().st_size / 1e6:.1f}" if file.is_file() else tables.NOTHING, "run": run.id,
        })  # fmt: skip
    methods = ("copy", "autoencoder", "rain" if stages.recorded(preset, "distill3d") else "undistilled")
    return "\n\n".join([
        f"## Preset `{preset.name}`: training", _rows(rows),
        f"## Preset `{preset.name}`: measured", _clips(preset), _measured(evaluate.there(preset, methods)),
    ])  # fmt: skip


def _clips(preset: Preset) -> str:
    data = preset.data
    clips = f"{data.test_clips} held-out clips, a character each, × {data.test_frames} frames"
    return f"{clips}; RAIN streams them in four steps; mean [95 % interval]."


def _measured(methods: Mapping[str, runs.Run]) -> str:
    """Methods and all that is recorded of them, as a table."""
    results = []
    for method, run in methods.items():
        found = {row["metric"]: row for row in run.metrics()}
        known = {name: column for name, column in tables.COLUMNS.items() if name in found}
        shown = {column: tables.cell(found[name], digits) for name, (column, digits) in known.items()}
        results.append({"method": evaluate.METHODS[method]} | shown)
    names = list(dict.fromkeys(name for row in results for name in row))
    return _rows([{name: row.get(name, tables.NOTHING) for name in names} for row in results])


def _rows(rows: list[dict[str, Any]]) -> str:
    from pandas import DataFrame

    return _markdown(DataFrame(rows, dtype=object))


def _markdown(table: Table) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
