"""rainlab.bench: structure and arithmetic of the results, never speed."""

import json

import pytest
import torch

from rainlab import bench


@pytest.fixture
def calls(monkeypatch):
    """Two contenders on a clock that only they advance, by 0.4 and 0.1 s, more in later rounds; the order of calls."""
    calls, now = [], [0.0]

    def contender(name, seconds, work):
        calls.append(name)
        now[0] += seconds * len(calls)
        return work

    def make(quick):
        return {"slow": lambda: contender("slow", 0.4, 1), "fast": lambda: contender("fast", 0.1, 2)}

    monkeypatch.setattr(bench, "BENCHMARKS", {"pair": bench.Benchmark(make, "frames/s", threads=None)})
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    return calls


def test_repetitions_are_interleaved_after_one_warm_up(calls):
    bench.measure("pair", repetitions=3)
    assert calls == ["slow", "fast"] * 4


def test_rates_are_medians_and_speed_is_the_median_of_each_rounds_ratio(calls):
    slow, fast = bench.measure("pair", repetitions=3)  # slow: 3, 5, 7 times 0.4 s; fast: 4, 6, 8 times 0.1 s
    assert slow.median == pytest.approx(1 / (5 * 0.4)) and fast.median == pytest.approx(2 / (6 * 0.1))
    assert (slow.speed, slow.speed_low, slow.speed_high) == (1, 1, 1)
    assert fast.speed == pytest.approx((2 / 0.6) / (1 / 2.0))
    assert slow.low == pytest.approx((1 / 2.0 + 1 / 2.8) / 2)  # the lower quartile of three


def test_seconds_are_reported_as_they_are_and_speed_still_means_faster(calls, monkeypatch):
    make = bench.BENCHMARKS["pair"].make
    monkeypatch.setitem(bench.BENCHMARKS, "pair", bench.Benchmark(make, "s", threads=None))
    slow, fast = bench.measure("pair", repetitions=3)
    assert (slow.median, fast.median) == (pytest.approx(2.0), pytest.approx(0.6))
    assert fast.speed > 1


def test_threads_are_set_while_measuring_and_restored(monkeypatch):
    seen = []

    def make(quick):
        return {"only": lambda: seen.append(torch.get_num_threads()) or 1}

    monkeypatch.setattr(bench, "BENCHMARKS", {"threads": bench.Benchmark(make, "s", threads=1)})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench.measure("threads", repetitions=1)
        assert seen == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_command_line_prints_the_table_and_writes_json(tmp_path, capsys):
    rows = bench.main(["studio", "pose_pictures", "--quick", "--json", str(tmp_path / "bench.json")])
    assert {(row.benchmark, row.contender) for row in rows} == {
        (name, size) for name in ("studio", "pose_pictures") for size in ("64x48", "128x96")
    }
    assert all(0 < row.low <= row.median <= row.high and row.repetitions == 2 for row in rows)
    written = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert [row["median"] for row in written["rows"]] == [row.median for row in rows]
    assert written["machine"]["torch"] == torch.__version__
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_importing_runs_in_a_new_python():
    contenders = bench.imports(quick=True)
    assert list(contenders)[0] == "import torch"
    assert contenders["import rainlab"]() == 1


def test_unknown_benchmark_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.main(["stduio"])
    assert "got stduio, expected names of imports, studio, pose_pictures" in capsys.readouterr().err
