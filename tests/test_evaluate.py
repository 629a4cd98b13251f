"""Held-out evaluation: what every method is shown, what is recorded, and that nothing is recorded twice."""

import json
from dataclasses import replace

import micro
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rainlab import runs
from rainlab.baselines import animate_anyone
from rainlab.config import override
from rainlab.data import dataset
from rainlab.data.clips import StudioClips
from rainlab.measure import evaluate, features, metrics, v_loss
from rainlab.method import sampling
from rainlab.method.stream import Stream
from rainlab.training import losses, stages

CONFIG = micro.micro(stream__window=16)  # so that the ablations differ
FRAMES = CONFIG.data.test_frames


@pytest.fixture(scope="module", autouse=True)
def weights():
    for change in evaluate.ABLATIONS.values():
        micro.write_weights(override(CONFIG, change))


@pytest.fixture(autouse=True)
def on_the_processor(monkeypatch, request):
    """What is compared to the bit is computed in one place."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr(evaluate, "device", lambda: "cpu")


@pytest.fixture(scope="module")
def held():
    return evaluate.held_out(CONFIG)


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_the_reference_is_older_than_the_driven_frames(held):
    cfg = CONFIG.data
    clips = StudioClips("test", cfg.test_clips, cfg.test_gap + FRAMES, cfg.size, facing=cfg.facing)
    for i, clip in enumerate(clips):
        assert np.array_equal(held.reference[i], clip.frames[0])
        for name in ("frames", "condition", "mask"):
            assert np.array_equal(getattr(held, name)[i], getattr(clip, name)[cfg.test_gap :])
    assert len(held.reference) == cfg.test_clips
    few = evaluate.held_out(CONFIG, 1)
    assert np.array_equal(few.frames, held.frames[:1]) and len(few.mask) == len(few.reference) == 1


def test_copying_repeats_the_reference_and_the_ceiling_is_the_autoencoder(held):
    copied = evaluate.generate(CONFIG, "copy", held)
    assert copied.shape == held.frames.shape and (copied == held.reference[:, None]).all()
    ceiling, vae = evaluate.generate(CONFIG, "autoencoder", held), stages.trained(CONFIG, "autoencoder").autoencoder
    signed = torch.from_numpy(held.frames).flatten(0, 1).movedim(-1, 1) / 127.5 - 1
    back = vae.decode(vae.encode(signed)).clamp(-1, 1).movedim(1, -1).reshape(held.frames.shape) * 127.5 + 127.5
    assert np.abs(ceiling - back.numpy()).max() < 1 < np.abs(ceiling - held.frames.astype(int)).mean()


def test_wrong_differs_from_rain_in_nothing_but_the_reference(held):
    model = stages.trained(CONFIG, "distill3d")
    right, wrong = (evaluate.generate(CONFIG, method, held, model) for method in ("rain", "wrong"))
    exchanged = replace(held, reference=held.reference[[1, 0]])
    assert np.array_equal(evaluate.generate(CONFIG, "rain", exchanged, model), wrong)
    assert not np.array_equal(right, wrong) and right.shape == held.frames.shape


def test_undistilled_is_stage_2_without_guidance(held):
    model = stages.trained(CONFIG, "stage2")
    frames = evaluate.generate(CONFIG, "undistilled", held)
    stream = Stream(model, batch=len(held.reference))
    stream.reference(held.reference)
    around = CONFIG.stream.window - CONFIG.stream.window // CONFIG.stream.groups
    pushed = stream.push([held.condition[:, i] for i in sampling.mirrored(FRAMES, around, around + 8)])
    assert np.array_equal(np.stack(pushed[around : around + FRAMES], axis=1), frames)


def test_slow_ways_are_guided_ddim(held):
    """RAIN's before distillation by the stairs, AnimateAnyone's window by window from a stage 2 of its own."""
    uniform = evaluate.trained_as(CONFIG, "animate_anyone")
    assert uniform.stage2.times == "uniform" and evaluate.trained_as(CONFIG, "ddim") == CONFIG
    micro.write_weights(uniform, ("stage2",), seed=5)
    model = stages.trained(uniform, "stage2")
    whole = animate_anyone.animate(model, held.reference[1:], held.condition[1:], 16, guidance=CONFIG.stream.guidance)
    assert np.array_equal(evaluate.generate(CONFIG, "animate_anyone", held)[1:], whole)
    other = stages.trained(CONFIG, "stage2")
    stairs = evaluate.generate(CONFIG, "ddim", held)
    options = {"window": 16, "groups": 4, "steps_per_group": 5, "guidance": CONFIG.stream.guidance}
    assert np.array_equal(
        stairs, sampling.stream(other, held.reference, held.condition, sampling.SolverStream, **options)
    )
    assert not np.array_equal(stairs, evaluate.generate(CONFIG, "undistilled", held))


@pytest.mark.parametrize("method", ["bf16", "fp8"])
def test_fewer_bits_change_rains_frames_a_little(method, held):
    exact, rounded = (evaluate.generate(CONFIG, name, held).astype(int) for name in ("rain", method))
    assert 0 < np.abs(exact - rounded).mean() < 3


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_bf16_products_are_pytorch_s_own(grad):
    """All of them are summed in fp32 and rounded once; what is no product, or not in bf16, is left alone."""
    draw = torch.Generator().manual_seed(0)
    x, w, b, q = (
        torch.randn(*shape, generator=draw).bfloat16() for shape in ((2, 8, 6, 6), (4, 8, 3, 3), (4,), (2, 3, 5, 8))
    )
    with grad():
        calls = {
            "convolution": lambda: F.conv2d(x, w, b, padding=1),
            "linear": lambda: F.linear(q, w[:, :, 0, 0], b),
            "products": lambda: q @ q.mT,
            "a product": lambda: x[0, 0] @ x[0, 1],
            "sum": lambda: q.sum(-1),
            "fp32": lambda: q.float() @ q.mT.float(),
        }
        own = {name: call() for name, call in calls.items()}
        seen = []

        class Spy(evaluate.Bf16Products):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                made = super().__torch_dispatch__(func, types, args, kwargs)
                if func.overloadpacket in self.PRODUCTS:
                    seen.append(func.overloadpacket)
                return made

        with Spy():
            ours = {name: call() for name, call in calls.items()}
    assert len(seen) == 5  # each of the products
    for name, expected in own.items():
        assert ours[name].dtype == expected.dtype
        torch.testing.assert_close(ours[name].float(), expected.float(), rtol=2**-7, atol=1e-3, msg=name)
    assert torch.equal(ours["sum"], own["sum"]) and torch.equal(ours["fp32"], own["fp32"])


@pytest.mark.parametrize("method", ["stream_diffusion", "live2diff"])
def test_a_frame_at_a_time_shows_its_own_condition_in_its_own_place(method, held):
    """StreamDiffusion's frames do not see each other; Live2Diff's see earlier ones."""
    short = override(CONFIG, {"stream.window": 8})  # its mirrored past shows frames 6 to 1
    changed = replace(held, condition=held.condition.copy())
    changed.condition[0, 8] = 255 - changed.condition[0, 8]
    before, after = (evaluate.generate(short, method, given) for given in (held, changed))
    assert before.shape == held.frames.shape
    differs = (before != after).any(axis=(2, 3, 4))
    assert not differs[1].any() and not differs[0, :8].any() and differs[0, 8]
    assert differs[0, 9] == (method == "live2diff")


def test_networks_are_measured_where_the_device_says(monkeypatch):
    asked = []
    monkeypatch.setattr(stages, "trained", lambda *given: asked.append(given[1:]))
    monkeypatch.setattr(evaluate, "device", lambda: "cuda:3")
    for method in ("autoencoder", "rain", "ddim"):
        evaluate._trained(CONFIG, method)
    assert asked == [("autoencoder", "cuda:3"), ("distill3d", "cuda:3"), ("stage2", "cuda:3")]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["autoencoder", "wrong", "undistilled", "rain", "ddim", "animate_anyone"])
def test_a_gpu_gives_the_same_frames_up_to_rounding(method, held):
    models = (stages.trained(CONFIG, evaluate.STAGE[method], device) for device in ("cpu", "cuda"))
    here, there = (evaluate.generate(CONFIG, method, held, model).astype(int) for model in models)
    assert np.abs(here - there).mean() < 0.5


def test_unknown_methods_are_named(held):
    for function in (evaluate.describe, evaluate.measure):
        with pytest.raises(ValueError, match="method: got 'best', expected one of .*'undistilled'"):
            function(CONFIG, "best")
    with pytest.raises(ValueError, match="method"):
        evaluate.generate(CONFIG, "best", held)


# -- what is recorded ------------------------------------------------------------------------------------------------


def test_runs_follow_what_determines_the_numbers():
    ids = lambda config: {m: runs.run_id("e", *with_version(evaluate.describe(config, m))) for m in evaluate.METHODS}  # noqa: E731
    with_version = lambda described: (described[0], 1, described[1])  # noqa: E731
    own = ids(CONFIG)
    changed = lambda **change: {m for m, id in ids(micro.micro(stream__window=16, **change)).items() if id != own[m]}  # noqa: E731
    streamed = {"wrong", "undistilled", "flat", "rain"}
    assert len(set(own.values())) == len(evaluate.METHODS)
    assert changed(data__test_clips=3) == changed(data__test_gap=3) == set(evaluate.METHODS)
    assert changed(train_autoencoder__steps=9) == streamed | {"autoencoder"}
    assert changed(stream__guidance=3.0) == streamed
    assert changed(stage2__steps=9) == streamed - {"flat"}
    assert changed(distill3d__steps=9) == {"wrong", "rain"}


def test_reading_what_nobody_recorded_names_the_command():
    other = micro.micro(data__test_clips=5)
    for read in (lambda: evaluate.measure(other, "rain"), lambda: evaluate.compare(other)):
        with pytest.raises(FileNotFoundError, match="record=yes"):
            read()


@pytest.fixture(scope="module")
def compared(weights):
    return evaluate.compare(CONFIG, record=True)


def test_a_method_is_recorded_once_and_read_again(compared, held, monkeypatch):
    run = evaluate.measure(CONFIG, "rain")
    frames, values = np.load(run.path / "frames.npy"), json.loads((run.path / "values.json").read_text("utf-8"))
    expected = metrics.evaluate(frames, held.frames, held.mask)
    assert {name: list(value) for name, value in expected.items()}.items() <= values.items()
    row = run.value("psnr_fg", method="rain")
    assert [row[key] for key in ("value", "ci_low", "ci_high", "n")] == list(metrics.bootstrap(expected["psnr_fg"]))
    assert row["protocol"] == metrics.PROTOCOL
    monkeypatch.setattr(evaluate, "generate", None)
    assert np.array_equal(evaluate.kept(CONFIG, "rain", held), frames)
    assert evaluate.measure(CONFIG, "rain", record=True).id == run.id
    assert evaluate.compare(CONFIG, record=True).metrics() == evaluate.compare(CONFIG).metrics() == compared.metrics()


def test_pose_animate_is_told_the_reference_s_pose_and_mask(weights, held, monkeypatch):
    monkeypatch.setattr(evaluate.animate_anyone, "STEPS", 2)
    monkeypatch.setattr(evaluate, "ZERO_SHOT_INNER", 1)
    first = np.stack([clip.condition[0] for clip in dataset.clips_of(CONFIG.data, "test")])
    assert np.array_equal(held.source, first) and held.silhouette.shape == held.reference.shape[:3]
    made = evaluate.generate(CONFIG, "pose_animate", held)
    assert made.shape == held.frames.shape and made.dtype == np.uint8
    for change in ({"source": 255 - held.source}, {"silhouette": ~held.silhouette}, {"silhouette": None}):
        assert (evaluate.generate(CONFIG, "pose_animate", replace(held, **change)) != made).any(), change
    still = evaluate.frozen(held, 1)
    assert len(still.reference) == len(still.silhouette) == 1 and still.condition.shape[1] == held.frames.shape[1]
    assert np.array_equal(still.condition[0], np.repeat(held.condition[0, :1], held.frames.shape[1], axis=0))


def test_frames_that_were_not_kept_are_made(compared, held):
    other = override(CONFIG, {"stream.guidance": 3.0})  # not measured
    assert np.array_equal(evaluate.kept(other, "copy", held), evaluate.generate(CONFIG, "copy", held))
    assert np.array_equal(evaluate.kept(other, "rain", held), evaluate.generate(other, "rain", held))


def test_flicker_is_that_of_one_frozen_pose_over_as_many_frames_for_every_window(monkeypatch):
    driven = []

    def stream(model, reference, condition, **options):
        assert options == {**vars(config.stream)}
        driven.append((reference, condition))
        return micro.pictures(*condition.shape[:2])

    monkeypatch.setattr(evaluate, "stream", stream)
    config = micro.micro(stream__window=8, data__test_clips=3)
    run = evaluate.measure(config, "rain", record=True)
    (reference, moving), (frozen_reference, frozen) = driven
    assert np.array_equal(reference, evaluate.held_out(config).reference)
    assert np.array_equal(reference, frozen_reference)
    assert frozen.shape == moving.shape and (frozen == moving[:, :1]).all() and not np.array_equal(frozen, moving)
    steps = [row for row in run.metrics() if row["metric"] == "flicker_step"]
    assert [row["step"] for row in steps] == list(range(1, FRAMES))
    assert np.mean([row["value"] for row in steps]) == pytest.approx(run.value("flicker")["value"])
    size = config.stream.window // config.stream.groups
    border = [row["value"] for row in steps if row["step"] % size == 0]
    inside = [row["value"] for row in steps if row["step"] % size]
    assert run.value("flicker_border_ratio")["value"] == pytest.approx(np.mean(border) / np.mean(inside), rel=0.05)


def test_flicker_is_measured_where_it_says_something(compared):
    evaluate.measure(CONFIG, "live2diff", record=True)
    for method in (*evaluate.METHODS, "live2diff"):
        measured = {row["metric"] for row in evaluate.measure(CONFIG, method).metrics()}
        still = method in (*evaluate.STANDING_STILL, *evaluate.OTHERS)
        assert ("flicker" in measured) == ("flicker_step" in measured) == still
        assert {"psnr", "ssim", "psnr_fg", "ssim_fg", "tde", "sharpness_error", "true_motion"} <= measured


def test_the_yardstick_of_motion_is_what_a_picture_that_stands_still_gets_wrong(compared):
    run = evaluate.measure(CONFIG, "copy")
    assert run.value("true_motion")["value"] == pytest.approx(run.value("tde")["value"], rel=1e-6)
    assert run.value("true_motion")["value"] == evaluate.measure(CONFIG, "rain").value("true_motion")["value"]


def test_options_of_the_preset_win_over_the_models_own(held):
    model = stages.trained(CONFIG, "distill3d")
    twice = override(CONFIG, {"stream.steps_per_group": 2})
    frames = {c.stream.steps_per_group: evaluate.generate(c, "rain", held, model) for c in (CONFIG, twice)}
    assert not np.array_equal(frames[1], frames[2])


def test_differences_are_paired(compared):
    for a, b in evaluate.PAIRS:
        x, y = (json.loads((evaluate.measure(CONFIG, m).path / "values.json").read_text("utf-8")) for m in (a, b))
        row = compared.value("psnr_fg", a=a, b=b)
        assert row["value"] == pytest.approx(np.mean(x["psnr_fg"]) - np.mean(y["psnr_fg"]))
        assert (row["ci_low"], row["ci_high"]) == tuple(metrics.paired(x["psnr_fg"], y["psnr_fg"])[1:3])


def test_ablations_are_runs_of_their_own_and_the_first_is_the_preset_itself(compared):
    ablated = evaluate.ablations(CONFIG, record=True)
    assert list(ablated) == list(evaluate.ABLATIONS) and len({run.id for run in ablated.values()}) == 3
    assert ablated["K = 16"].id == evaluate.measure(CONFIG, "rain").id
    streams = [run.config["stream"] for run in ablated.values()]
    assert [(cfg["window"], cfg["causal"]) for cfg in streams] == [(16, False), (8, False), (16, True)]
    assert {label: run.id for label, run in evaluate.ablations(CONFIG).items()} == {k: r.id for k, r in ablated.items()}


def test_motion_gain_is_the_held_out_loss_of_stage_2_and_of_stage_1():
    """With nothing dropped, whatever the dropout in training was."""
    config = micro.micro(loss__condition_dropout=1.0)
    micro.write_weights(config)
    data = stages.Training(config, "stage2").data(split="test")
    for stage, found in zip(("stage2", "stage1"), v_loss.motion_gain(config, repeats=1), strict=True):
        loss = losses.sample_losses(stages.trained(config, stage), config, losses.staircase_times, dropout=0.0)
        assert found.shape == (CONFIG.data.test_clips,)
        np.testing.assert_allclose(found, v_loss.held_out_loss(loss, data, 8, True, repeats=1), rtol=1e-5)


def test_two_halves_of_the_truth_tell_what_chance_is(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    preset = override(CONFIG, {"data.height": 64, "data.width": 48, "data.test_clips": 4, "data.test_frames": 18})
    with pytest.raises(FileNotFoundError, match="nothing recorded"):
        evaluate.halves(preset)
    run = evaluate.halves(preset, record=True, draws=3)
    truth = evaluate.held_out(preset).frames
    order, by_hand = np.random.default_rng(0), []
    for _ in range(3):
        clips = order.permutation(4)
        by_hand.append(features.fvd(truth[clips[:2]], truth[clips[2:]], stride=1))
    row = run.value("fvd_studio")
    assert row["value"] == pytest.approx(np.mean(by_hand), rel=1e-6) and row["n"] == 2 * 3 > 0
    assert row["ci_low"] <= row["value"] <= row["ci_high"] and row["protocol"] == features.PROTOCOL
    with pytest.raises(ValueError, match="got clips of studio of 32×32, expected the studio's, a multiple of 64×48"):
        evaluate.halves(override(preset, {"data.height": 32, "data.width": 32}))
