"""Exported ticks: onnxruntime shows the plain stream's frames, TensorRT builds an engine without a GPU."""

import contextlib
import io
import json
import sys

import micro
import numpy as np
import pytest
import torch
from test_tick import films, with_memory

pytest.importorskip("onnxscript", reason="needs rainlab[export]")

from rainlab.measure import engine  # noqa: E402
from rainlab.method import export  # noqa: E402
from rainlab.method.export import OnnxTick, TensorRTTick, build_engine, to_onnx  # noqa: E402
from rainlab.method.stream import Stream  # noqa: E402
from rainlab.method.tick import TickStream  # noqa: E402

MODEL = with_memory()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What the command line writes and says; an export takes a quarter of a minute, so there is one."""
    path, said = tmp_path_factory.mktemp("export") / "tick.onnx", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr("rainlab.load", lambda name: MODEL)
        export.main(["micro", "--onnx", str(path), "--time"])
    return path, said.getvalue()


@pytest.fixture
def onnx(exported):
    return exported[0]


def test_onnxruntime_shows_the_frames_of_the_plain_stream(onnx):
    conditions = list(micro.pictures(21))
    plain, exported = films(Stream(MODEL), conditions), films(TickStream(MODEL, run=OnnxTick(onnx, 1)), conditions)
    assert plain.shape == exported.shape and np.abs(plain - exported).max() <= 1


def test_its_state_is_the_eager_tick_s_to_rounding(onnx):
    tick, given = export.example(MODEL, MODEL.preset.stream, (32, 24))
    given = (*given[:1], *(torch.randn_like(part) for part in given[1:3]), *given[3:])
    with torch.no_grad():
        (_, ours), (_, theirs) = tick(*given), OnnxTick(onnx, 1)(*given)
    for a, b in ((ours.latents, theirs.latents), (ours.features, theirs.features)):
        assert (a - b).abs().max() < 1e-5 * max(1.0, float(a.abs().max()))


def test_nothing_is_allocated_from_the_third_call_on(onnx):
    run, (_, (*given, state, constants)) = OnnxTick(onnx, 1), export.example(MODEL, MODEL.preset.stream, (32, 24))
    places = []
    for _ in range(5):
        frames, state = run(*given, state, constants)
        places.append((frames.data_ptr(), state.latents.data_ptr(), state.memory[0].data_ptr()))
    assert len(set(places)) == 2 and places[0] == places[2] == places[4]


def test_a_tick_made_for_another_stream_is_refused(onnx):
    with pytest.raises(ValueError, match="run: got a tick made for .*'window': 8.*'window': 4"):
        TickStream(MODEL, window=4, run=OnnxTick(onnx, 1))
    with pytest.raises(ValueError, match="'batch': 1.*'batch': 2.*a stream for each"):
        TickStream(MODEL, batch=2, run=OnnxTick(onnx, 1))


def test_a_tick_of_another_model_is_refused(onnx):
    other = with_memory()
    other.autoencoder.decoder[-1].weight[0] += 1
    with pytest.raises(ValueError, match="run: got a tick made for {'weights': '.*expected {'weights': '.*export it"):
        TickStream(other, run=OnnxTick(onnx, 1))
    with pytest.raises(ValueError, match="'dtype': 'torch.float32'.*'dtype': 'torch.float16'"):
        TickStream(with_memory().half(), run=OnnxTick(onnx, 1))
    elsewhere = OnnxTick(onnx, 1)
    elsewhere.made_for["device"] = "cuda:0"  # as an engine's
    with pytest.raises(ValueError, match="'device': 'cuda:0'.*'device': 'cpu'"):
        TickStream(MODEL, run=elsewhere)
    TickStream(MODEL, guidance=7.0, run=OnnxTick(onnx, 1))  # ω is no part of it


def test_pictures_of_another_size_are_refused_at_once(onnx):
    stream = TickStream(MODEL, run=OnnxTick(onnx, 1))
    with pytest.raises(ValueError, match=r"reference: got size \(16, 16\), but the exported tick takes \(32, 24\)"):
        stream.reference(micro.pictures(size=(16, 16)))
    stream.reference(micro.pictures())
    stream.push(list(micro.pictures(3)))
    with pytest.raises(ValueError, match="reference: got size"):
        stream.reference(micro.pictures(size=(16, 16)))
    stream.reference(micro.pictures())
    assert len(stream.push(list(micro.pictures(9)))) > 0


def test_streams_may_share_it(onnx):
    """At different rates, and one of them starts anew."""
    run, ours, others = OnnxTick(onnx, 1), list(micro.pictures(26)), list(micro.pictures(40, seed=5))
    alone = films(TickStream(MODEL, run=run), ours)
    one, two = (TickStream(MODEL, run=run) for _ in range(2))
    two.reference(micro.pictures(seed=7))

    class Between:
        """Pushes to the other stream before and after each of its own."""

        def __call__(self, *arguments):
            two.push(others[:2])
            result = run(*arguments)
            two.push(others[:6])
            return result

    one._run = Between()
    assert np.array_equal(films(one, ours), alone)


def test_contents_are_not_written_over(onnx):
    stream = TickStream(MODEL, run=OnnxTick(onnx, 1))
    stream.reference(micro.pictures())
    stream.push(list(micro.pictures(10)))
    latents = stream.contents[0]
    before = latents.clone()
    stream.push(list(micro.pictures(8)))
    assert torch.equal(latents, before)


def test_other_files_are_refused(tmp_path):
    for kind in (OnnxTick, TensorRTTick):
        if kind is TensorRTTick:
            pytest.importorskip("tensorrt_rtx")
        with pytest.raises(FileNotFoundError, match="rainlab.method.export"):
            kind(tmp_path / "none")
    (tmp_path / "tick.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ValueError, match="tick.onnx: "):
        OnnxTick(tmp_path / "tick.onnx")


def test_an_engine_is_built_for_an_rtx_4090_without_one():
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    small = micro.micro(model__guider_widths=(8, 8, 8, 16))  # TAESDV's latents are an eighth
    run = engine.build(small)
    assert run.finished and run.config["capability"] == "SM89" and run.value("engine_bytes")["value"] > 10_000
    assert all(run.value(metric)["value"] > 0 for metric in ("export_seconds", "build_seconds", "peak_bytes"))
    assert engine.build(small).metrics() == run.metrics()  # built once


@pytest.mark.parametrize(
    ("capability", "package", "extra"), [(None, "tensorrt", "tensorrt"), ("SM89", "tensorrt_rtx", "rtx")]
)
def test_a_missing_tensorrt_names_its_extra(capability, package, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=rf"no {package}: pip install 'rainlab\[{extra}\]'"):
        build_engine(tmp_path / "none.onnx", tmp_path / "tick.engine", capability)


def test_what_no_engine_is_for_is_refused(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    with pytest.raises(ValueError, match="capability: got 'SM1', expected one of"):
        build_engine(tmp_path / "none.onnx", tmp_path / "tick.engine", "SM1")
    (tmp_path / "tick.engine").write_bytes(b"no engine")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="needs a CUDA device"):
            TensorRTTick(tmp_path / "tick.engine")


@pytest.mark.gpu
def test_an_engine_shows_the_frames_of_the_plain_stream(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    model, conditions = micro.model().cuda().half(), list(micro.pictures(21))
    onnx = to_onnx(model, tmp_path / "half.onnx", (32, 24))
    build_engine(onnx, tmp_path / "half.engine", "CURRENT")
    streams = Stream(model), TickStream(model, run=TensorRTTick(tmp_path / "half.engine"))
    plain, engine = (films(stream, conditions) for stream in streams)
    assert np.abs(plain - engine).mean() < 2
    for other in (micro.model(seed=1).cuda().half(), micro.model().cuda(), micro.model().half()):
        with pytest.raises(ValueError, match="run: got a tick made for"):
            TickStream(other, run=TensorRTTick(tmp_path / "half.engine"))


def test_the_command_line_writes_and_times(exported, capsys):
    path, said = exported
    assert f"opset {export.OPSET}" in said and said.count("frames/s") == 3
    assert json.loads(export._note(path))["size"] == [32, 24]
    with pytest.raises(SystemExit):
        export.main(["micro", "--onnx", str(path), "--time", "--half"])
    assert "fp16 is slower" in capsys.readouterr().err
