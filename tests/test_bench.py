"""rainlab.measure.bench: structure and arithmetic of the results, never speed."""

import json
from dataclasses import asdict

import micro
import pytest
import torch

from rainlab.config import make_preset
from rainlab.measure import bench, ways
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
    monkeypatch.setattr(ways.time, "perf_counter", lambda: now[0])
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
    assert "got stduio, expected names of imports, studio, pose_pictures, engine, fast, siz" in capsys.readouterr().err


CONFIG = micro.micro()  # K = 8, p = 4


def test_streams_are_timed_at_half_the_window_and_with_twice_the_calls():
    own, half, twice = ways.streams(CONFIG).values()
    assert own == asdict(CONFIG.stream)
    assert half == own | {"window": 4} and twice == own | {"steps_per_group": 2}
    assert list(ways.streams(CONFIG)) == ["stream, K = 8, N = 1", "stream, K = 4, N = 1", "stream, K = 8, N = 2"]


def test_engine_counts_frames_and_network_calls(monkeypatch):
    """For 8 frames: DDIM makes a call a step, guided with twice the frames; a stream a call of K for K/p frames."""
    seen, build = [], ways.RAIN.build
    monkeypatch.setattr(ways.RAIN, "build", lambda *args, **options: counted(build(*args, **options), seen))
    monkeypatch.setattr(ways, "native_bf16", lambda device: True)
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
        "stream, K = 8, N = 1, fast": [],  # its network is another module
        "stream, K = 8, N = 1, bf16": [8] * 4,
        "StreamDiffusion": [4] * 8,  # p frames for each
        "StreamDiffusion, fast": [],
        "StreamDiffusion with reference": [4] * 8,
        "StreamDiffusion with reference, fast": [],
        "Live2Diff": [4] * 8,
        "Live2Diff, fast": [],
        "Live2Diff with reference": [4] * 8,
        "Live2Diff with reference, fast": [],
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
    medians = iter([20.0, 1.5, 9.0, 0.1, 30.0, 1.5, 9.0, 0.2])  # engine, fast, sizes and tick, twice

    def measured(name, *_, **__):
        median = next(medians)
        return [bench.Row(name, "stream", "", median, median - 0.05, median + 0.05, 4.0, 3.0, 5.0, 5)]

    for name in ("timings", "rounds"):
        monkeypatch.setattr(bench, name, measured)
    monkeypatch.setattr(bench, "ways", lambda preset, clip: ways.ways(preset, clip, steps=2))
    monkeypatch.setattr(bench, "steady", lambda preset: [40.0, 41.0])
    late = {"compiled": ways.Way(len, "stream, K = 8, N = 1", 8, 40.0)}
    monkeypatch.setattr(bench, "late_ways", lambda preset, clip: late)
    with pytest.raises(FileNotFoundError, match="record=yes"):
        bench.speed(CONFIG)
    run = bench.speed(CONFIG, record=True)
    assert run.id == bench.speed(CONFIG).id
    rows = {row["metric"]: row for row in run.metrics() if row["contender"] == "stream"}
    assert [rows["frames_per_second"][key] for key in ("value", "ci_low", "ci_high", "n")] == [20.0, 19.95, 20.05, 5]
    assert (rows["speed"]["value"], rows["seconds"]["value"]) == (4.0, 0.1)
    latencies = {row["contender"]: row["value"] for row in run.metrics() if row["metric"] == "latency_frames"}
    some = ("stream, K = 4, N = 1", "StreamDiffusion", "Live2Diff", "compiled")
    assert [latencies[name] for name in some] == [4, 4, 4, 8]
    assert run.value("start_seconds")["value"] == 40 and run.value("ceiling")["value"] > 1e8
    work = {row["contender"]: row["value"] for row in run.metrics() if row["metric"] == "flops_per_frame"}
    assert work["compiled"] == work["stream, K = 8, N = 1, fast"] == work["stream, K = 8, N = 1"]
    assert work["StreamDiffusion"] < work["Live2Diff"] < work["stream, K = 8, N = 1"] < work["stream, K = 8, N = 2"]
    assert bench.speed(CONFIG, record=True).value("frames_per_second")["value"] == 30.0


def test_sizes_and_steady_run():
    larger = micro.micro(data__height=64, data__width=48)
    rows = bench.timings("sizes", repetitions=1, preset=larger)
    assert [row.contender for row in rows] == ["64×48", "32×24", "128×96"]
    rates = bench.steady(CONFIG, frames=32, stretch=16)
    assert len(rates) == 2 and min(rates) > 0


def test_operations_are_counted_in_products_convolutions_and_attention():
    x, weight = torch.randn(5, 7), torch.randn(3, 7)
    assert ways.flops(lambda: torch.nn.functional.linear(x, weight)) == 2 * 5 * 7 * 3
    pictures, kernels = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    assert ways.flops(lambda: torch.nn.functional.conv2d(pictures, kernels, padding=1)) == 2 * 2 * 64 * 4 * 3 * 9
    q, k = torch.randn(2, 4, 16, 8), torch.randn(2, 4, 24, 8)
    assert ways.flops(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, k)) == 4 * 2 * 4 * 16 * 24 * 8


def test_the_paper_s_network_costs_what_was_counted_by_hand():
    """TFLOP a frame: 2D network 0.80, motion modules 0.31, attention to the reference 0.12 (within 5 %)."""
    paper = make_preset("paper", {"data.height": 512})
    work = {part: value / 1e12 for part, value in ways.work_of_a_pass(paper).items()}
    by_hand = {"2D network": 0.80, "motion modules": 0.31, "attention to the reference": 0.12}
    assert all(work[part] == pytest.approx(value, rel=0.05) for part, value in by_hand.items())
    assert 4 * sum(work[part] for part in by_hand) + work["guider"] + work["decoder"] == pytest.approx(5.0, rel=0.02)


@pytest.mark.slow
def test_late_ways_say_how_long_they_took_to_begin():
    clip = bench.StudioClips("test", 1, 8, CONFIG.data.size)[0]
    made = ways.late_ways(CONFIG, clip)
    assert [name.rpartition(", ")[2] for name in made] == ["compiled", "exported (onnxruntime)"]
    for way in made.values():
        assert len(way.call(list(clip.condition))) == 8 and way.start > 0.1 and way.latency_frames == 8


def test_a_timed_stream_is_past_its_soft_start():
    model = micro.model(CONFIG)
    clip = bench.StudioClips("test", 1, 8, CONFIG.data.size)[0]
    stream = bench._running(model, clip, ways.streams(CONFIG)["stream, K = 8, N = 1"])
    assert isinstance(stream, Stream) and len(stream.push(list(clip.condition))) == 8
