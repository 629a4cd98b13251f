"""The tick of fixed shapes gives the frames of the plain stream, also while it fills, drains and after a reset."""

import micro
import numpy as np
import pytest
import torch

from rainlab.method.stream import Stream
from rainlab.method.tick import CudaGraph, Tick, TickStream

MODEL = micro.model()


def films(stream, conditions):
    """Frames of a stream whose reference, ω and strength change on the way, flushed and begun anew."""
    stream.reference(micro.pictures(seed=9))
    out = stream.push(conditions[:11])
    stream.reference(micro.pictures(seed=3))
    stream.guidance, stream.temporal_strength = 3.0, 0.5
    out += stream.push(conditions[11:]) + stream.flush()
    stream.reset()
    return np.stack(out + stream.push(conditions[:8]) + stream.flush()).astype(int)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"steps_per_group": 2}, {"causal": True}], ids=str)
def test_the_frames_of_the_plain_stream(options):
    options = {"window": 8, "groups": 4, "guidance": 2.0} | options
    conditions = list(micro.pictures(21))
    plain, tick = (films(kind(MODEL, **options), conditions) for kind in (Stream, TickStream))
    assert plain.shape == tick.shape and np.abs(plain - tick).max() <= 1


def test_compiled_too():
    """Compiling takes a third of a minute; one window size and one way through it have to do."""
    conditions = list(micro.pictures(21))
    plain, compiled = films(Stream(MODEL), conditions), films(TickStream(MODEL, how="compiled"), conditions)
    assert np.abs(plain - compiled).max() <= 1


def test_several_streams_side_by_side():
    options = {"window": 8, "groups": 4, "guidance": 2.0, "batch": 2}
    conditions = [np.stack(pair) for pair in zip(micro.pictures(9), micro.pictures(9, seed=5), strict=True)]
    frames = []
    for kind in (Stream, TickStream):
        stream = kind(MODEL, **options)
        stream.reference(np.stack([micro.pictures(seed=9), micro.pictures(seed=3)]))
        frames.append(np.stack(stream.push(conditions) + stream.flush()).astype(int))
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_contents_are_those_of_the_plain_stream():
    streams = [kind(MODEL, 8, 4, guidance=2.0) for kind in (Stream, TickStream)]
    for stream in streams:
        stream.reference(micro.pictures(seed=9))
        assert not len(stream.contents[1])
    for condition in micro.pictures(14):
        for stream in streams:
            stream.push(condition)
        (latents, times), (ours, our_times) = (stream.contents for stream in streams)
        assert torch.equal(times, our_times) and torch.allclose(latents, ours, atol=1e-4)


def test_in_fp8_too():
    conditions = list(micro.pictures(21))
    streams = {fp8: TickStream(MODEL, 8, 4, guidance=2.0, fp8=fp8) for fp8 in (False, True)}
    exact, rounded = (films(stream, conditions) for stream in streams.values())
    expected = films(Stream(MODEL, 8, 4, guidance=2.0, fast=True, fp8=True), conditions)
    assert np.abs(rounded - expected).max() <= 1 < np.abs(exact - rounded).max()


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="how: got 'jit', expected one of"):
        TickStream(MODEL, how="jit")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="expected a CUDA device"):
            TickStream(MODEL, how="graph")


def test_more_context_tokens_than_one_are_refused():
    stream = Stream(MODEL, 8, 4)
    stream.reference(micro.pictures(seed=9))
    with pytest.raises(ValueError, match="got 2 tokens, expected one"):
        Tick(MODEL, stream.cfg).constants(stream._bank, stream._context.expand(-1, 2, -1), 2.0)


@pytest.mark.gpu
def test_a_cuda_graph_gives_the_same_frames():
    model, conditions = micro.model().cuda(), list(micro.pictures(21))
    options = {"window": 8, "groups": 4, "guidance": 2.0}
    frames = [films(stream, conditions) for stream in (TickStream(model, **options),
                                                       TickStream(model, how="graph", **options))]  # fmt: skip
    assert np.abs(frames[0] - frames[1]).max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["eager", "graph"])
def test_a_gpu_multiplies_fp8(how):
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no fp8")
    model, conditions = micro.model().cuda().bfloat16(), list(micro.pictures(21))
    options = {"window": 8, "groups": 4, "guidance": 2.0}
    exact, rounded = (films(TickStream(model, how=how, fp8=fp8, **options), conditions) for fp8 in (False, True))
    assert 0 < np.abs(exact - rounded).mean() < 8


@pytest.mark.gpu
def test_a_replayed_graph_reads_its_inputs_anew():
    double = CudaGraph(lambda x: 2 * x)
    assert [double(torch.full((3,), value, device="cuda"))[0].item() for value in (1.0, 2.0, 5.0)] == [2.0, 4.0, 10.0]
