"""rainlab.measure.bench: structure and arithmetic of the results, never speed."""

import json
from dataclasses import asdict

import micro
import pytest
import torch

from rainlab.measure import bench
from rainlab.method.fast import REWRITES
from rainlab.method.stream import Stream


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
    bench.timings("pair", repetitions=3)
    assert calls == ["slow", "fast"] * 4


def test_rates_are_medians_and_speed_is_the_median_of_each_rounds_ratio(calls):
    slow, fast = bench.timings("pair", repetitions=3)  # slow: 3, 5, 7 times 0.4 s; fast: 4, 6, 8 times 0.1 s
    assert slow.median == pytest.approx(1 / (5 * 0.4)) and fast.median == pytest.approx(2 / (6 * 0.1))
    assert (slow.speed, slow.speed_low, slow.speed_high) == (1, 1, 1)
    assert fast.speed == pytest.approx((2 / 0.6) / (1 / 2.0))
    assert slow.low == pytest.approx((1 / 2.0 + 1 / 2.8) / 2)  # the lower quartile of three


def test_seconds_are_reported_as_they_are_and_speed_still_means_faster(calls, monkeypatch):
    make = bench.BENCHMARKS["pair"].make
    monkeypatch.setitem(bench.BENCHMARKS, "pair", bench.Benchmark(make, "s", threads=None))
    slow, fast = bench.timings("pair", repetitions=3)
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
        bench.timings("threads", repetitions=1)
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
    assert "got stduio, expected names of imports, studio, pose_pictures, engine, fast, tick" in capsys.readouterr().err


CONFIG = micro.micro()  # K = 8, p = 4


def test_streams_are_timed_at_half_the_window_and_with_twice_the_calls():
    own, half, twice = bench.streams(CONFIG).values()
    assert own == asdict(CONFIG.stream)
    assert half == own | {"window": 4} and twice == own | {"steps_per_group": 2}
    assert list(bench.streams(CONFIG)) == ["stream, K = 8, N = 1", "stream, K = 4, N = 1", "stream, K = 8, N = 2"]


def test_engine_counts_frames_and_network_calls(monkeypatch):
    """For 8 frames: DDIM makes a call a step, guided with twice the frames; a stream a call of K for K/p frames."""
    seen, build = [], bench.RAIN.build
    monkeypatch.setattr(bench.RAIN, "build", lambda *args, **options: counted(build(*args, **options), seen))
    contenders = bench.engine(quick=True, preset=CONFIG)
    calls = {}
    for name, run in contenders.items():
        seen.clear()
        assert run() == 8
        calls[name] = list(seen)
    assert calls == {
        "DDIM, 2 steps": [8] * 2,
        "DDIM, 2 steps, guided": [16] * 2,
        "stream, K = 8, N = 1": [8] * 4,
        "stream, K = 4, N = 1": [4] * 8,
        "stream, K = 8, N = 2": [8] * 8,
    }


def counted(model, seen):
    model.denoising_unet.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[0] * args[0].shape[1]))
    return model


def test_fast_is_compared_with_plain_and_each_rewrite_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "make_preset", {"micro": CONFIG}.get)
    rows = bench.main(["fast", "--preset", "micro", "--quick", "--json", str(tmp_path / "speed.json")])
    assert [row.contender for row in rows] == ["plain", *(f"{name} alone" for name in REWRITES), "fast"]
    ratio = json.loads((tmp_path / "speed.json").read_text())["fast_over_plain"]
    assert ratio == {"median": rows[-1].speed, "low": rows[-1].speed_low, "high": rows[-1].speed_high}


def test_a_tick_and_its_parts_run():
    rows = bench.timings("tick", quick=True, repetitions=1, preset=CONFIG)
    parts = ["whole tick", "pose guider", "network call", "decoder", "a new reference"]
    assert [row.contender for row in rows] == parts
    assert {row.unit for row in rows} == {"s"} and all(row.median > 0 for row in rows)


def test_speed_is_recorded_read_again_and_replaced(monkeypatch):
    medians = iter([20.0, 0.1, 30.0, 0.2])  # engine and tick, twice

    def timings(name, repetitions, preset):
        median = next(medians)
        return [bench.Row(name, "stream", "", median, median - 0.05, median + 0.05, 4.0, 3.0, 5.0, repetitions)]

    monkeypatch.setattr(bench, "timings", timings)
    with pytest.raises(FileNotFoundError, match="record=yes"):
        bench.speed(CONFIG)
    run = bench.speed(CONFIG, record=True)
    assert run.id == bench.speed(CONFIG).id
    rows = {row["metric"]: row for row in run.metrics() if row["contender"] == "stream"}
    assert [rows["frames_per_second"][key] for key in ("value", "ci_low", "ci_high", "n")] == [20.0, 19.95, 20.05, 5]
    assert (rows["speed"]["value"], rows["seconds"]["value"]) == (4.0, 0.1)
    latencies = {row["contender"]: row["value"] for row in run.metrics() if row["metric"] == "latency_frames"}
    assert list(latencies.values()) == [8, 4, 8] and set(latencies) == set(bench.streams(CONFIG))
    assert bench.speed(CONFIG, record=True).value("frames_per_second")["value"] == 30.0


def test_a_timed_stream_is_past_its_soft_start():
    model = micro.model(CONFIG)
    clip = bench.StudioClips("test", 1, 8, CONFIG.data.size)[0]
    stream = bench._running(model, clip, bench.streams(CONFIG)["stream, K = 8, N = 1"])
    assert isinstance(stream, Stream) and len(stream.push(list(clip.condition))) == 8
