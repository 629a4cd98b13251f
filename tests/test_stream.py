"""The engine: Algorithm 1 for any K, p, N, equal to the published offline loop, however it is fed."""

import gc

import micro
import numpy as np
import pytest
import torch
from golden.fill_rule import image
from goldens import BOUNDS, denoising_unet, golden, guider, reference_unet, worst
from hypothesis import given, settings
from hypothesis import strategies as st

from rainlab.config import StreamConfig
from rainlab.method.rain import RAIN, to_signed, to_uint8
from rainlab.method.stream import Stream, animate
from rainlab.method.tick import TickStream
from rainlab.method.unet import temporal_mask
from rainlab.method.vae import TAESDV


def test_published_offline_loop():
    """Golden g2: 20 frames in five groups, four steps, soft start and drain."""
    g, a = golden("g2_pipeline_drain"), golden("a_reference")
    model = RAIN(reference_unet(), denoising_unet(), guider(), torch.nn.Identity(), TAESDV())
    drawn = list(g["noise/00"].split(4, dim=1))
    calls = [g[f"noise/{i:02d}"] for i in range(1, 9)]
    order = [x for i in range(8) for x in ([drawn[i], calls[i]] if i < 5 else [calls[i]])]
    stream = Stream(model, guidance=2.5, noise=lambda shape: order.pop(0))
    stream.set_bank(reference_unet().bank(a["in/ref_latents"], a["in/clip"]), a["in/clip"])
    pose = guider()(torch.from_numpy(image("in/pose", (20, 128, 192, 3))).permute(0, 3, 1, 2)[None].float() / 255)
    out = [stream.tick(group) for group in pose.split(4, dim=1)] + [stream.tick(None) for _ in range(3)]
    assert [x is None for x in out] == [True] * 3 + [False] * 5
    assert not order
    assert worst(torch.cat([x for x in out if x is not None], dim=1), g["out/latents"]) < BOUNDS["g2_pipeline_drain"]


def stream(window=8, groups=4, steps=1, seed=0, model=None, **options) -> Stream:
    s = Stream(model or micro.model(), window, groups, steps, guidance=2.0, seed=seed, **options)
    s.reference(micro.pictures(*([options["batch"]] if options.get("batch") else []), seed=9))
    return s


@settings(max_examples=12)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 14), st.data())
def test_every_condition_gives_one_frame_in_order(groups, group_size, steps, count, data):
    """Any K, p, N with p | K; singly, in bulk or in any portions: the same frames, as many as conditions."""
    conditions = list(micro.pictures(count))
    window = groups * group_size
    s = stream(window, groups, steps)
    singly = [s.push(c) for c in conditions]
    assert all(len(out) in (0, group_size) for out in singly)
    first_out = next((i + 1 for i, out in enumerate(singly) if out), None)
    assert first_out == (s.latency_frames if count >= window else None)
    frames = [f for out in singly for f in out] + s.flush()
    assert len(frames) == count and frames[0].shape == (32, 24, 3) and frames[0].dtype == np.uint8
    cut = data.draw(st.integers(0, count))
    s = stream(window, groups, steps)
    bulk = s.push(conditions[:cut]) + s.push(conditions[cut:]) + s.flush()
    assert np.array_equal(bulk, frames)


def test_a_push_changes_its_own_frame_most():
    """The frame that comes out for a condition is driven by that condition, not by a neighbour's."""
    conditions = np.zeros((12, 32, 24, 3), np.uint8)
    changed = conditions.copy()
    changed[5] = 255
    model, picture = micro.model(), micro.pictures(seed=9)
    a, b = (animate(model, picture, c, window=4, groups=2, guidance=2.0).astype(int) for c in (conditions, changed))
    assert np.abs(a - b).mean((1, 2, 3)).argmax() == 5


def test_reset_flush_and_seed():
    conditions = list(micro.pictures(10))
    s = stream()
    first = s.push(conditions) + s.flush()
    assert s.flush() == []
    again = s.push(conditions[:9])
    s.reset()
    assert np.array_equal(s.push(conditions) + s.flush(), first) and len(again) == 2
    assert not np.array_equal(stream(seed=1).push(conditions), first[:4])


def test_padding_of_a_partial_group_is_dropped():
    conditions = list(micro.pictures(9))  # K/p = 2: the last group is half full
    s, filled = stream(), stream()
    frames = s.push(conditions) + s.flush()
    longer = filled.push([*conditions, conditions[-1]]) + filled.flush()
    assert len(frames) == 9 and np.array_equal(frames, longer[:9])


def test_a_decoder_with_memory_keeps_it_over_pushes_and_forgets_it_on_reset():
    config = micro.micro(model__guider_widths=(8, 8, 8, 8))
    model = micro.model(config)
    model.autoencoder = TAESDV(8)
    conditions = list(micro.pictures(12))
    s = stream(model=model)
    bulk = s.push(conditions) + s.flush()
    singly = [f for c in conditions for f in s.push(c)] + s.flush()
    assert np.array_equal(bulk, singly)
    forgetful = stream(model=model)
    out = []
    for condition in conditions:
        forgetful._memory = None
        out += forgetful.push(condition)
    assert np.array_equal(out[:2], bulk[:2]) and not np.array_equal(out, bulk[: len(out)])


def test_contents_show_the_stairs():
    s = stream()
    assert len(s.contents[1]) == 0
    for pushed, times in ((2, [750] * 2), (4, [500] * 2 + [750] * 2), (8, [250] * 2 + [500] * 2 + [750] * 2)):
        s.reset()
        s.push(list(micro.pictures(pushed)))
        latents, at = s.contents
        assert at.tolist() == times and latents.shape[1] == len(times)


def test_several_pictures_of_the_character_in_any_order():
    """One bank of both: their order changes nothing, leaving one out does; the fast network does the same."""
    one, other = micro.pictures(seed=9), micro.pictures(seed=10)
    conditions, made = list(micro.pictures(8)), {}
    for name, pictures in {"both": [one, other], "turned": [other, one], "one": [one]}.items():
        for fast in (False, True):
            s = Stream(micro.model(), 8, 4, fast=fast)
            s.references(pictures)
            made[name, fast] = np.stack(s.push(conditions)).astype(int)
    plain = {name: made[name, False] for name in ("both", "turned", "one")}
    assert abs(plain["both"] - plain["turned"]).max() <= 1 < abs(plain["both"] - plain["one"]).max()
    assert all(abs(made[name, False] - made[name, True]).max() <= 1 for name in ("both", "one"))
    with pytest.raises(ValueError, match="references: got no picture"):
        s.references([])
    with pytest.raises(ValueError, match=r"reference: got size \(16, 24\), expected \(32, 24\)"):
        s.references([one, micro.pictures(size=(16, 24))])
    with pytest.raises(ValueError, match="got 2 pictures, expected one here; use rainlab.Stream"):
        TickStream(micro.model()).references([one, other])
    with pytest.raises(NotImplementedError, match="only starts softly"):
        TickStream(micro.model()).fill(one, one)


def test_reference_can_be_replaced_while_streaming():
    conditions = list(micro.pictures(16))
    s, steady = stream(), stream()
    before = s.push(conditions[:8])
    names, sizes = list(s._bank), [t.shape for t in s._bank.values()]
    s.reference(micro.pictures(seed=10))
    assert (list(s._bank), [t.shape for t in s._bank.values()]) == (names, sizes)  # replaced, never grown
    after, same = s.push(conditions[8:]), steady.push(conditions)
    assert np.array_equal(before, same[: len(before)]) and not np.array_equal(after, same[len(before) :])


def test_streams_side_by_side_keep_to_themselves():
    """Another stream's character and driver in the batch change nothing (equal noise given)."""
    draw = torch.Generator()
    conditions, picture = micro.pictures(2, 8), micro.pictures(2, seed=9)

    def run(rows):
        draw.manual_seed(0)
        noise = lambda shape: torch.randn(2, *shape[1:], generator=draw)[rows]  # noqa: E731
        s = Stream(micro.model(), 8, 4, guidance=2.0, batch=len(rows), noise=noise)
        s.reference(picture[rows])
        return np.stack(s.push([conditions[rows, i] for i in range(8)]) + s.flush(), axis=1)

    both, second = run([0, 1]), run([1])
    assert both.shape == (2, 8, 32, 24, 3)
    assert np.abs(both[1:].astype(int) - second).max() <= 1


@pytest.mark.parametrize("options", [{"causal": True}, {"cross_level": False}], ids=str)
def test_masks_and_time_steps_reach_the_network(monkeypatch, options):
    model, seen = micro.model(), []
    unet = model.denoising_unet
    monkeypatch.setattr(unet, "forward", lambda x, t, *a, temporal_mask=None, **_: seen.append((t, temporal_mask)) or x)
    s = Stream(model, 16, 4, guidance=2.0, **options)
    s.reference(micro.pictures(seed=9))
    s.push(list(micro.pictures(20)))
    s.flush()
    starts = [sorted(set(t[0].tolist())) for t, _ in seen]
    full = [249, 499, 749, 999]
    assert starts == [[999], [749, 999], [499, 749, 999], full, full, full[:3], full[:2], full[:1]]
    for t, mask in seen:
        expected = temporal_mask(s.cfg, len(t[0]))
        assert torch.equal(mask, expected) if expected is not None else mask.all()


def test_a_stream_may_begin_with_a_still_picture_instead_of_softly():
    """The window is full from the first tick; what was in it comes out first, near the still, then the new frames."""
    conditions, still = list(micro.pictures(12)), micro.pictures(seed=9)
    seen, s = [], Stream(micro.model(), 8, 4, guidance=2.0)
    s.reference(still)
    s.fill(still, conditions[0])
    latents, times = s.contents
    clean = s.model.autoencoder.encode(to_signed(torch.from_numpy(still)[None, None]))
    near = [float((latents[:, i] - clean[:, 0]).abs().mean()) for i in range(6)]
    assert times.tolist() == [250, 250, 500, 500, 750, 750] and max(near[:2]) < min(near[4:])
    for i in range(0, 12, 2):
        seen += s.push(conditions[i : i + 2])
    assert len(seen) == 12  # six of the still, then the first six conditions'
    with pytest.raises(RuntimeError, match="begun.*reset"):
        s.fill(still, conditions[0])
    soft = Stream(s.model, 8, 4, guidance=2.0)
    soft.reference(still)
    assert soft.push(conditions[:6]) == []


def test_a_sink_stays_in_sight_until_the_reference_changes(monkeypatch):
    """The first group that came out stands behind the full window, as clean; then the first wholly of the new one."""
    model, conditions, seen = micro.model(), list(micro.pictures(40)), []
    forward = model.denoising_unet.forward

    def look(x, t, context, pose, *given, **options):
        seen.append((x, t, pose))
        return forward(x, t, context, pose, *given, **options)

    monkeypatch.setattr(model.denoising_unet, "forward", look)
    plain, sunk = stream(model=model), stream(model=model, sink=True)
    first = [s.push(conditions[:8]) for s in (plain, sunk)]
    assert np.array_equal(*first)  # nothing had come out before
    later = [np.stack(s.push(conditions[8:14])) for s in (plain, sunk)]
    assert (later[0] != later[1]).any()
    (x, t, pose), group = seen[-1], to_uint8(model.autoencoder.decode(seen[-1][0][:, 8:]))
    assert x.shape[1] == t.shape[1] == 10 and t[0].tolist() == [249] * 2 + [499] * 2 + [749] * 2 + [999] * 2 + [0] * 2
    assert np.array_equal(group[0].numpy(), first[1]) and not torch.equal(pose[:, 8:], pose[:, :2])
    sunk.reference(micro.pictures(seed=3))
    widths = []
    for i in range(14, 26, 2):
        out = sunk.push(conditions[i : i + 2])
        widths.append(seen[-1][0].shape[1])
    assert widths == [8] * 4 + [10] * 2  # three groups that the old one began go first, then one to be seen
    seen.clear()
    assert len(sunk.flush()) == 6 and [x.shape[1] for x, *_ in seen] == [6, 4, 2]
    sunk.push(conditions[:8])
    assert [x.shape[1] for x, *_ in seen[3:]] == [2, 4, 6, 8] and len(out) == 2
    with pytest.raises(ValueError, match="a sink of 8, expected at most motion_length=32"):
        stream(32, 4, model=model, sink=True)


@pytest.mark.parametrize("options", [{"fast": True}, {"batch": 2}], ids=str)
def test_a_sink_in_other_streams(options):
    conditions = micro.pictures(20)
    plain = stream(sink=True)
    frames = np.stack(plain.push(list(conditions)) + plain.flush())
    other = stream(sink=True, **options)
    if batch := options.get("batch"):
        other.reference(np.stack([micro.pictures(seed=9)] * batch))
        conditions = np.stack([conditions] * batch, 1)
        other._given_noise = lambda shape: torch.randn((1, *shape[1:]), generator=other._generator).expand(shape)
    made = np.stack(other.push(list(conditions)) + other.flush())
    assert np.abs(made[:, 0].astype(int) - frames if options.get("batch") else made.astype(int) - frames).max() <= 1


def test_guidance_acts_and_reaches_every_frame():
    conditions = list(micro.pictures(8))
    model = micro.model()
    a, b = (
        np.stack((s := Stream(model, 8, 4, guidance=w)).reference(micro.pictures(seed=9)) or s.push(conditions))
        for w in (1.0, 4.0)
    )
    assert not np.array_equal(a, b)


def test_without_temporal_strength_frames_do_not_see_each_other():
    """At strength 0 a changed condition changes its own frame alone; any other strength lets neighbours see it."""
    model, picture = micro.model(), micro.pictures(seed=9)
    conditions = micro.pictures(8)
    changed = conditions.copy()
    changed[3] = 255

    def frames(strength, pushed):
        s = Stream(model, 4, 2, guidance=2.0, temporal_strength=strength)
        s.reference(picture)
        return np.stack(s.push(list(pushed)) + s.flush())

    same, alone, half = (frames(w, conditions) == frames(w, changed) for w in (1.0, 0.0, 0.5))
    others = [0, 1, 2, 4, 5, 6, 7]
    assert alone[others].all() and not alone[3].all() and not same[others].all() and not half[others].all()


def test_temporal_strength_may_change_while_it_streams():
    whole, turned = stream(), stream(temporal_strength=0.0)
    turned.temporal_strength = 1.0
    conditions = list(micro.pictures(10))
    assert np.array_equal(whole.push(conditions), turned.push(conditions))
    turned.temporal_strength = 0.0
    assert not np.array_equal(whole.push(conditions), turned.push(conditions))


def test_seconds_are_counted_by_part():
    s = stream()
    assert s.seconds == {"guider": 0.0, "network": 0.0, "decoder": 0.0}
    s.push(list(micro.pictures(4)))
    assert s.seconds["guider"] > 0 < s.seconds["network"] and s.seconds["decoder"] == 0  # no frame is out yet
    s.push(list(micro.pictures(4)))
    assert s.seconds["decoder"] > 0


def test_memory_stays_constant_over_ten_thousand_pushes():
    """After 10,000 pushes there are as many objects and tensor elements as after 160."""
    s = Stream(micro.model(micro.micro(data__height=8, data__width=8)), 32, 2, guidance=2.0)
    s.reference(micro.pictures(size=(8, 8)))
    conditions = list(micro.pictures(16, size=(8, 8)))

    def alive():
        gc.collect()
        objects = gc.get_objects()  # weights that are packed for a processor's products have no storage to ask
        tensors = [x for x in objects if type(x) is torch.Tensor and x.layout is torch.strided]
        return len(objects), sum(x.untyped_storage().nbytes() for x in tensors)

    for _ in range(10):
        s.push(conditions)
    counts = [alive()]
    for _ in range(2):
        for _ in range(308):
            s.push(conditions)
        counts.append(alive())
    (before, held), (between, then), (after, now) = counts
    assert held == then == now
    # What other tests have left behind may grow once. The stream would in both halves: by 308, with one object a push.
    assert min(between - before, after - between) < 200
    assert all(t.untyped_storage().nbytes() == t.numel() * 4 for t in (s._latents, s._pose))  # no view on old frames


GOOD = micro.pictures(seed=9)


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        ([1, 2], TypeError, "condition: got int"),
        (GOOD.astype(np.float32), TypeError, "got dtype torch.float32, expected uint8"),
        (GOOD.transpose(2, 0, 1), ValueError, "channels last"),
        (GOOD[..., :2], ValueError, r"got shape \(32, 24, 2\)"),
        (GOOD[None], ValueError, r"got shape \(1, 32, 24, 3\), expected uint8 RGB \(h, w, 3\)"),
        (GOOD[:, :20], ValueError, r"got size \(32, 20\), expected \(32, 24\)"),
    ],
)
def test_wrong_conditions_are_named_and_leave_the_stream_as_it_was(picture, error, message):
    s = stream()
    with pytest.raises(error, match=message):
        s.push([GOOD, picture] if not isinstance(picture, list) else picture)
    assert s.push([GOOD] * 7) == [] and len(s.push(GOOD)) == 2


@pytest.mark.parametrize("fast", [False, True])
def test_an_interrupted_tick_leaves_the_stream_as_if_its_group_had_not_come(fast, monkeypatch):
    conditions = list(micro.pictures(20))
    expected = stream(fast=fast).push(conditions[:10] + conditions[12:])
    running = stream(fast=fast)
    frames, decode = running.push(conditions[:10]), running._autoencoder.decode_next
    with monkeypatch.context() as broken:
        broken.setattr(running._autoencoder, "decode_next", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            running.push(conditions[10:12])
    assert running._autoencoder.decode_next == decode
    frames += running.push(conditions[12:])
    assert len(frames) == len(expected) and np.array_equal(frames, expected)


def test_a_stream_runs_as_its_model_was_trained_unless_told_otherwise():
    """A K = 8 causal model must not run as K = 16 without a mask."""
    trained = micro.model(micro.micro(stream__window=8, stream__groups=2, stream__causal=True, stream__guidance=3.0))
    own = Stream(trained)
    assert (own.window, own.groups, own.group_size, own.guidance, own.cfg.causal) == (8, 2, 4, 3.0, True)
    told = Stream(trained, window=16, groups=4, steps_per_group=2, guidance=1.5, causal=False)
    assert (told.window, told.groups, told.steps_per_group, told.guidance, told.cfg.causal) == (16, 4, 2, 1.5, False)
    condition = list(micro.pictures(8, seed=2))
    frames = {}
    for name, options in {"own": {}, "same": {"window": 8, "causal": True}, "free": {"causal": False}}.items():
        running = Stream(trained, **options)
        running.reference(micro.pictures(seed=9))
        frames[name] = np.stack(running.push(condition))
    assert np.array_equal(frames["own"], frames["same"]) and not np.array_equal(frames["own"], frames["free"])
    trained.preset = None
    assert Stream(trained).cfg == StreamConfig()  # the paper's


def test_a_bad_picture_leaves_nothing_behind_after_a_bank_from_elsewhere():
    """The size of the pictures is then known from the first condition; a push with two sizes is refused as a whole."""
    model = micro.model()
    s = Stream(model, 8, 4)
    s.set_bank(*model.look(torch.rand(1, 3, 32, 24)))
    with pytest.raises(ValueError, match=r"condition: got size \(16, 24\), expected \(32, 24\)"):
        s.push([GOOD, micro.pictures(size=(16, 24))])
    assert len(s.push([GOOD] * 8)) == 2
    with pytest.raises(RuntimeError, match="window is empty"):
        Stream(model, 8, 4).tick(None)


def test_wrong_use_is_named():
    undistilled = Stream(micro.model(guidance=False), 8, 4)
    undistilled.reference(micro.pictures())
    undistilled.guidance = 3.0
    with pytest.raises(ValueError, match="guidance: got 3.0, but this network has no ω embedding"):
        undistilled.push(list(micro.pictures(2)))
    model = micro.model()
    with pytest.raises(RuntimeError, match="no reference"):
        Stream(model).push(GOOD)
    with pytest.raises(ValueError, match="K=10, groups p=4"):
        Stream(model, window=10)
    with pytest.raises(ValueError, match="motion_length=32"):
        Stream(model, window=64)
    with pytest.raises(ValueError, match="no ω embedding"):
        Stream(micro.model(guidance=False), guidance=2.0)
    with pytest.raises(ValueError, match="multiples of 4"):
        Stream(model).reference(micro.pictures(size=(30, 24)))
    with pytest.raises(ValueError, match=r"reference: got size \(16, 24\), expected \(32, 24\)"):
        s = stream()
        s.push(GOOD)
        s.reference(micro.pictures(size=(16, 24)))
