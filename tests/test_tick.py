"""The tick of fixed shapes gives the frames of the plain stream, also while it fills, drains and after a reset."""

import micro
import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from rainlab.method.stream import Stream
from rainlab.method.tick import Compiled, CudaGraph, Tick, TickStream, fingerprint
from rainlab.method.vae import TAESDV

MODEL = micro.model()


class Replayed(CudaGraph):
    """A CUDA graph's logic on a processor: a replay computes anew from the same places, torch does not know of it."""

    def _capture(self, arguments, device):
        results = self._function(*arguments)

        def replay():
            for place, value in zip(*map(pytree.tree_leaves, (results, self._function(*arguments))), strict=True):
                place.data.copy_(value)

        return replay, results


def with_memory():
    """A model whose decoder is recurrent."""
    model = micro.model(micro.micro(model__guider_widths=(8, 8, 8, 16)))  # TAESDV's latents are an eighth
    torch.manual_seed(1)
    model.autoencoder = TAESDV(width=8).eval().requires_grad_(False)
    for weight in model.autoencoder.decoder.parameters():
        weight.mul_(1.8 if weight.ndim == 4 else 1)  # torch's first weights hardly look at the past
    model.autoencoder.decoder[-1].bias.fill_(0.5)  # grey
    return model


def films(stream, conditions):
    """Frames of a stream whose reference, ω and strength change on the way, flushed and begun anew."""
    stream.reference(micro.pictures(seed=9))
    out = stream.push(conditions[:11])
    stream.reference(micro.pictures(seed=3))
    stream.guidance, stream.temporal_strength = 3.0, 0.5
    out += stream.push(conditions[11:]) + stream.flush()
    stream.reset()
    return np.stack(out + stream.push(conditions[:8]) + stream.flush()).astype(int)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"steps_per_group": 2}, {"causal": True},
                                     {"cross_level": False}, {"groups": 1}, {"groups": 8}], ids=str)  # fmt: skip
def test_the_frames_of_the_plain_stream(options):
    options = {"window": 8, "groups": 4, "guidance": 2.0} | options
    conditions = list(micro.pictures(21))
    plain, tick = (films(kind(MODEL, **options), conditions) for kind in (Stream, TickStream))
    assert plain.shape == tick.shape and np.abs(plain - tick).max() <= 1


def test_compiled_too():
    """Compiling takes a third of a minute; one window size and one way through it have to do."""
    conditions, stream = list(micro.pictures(21)), TickStream(MODEL, how="compiled")
    assert isinstance(stream._run, Compiled) and isinstance(stream._run.module, torch._dynamo.OptimizedModule)
    plain, compiled = films(Stream(MODEL), conditions), films(stream, conditions)
    assert np.abs(plain - compiled).max() <= 1


def test_a_process_may_compile_more_geometries_than_dynamo_s_limit():
    class Double(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    run = Compiled(Double(), backend="eager")
    for n in range(2, 4 + torch._dynamo.config.recompile_limit):
        assert run(torch.ones(n)).sum() == 2 * n


def test_a_decoder_s_memory_goes_from_tick_to_tick():
    model, conditions = with_memory(), list(micro.pictures(21))
    plain, tick = (films(kind(model), conditions) for kind in (Stream, TickStream))
    assert np.abs(plain - tick).max() <= 1
    decode = model.autoencoder.decode_next
    model.autoencoder.decode_next = lambda latents, memory: (decode(latents)[0], memory)
    forgetful = films(Stream(model), conditions)
    assert np.abs(plain - forgetful).max() > 10  # or this would show nothing


def test_a_graph_s_frames_at_every_size():
    """Also a new size after a flush, and what did not change is copied once."""
    model, options = with_memory(), {"window": 8, "groups": 4, "guidance": 2.0}
    plain = Stream(model, **options)
    graph = Replayed(Tick(model, plain.cfg))
    streams = plain, TickStream(model, **options, run=graph)
    for size in ((32, 24), (16, 16), (32, 24)):
        conditions = list(micro.pictures(21, size=size))
        for stream in streams:
            stream.reference(micro.pictures(seed=9, size=size))
        expected, got = (np.stack(stream.push(conditions) + stream.flush()).astype(int) for stream in streams)
        assert np.abs(expected - got).max() <= 1
    assert len(graph._captured) == 2
    conditions = list(micro.pictures(21))
    assert np.abs(films(streams[0], conditions) - films(streams[1], conditions)).max() <= 1


def test_a_graph_copies_only_what_changed():
    graph, kept = Replayed(lambda x, kept: (x + kept, kept * 1)), torch.ones(3)
    x, _ = graph(torch.ones(3), kept)
    (places, *_), *_ = graph._captured.values()
    copies = places[1]._version
    assert graph(x, kept)[0].tolist() == [3.0] * 3  # what it returned itself is read anew, however often
    assert graph(x, kept)[0].tolist() == [4.0] * 3 and places[1]._version == copies
    kept.add_(1)
    assert graph(x, kept)[0].tolist() == [6.0] * 3 and places[1]._version == copies + 1
    assert graph(x, torch.full((3,), 4.0))[0].tolist() == [10.0] * 3
    with torch.inference_mode():
        unversioned = torch.ones(3)
    for value in (1.0, 5.0):
        with torch.inference_mode():
            unversioned.fill_(value)
        assert graph(torch.zeros(3), unversioned)[0].tolist() == [value] * 3


def test_a_fingerprint_is_that_of_the_weights_of_a_tick():
    model = micro.model()
    first = fingerprint(model)
    assert first == fingerprint(MODEL) == fingerprint(micro.model()) != fingerprint(micro.model().half())
    for part in (model.reference_unet.conv_in, model.autoencoder.encoder[1]):
        part.weight.data += 1
    assert fingerprint(model) == first
    for part in (model.denoising_unet.conv_in, model.pose_guider.conv_in, model.autoencoder.decoder[0]):
        part.weight.data[0, 0, 0, 0] += 1
        assert fingerprint(model) != first
        first = fingerprint(model)


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


def test_contents_stay_as_they_were():
    stream = TickStream(MODEL, 8, 4, guidance=2.0)
    stream._run = Replayed(stream._tick)
    stream.reference(micro.pictures(seed=9))
    stream.push(list(micro.pictures(10)))
    latents = stream.contents[0]
    before = latents.clone()
    stream.push(list(micro.pictures(2)))
    assert torch.equal(latents, before)


def test_pictures_are_the_only_way_in():
    stream = TickStream(MODEL, 8, 4)
    with pytest.raises(NotImplementedError, match="tick: .* use push"):
        stream.tick(None)


def test_a_run_stands_alone():
    for options in ({"fp8": True}, {"how": "compiled"}):
        with pytest.raises(ValueError, match="run: got one and how=.*expected it alone"):
            TickStream(MODEL, run=print, **options)
    made = TickStream(MODEL, run=print)._tick  # a second copy of the weights would be for nothing
    ours = {part.data_ptr() for part in MODEL.parameters()}
    convolutions = [part for part in made.modules() if isinstance(part, torch.nn.Conv2d)]
    assert len(convolutions) > 10 and all(part.weight.data_ptr() in ours for part in convolutions)


def test_in_fp8_too():
    conditions = list(micro.pictures(21))
    streams = {fp8: TickStream(MODEL, 8, 4, guidance=2.0, fp8=fp8) for fp8 in (False, True)}
    exact, rounded = (films(stream, conditions) for stream in streams.values())
    expected = films(Stream(MODEL, 8, 4, guidance=2.0, fast=True, fp8=True), conditions)
    assert np.abs(rounded - expected).max() <= 1 < np.abs(exact - rounded).max()


def test_a_sink_is_refused():
    with pytest.raises(ValueError, match="sink: got a stream with one, expected none here"):
        TickStream(MODEL, 8, 4, guidance=2.0, sink=True)


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
    eager, graph = TickStream(model, **options), TickStream(model, how="graph", **options)
    assert isinstance(graph._run, CudaGraph) and isinstance(graph._run._function, Compiled)
    assert np.abs(films(eager, conditions) - films(graph, conditions)).max() <= 1
    for stream in (eager, graph):  # after a flush another size may come
        stream.reference(micro.pictures(seed=9, size=(16, 16)))
    conditions = list(micro.pictures(21, size=(16, 16)))
    frames = [np.stack(stream.push(conditions) + stream.flush()).astype(int) for stream in (eager, graph)]
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


@pytest.mark.gpu
def test_a_graph_reads_again_what_it_returned_and_not_what_stayed():
    graph, kept = CudaGraph(lambda x, kept: x + kept), torch.ones(3, device="cuda")
    x = graph(torch.ones(3, device="cuda"), kept)
    (places, *_), *_ = graph._captured.values()
    copies = places[1]._version
    assert [graph(x, kept)[0].item() for _ in range(3)] == [3.0, 4.0, 5.0] and places[1]._version == copies
    assert len(graph(torch.ones(5, device="cuda"), torch.ones(5, device="cuda"))) == 5


@pytest.mark.gpu
def test_a_graph_runs_on_the_device_of_its_tensors():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    double = CudaGraph(lambda x: 2 * x)
    for device in ("cuda:1", "cuda:0"):
        for value in (1.0, 2.0):
            found = double(torch.full((3,), value, device=device))
            assert str(found.device) == device and found.tolist() == [2 * value] * 3
