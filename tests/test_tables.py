"""The three tables, on runs with made-up numbers: which number stands where, and that rows say where they are from."""

import shutil
from types import SimpleNamespace

import micro
import pytest

from rainlab import runs
from rainlab.config import identity, override
from rainlab.measure import ablations, bench, evaluate, latency, pages, reported, systems, tables, zero_shot
from rainlab.training import stages

CONFIG = micro.micro(stream__window=16)
NUMBERS = {"psnr": 21.0, "ssim": 0.75, "psnr_fg": 18.0, "ssim_fg": 0.6, "tde": 3.0, "flicker": 2.0}


def record(config, method, shift=0.0):
    described, inputs = evaluate.describe(config, method)
    run = runs.open_run("evaluate", described, evaluate.VERSION, inputs)
    if not run.finished:
        for metric, value in NUMBERS.items():
            run.record(metric, value + shift, value + shift - 0.5, value + shift + 0.5, 32, "p", method=method)
        run.finish()
    return run.id


@pytest.fixture(scope="module", autouse=True)
def recorded():
    ids = {method: record(CONFIG, method, i) for i, method in enumerate(evaluate.METHODS)}
    for i, method in enumerate(evaluate.OTHERS):
        record(CONFIG, method, 20 + i)
    for i, change in enumerate(list(evaluate.ABLATIONS.values())[1:]):
        record(override(CONFIG, change), "rain", 10 + i)
    pairs = {"preset": CONFIG.name, "pairs": [list(pair) for pair in evaluate.PAIRS]}
    run = runs.open_run("compare", pairs, evaluate.VERSION, ids)
    for i, (a, b) in enumerate(evaluate.PAIRS):
        run.record("psnr_fg", 2.0 + i, 1.0 + i, 3.0 + i, 32, "p", a=a, b=b)
    run.finish()
    parts = {"model": identity(CONFIG.model), "autoencoder": CONFIG.autoencoder}
    about = {"preset": CONFIG.name, "size": CONFIG.data.size} | parts
    about |= {"threads": 1}
    run = runs.open_run("speed", about, bench.VERSION)
    for contender, speed in {"DDIM, 20 steps": 1.0, "stream": 5.0}.items():
        run.record("frames_per_second", 8 * speed, 7 * speed, 9 * speed, 5, bench.PROTOCOL, contender=contender)
        run.record("speed", speed, speed, speed, 5, bench.PROTOCOL, contender=contender)
        run.record("flops_per_frame", 2e9, contender=contender)
    run.record("ceiling", 4e11, contender="matrix product")
    run.record("latency_frames", 16, contender="stream")
    run.record("seconds", 0.1, 0.1, 0.1, 5, bench.PROTOCOL, contender="decoder")
    run.record("steady", 9.0, contender="fast", stretch=0)
    run.finish()
    run = runs.open_run("latency", {**about, "rate": 12.0, "seconds": 40.0}, latency.VERSION)
    for setting, late in {"K = 16": 1.5, "K = 8": 0.75}.items():
        for i, quantile in enumerate(latency.QUANTILES):
            run.record("latency", late + i / 100, n=90, setting=setting, quantile=quantile)
            run.record("stage", 9.0, n=90, setting=setting, quantile=quantile, part="network")
        run.record("peak_bytes", 250e6, n=90, setting=setting)
    run.finish()


@pytest.fixture
def several():
    config, inputs = ablations.describe(CONFIG)
    run = runs.open_run("ablations", config, ablations.VERSION, inputs)
    if not run.finished:
        for i, (label, method) in enumerate(dict.fromkeys((a, b) for a, _, b in ablations._rows((0,)))):
            about = {"variant": label, "method": method}
            run.record("psnr", 20.0 + i, 19.0 + i, 21.0 + i, 2, "p", seed="all", **about)
            run.record("psnr", 99.0, n=2, protocol="p", seed=0, **about)
            if label != ablations.BASE:
                run.record("psnr_change", 0.5 + i, 0.0 + i, 1.0 + i, 2, "p", **about)
        run.finish()
    yield run
    shutil.rmtree(run.path)


def split(table):
    """(reported rows, our rows) by method."""
    paper = table["source"].str.startswith("reported")
    assert set(table["source"][~paper]) == {"measured here"}
    return table[paper].set_index("method"), table[~paper].set_index("method")


def test_table1_holds_every_row_of_the_paper_and_every_method():
    paper, ours = split(tables.table1(CONFIG))
    assert set(paper["source"]) == {"reported, Table 1"}
    assert paper.loc["RAIN", ["PSNR ↑", "SSIM ↑", "LPIPS ↓", "FVD ↓"]].tolist() == ["23.99", "0.921", "0.063", "85.2"]
    assert paper["PSNR ↑"].tolist() == ["–", "–", "24.07", "–", "34.75*", "38.49*", "23.99"]
    assert set(paper["PSNR fg ↑"]) == set(paper["n"]) == {"–"}
    assert list(ours.index) == list(evaluate.METHODS.values())
    assert ours.loc["RAIN, wrong reference", "PSNR ↑"] == "23.00 [22.50, 23.50]"
    assert ours.loc["copying the reference", "SSIM fg ↑"] == "0.600 [0.100, 1.100]"
    assert set(ours["n"]) == {"32"} and set(ours["LPIPS ↓"]) == set(ours["FVD ↓"]) == {"–"}


def test_overflowed_values_are_those_above_30():
    above = {method: numbers[0] for method, numbers in reported.TABLE1.items() if (numbers[0] or 0) > 30}
    assert above.items() < reported.OVERFLOWED.items() and reported.OVERFLOWED["RAIN"] != reported.TABLE1["RAIN"][0]


def test_table2_says_on_what_it_was_measured():
    paper, ours = split(tables.table2(CONFIG))
    own = paper[paper["source"] == "reported, Table 2"]
    assert own["frames/s ↑"].to_dict() == {"StreamDiffusion": "37.13", "Live2Diff": "16.43", "RAIN": "18.11"}
    assert own["size"].to_dict() == {"StreamDiffusion": "–", "Live2Diff": "–", "RAIN": "512×512"}
    assert set(own["on"]) == {"RTX 4090"} and set(ours["size"]) == {"32×24"}
    assert len(paper) == len(reported.TABLE2) == 6 and (paper["GFLOP a frame ↓"] == "–").all()
    assert ours["on"].str.endswith(", threads: 1").all()
    assert list(ours.index) == ["DDIM, 20 steps", "stream"]  # parts of a turn have no frames a second
    columns = ["frames/s ↑", "× DDIM ↑", "latency, frames ↓", "GFLOP a frame ↓", "% of the ceiling ↑", "n"]
    assert ours.loc["stream", columns].tolist() == [
        "40.0 [35.0, 45.0]", "5.00 [5.00, 5.00]", "16", "2.00", "20", "5",
    ]  # fmt: skip
    assert ours.loc["DDIM, 20 steps", "latency, frames ↓"] == "–"


def test_table3_pairs_the_papers_rows_with_ours_by_name():
    paper, ours = split(tables.table3(CONFIG))
    assert [*paper.index, "K = 16, no motion modules"] == list(ours.index)
    assert list(paper.index) == list(evaluate.ABLATIONS)
    assert paper["FVD ↓"].tolist() == ["85.2", "145.8", "284.5"]
    assert [cell.split()[0] for cell in ours["flicker ↓"]] == ["7.00", "12.00", "13.00", "6.00"]
    assert set(ours["border ratio ↓"]) == {"–"}  # not recorded here


def test_the_grid_tells_means_over_trainings_and_how_each_differs(several, tmp_path):
    import pandas as pd

    _, table = split(tables.grid(CONFIG))
    assert list(table.index[:2]) == [ablations.BASE, f"{ablations.BASE}, before distillation"]
    assert set(ablations.CHANGES) < set(table.index) and len(table) == len(ablations.CHANGES) + len(ablations.BEFORE)
    assert table.loc["K = 8", ["PSNR ↑", "n"]].tolist() == ["22.00 [21.00, 23.00]", "1 × 2"]
    _, change = split(tables.grid(CONFIG, change=True))
    assert change.loc["K = 8", "PSNR ↑"] == "2.50 [2.00, 3.00]" and ablations.BASE not in change.index
    pages.save_all(tmp_path, CONFIG, CONFIG)
    rows = pd.read_csv(tmp_path / "table3.csv").set_index(["method", "source", "metric"])
    row = rows.loc[("K = 8", "measured here, all variants", "psnr")]
    assert row[["value", "run"]].tolist() == [22.0, several.id]
    assert "| K = 8 | measured here | 22.00 [21.00, 23.00]" in (tmp_path / "RESULTS.md").read_text("utf-8")


def test_slow_ways_stand_in_table_1_where_they_are_recorded():
    assert len(split(tables.table1(CONFIG))[1]) == len(evaluate.METHODS)
    runs_made = [record(CONFIG, method, 30 + i) for i, method in enumerate(evaluate.SLOW)]
    _, ours = split(tables.table1(CONFIG))
    assert list(ours.index) == [*evaluate.METHODS.values(), *evaluate.SLOW.values()]
    assert ours.loc[evaluate.SLOW["animate_anyone"], "PSNR ↑"] == "52.00 [51.50, 52.50]"
    for id in runs_made:
        shutil.rmtree(runs.get(id).path)


@pytest.fixture
def pose_driven(monkeypatch):
    """Runs of zero_shot and systems, in memory."""
    runs_of = {}
    for i, method in enumerate(("PoseAnimate", "copying")):
        runs_of[method] = runs.open_run("zero_shot", {"method": method, "for": "tables"}, 1)
        runs_of[method].record("mask_iou" if i == 0 else "psnr", 0.5 + i, 0.25 + i, 0.75 + i, 8, "p", method=method)
    timed = runs.open_run("systems", {"for": "tables"}, 1)
    timed.record("peak_bytes", 3e8, contender=systems.NOTHING)
    for i, label in enumerate(systems.LABELS, 1):
        timed.record("frames_per_second", i, i - 0.5, i + 0.5, 5, bench.PROTOCOL, contender=label)
        timed.record("speed", i / 4, i / 4, i / 4, 5, bench.PROTOCOL, contender=label)
        timed.record("latency_frames", 16, contender=label)
        timed.record("peak_bytes", 4e8, contender=label)
    timed.record("flops_per_frame", 2e9, contender="AnimateAnyone")
    monkeypatch.setattr(zero_shot, "there", lambda preset: runs_of)
    monkeypatch.setattr(systems, "compare", lambda preset: timed)


def test_pose_driven_systems_stand_side_by_side(pose_driven):
    _, ours = split(tables.without_modules(CONFIG))
    assert ours.loc["PoseAnimate", "mask IoU ↑"] == "0.50 [0.25, 0.75]" and ours.loc["copying", "mask IoU ↑"] == "–"
    _, ours = split(tables.three_systems(CONFIG))
    assert ours.loc["AnimateAnyone", ["× RAIN ↑", "GFLOP a frame ↓", "peak memory, MB ↓"]].tolist() == [
        "0.750 [0.750, 0.750]", "2.00", "400",
    ]  # fmt: skip
    assert ours.loc[systems.NOTHING, ["frames/s ↑", "× RAIN ↑", "n"]].tolist() == ["–", "–", "–"]
    page = pages.results(CONFIG, CONFIG)
    assert page.index("## PoseAnimate without") < page.index("## Three systems") < page.index("| RAIN, fast | measured")


def test_faster_ways_stand_beside_rain():
    _, ours = split(tables.faster(CONFIG))
    assert list(ours.index) == [evaluate.METHODS["copy"], "RAIN", *evaluate.OTHERS.values()]
    assert ours.loc["Live2Diff", "flicker ↓"] == "26.00 [25.50, 26.50]"


def test_delays_are_quantiles_in_milliseconds():
    table = tables.delays(CONFIG).set_index("setting")
    assert table.loc["K = 8", ["latency, ms", "memory, MB", "n"]].tolist() == ["750 / 760 / 770", "250", "90"]
    assert list(table.index) == ["K = 16", "K = 8"] and set(table["queue, ms"]) == {""}  # not recorded here


def test_numbers_are_written_one_a_row_with_their_run(tmp_path):
    import pandas as pd

    pages.save_all(tmp_path, CONFIG, CONFIG)
    read = {name: pd.read_csv(tmp_path / f"{name}.csv") for name in ("table1", "table2", "table3")}
    one = read["table1"].set_index(["method", "source", "metric"])
    assert one.loc[("RAIN", "reported, Table 1", "PSNR"), "value"] == 23.99
    row = one.loc[("RAIN", "measured here", "psnr")]
    assert row[["value", "ci_low", "ci_high", "n", "protocol"]].tolist() == [26.0, 25.5, 26.5, 32, "p"]
    assert row["run"] == evaluate.measure(CONFIG, "rain").id
    two = read["table2"]
    assert two[two["method"] == "stream"]["metric"].tolist() == [
        "frames_per_second", "speed", "flops_per_frame", "latency_frames",
    ]  # fmt: skip
    assert set(read["table3"]["method"]) == {*evaluate.ABLATIONS, "K = 16, no motion modules"}
    for name, table in (("table1", tables.table1(CONFIG)), ("table3", tables.table3(CONFIG))):
        text = (tmp_path / f"{name}.tex").read_text("utf-8")
        assert text.startswith(r"\begin{tabular}") and text.count(r"\\") == len(table) + 1
    assert (tmp_path / "RESULTS.md").read_text("utf-8") == pages.results(CONFIG, CONFIG) + "\n"


def test_every_row_says_its_run_its_weights_and_the_command_for_it(several):
    rows = {row["row"]: row for row in reversed(pages.origins(CONFIG, CONFIG))}
    assert {*evaluate.METHODS.values(), *evaluate.OTHERS.values(), "K = 8", "all variants", "speed"} < rows.keys()
    own = rows["RAIN, wrong reference"]
    assert own["run"].startswith(f"[{evaluate.measure(CONFIG, 'wrong').id}](runs/") and own["seeds"] == "0"
    assert own["weights"] == stages.run_id(CONFIG, "distill3d") and len(own["commit"]) in (1, 7)
    assert own["command"] == f"`python -m doit preset={CONFIG.name} record=measured job:table1`"
    assert rows["all variants"]["seeds"] == str(list(ablations.SEEDS))
    assert f"| RAIN in bf16 | {CONFIG.name} | [evaluate-" in pages.results(CONFIG, CONFIG)


def test_differences_are_named_and_hold_what_was_compared():
    table = tables.differences(CONFIG).set_index("method")
    assert list(table.index) == [f"RAIN − {evaluate.METHODS[b]}" for _, b in evaluate.PAIRS]
    expected = [f"{i}.00 [{i - 1}.00, {i + 1}.00]" for i in range(2, 2 + len(evaluate.PAIRS))]
    assert table["PSNR fg ↑"].tolist() == expected


def test_a_verdict_knows_which_way_a_measure_points_and_what_is_undecided(monkeypatch):
    differences = {"tde": (-1.0, -2.0, -0.5), "psnr_fg": (-1.0, -2.0, -0.5), "ssim": (0.1, -0.1, 0.3)}
    rows = [
        {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "a": "rain", "b": "copy"}
        for metric, (value, low, high) in differences.items()
    ]
    rows.append(rows[0] | {"b": "wrong"})
    monkeypatch.setattr(evaluate, "compare", lambda preset: SimpleNamespace(metrics=lambda: rows))
    said = "better in motion error (-1.00); worse in PSNR fg (-1.00); undecided in SSIM (+0.100)."
    expected = f"On the same clips, compared with copying the reference, RAIN is {said}"
    assert tables.verdict(CONFIG, "rain", "copy") == expected


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"value": 1.234, "ci_low": -0.004, "ci_high": 2.0}, "1.23 [0.00, 2.00]"),
        ({"value": 16.0, "ci_low": None, "ci_high": None}, "16.00"),
    ],
)
def test_cells(row, text):
    assert tables.cell(row, 2) == text


def test_shown_tables_are_the_same_every_time_and_mark_reported_rows():
    table = tables.table3(CONFIG)
    html = tables.show(table, "table3").data
    assert html == tables.show(tables.table3(CONFIG), "table3").data
    grey = html[html.index("<style") : html.index("</style>")]
    assert "#T_table3_row2_col0" in grey and "#T_table3_row3_col0" not in grey and "285" not in html


def test_print_all_prints_every_row_with_its_note(capsys):
    pages.print_all(CONFIG, CONFIG)
    out = capsys.readouterr().out
    for make in (tables.table1, tables.table2, tables.table3):
        for row in make(CONFIG).itertuples():
            assert any(line.startswith(row.method) and row.source in line for line in out.splitlines())
    assert [out.count(f"Table {i}, ") for i in (1, 2, 3)] == [1, 1, 1] and out.count("do not compare") == 3


def test_results_hold_every_row_of_every_table():
    lines = pages.results(CONFIG, CONFIG).splitlines()
    for make in (tables.table1, tables.table2, tables.table3, tables.differences):
        for row in make(CONFIG).to_numpy().tolist():
            assert lines.count(f"| {' | '.join(row)} |") == 1
    more = pages.results(CONFIG, CONFIG, [CONFIG]).splitlines()
    begin = more.index(f"## Preset `{CONFIG.name}`")
    psnr = tables.cell(evaluate.measure(CONFIG, "rain").value("psnr"), 2)
    assert f"{CONFIG.data.test_clips} held-out" in more[begin + 2] and begin == lines.index("## Where a number is from")
    assert any(line.startswith(f"| RAIN | {psnr} |") for line in more[begin:])
    assert sum("record=yes`" in line for line in more) > sum("record=yes`" in line for line in lines)


def test_nothing_recorded_names_the_command():
    other = micro.micro(data__test_clips=7)
    for make in (tables.table1, tables.table3, tables.differences):
        with pytest.raises(FileNotFoundError, match="record=yes"):
            make(other)
