"""Held-out evaluation: what every method is shown, what is recorded, and that nothing is recorded twice."""

import json
from dataclasses import replace

import micro
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rainlab import evaluate, losses, metrics, runs, stages
from rainlab.clips import StudioClips
from rainlab.config import override
from rainlab.stream import Stream

CONFIG = micro.micro(stream__window=16)  # so that the ablations differ
FRAMES = CONFIG.data.test_frames


def write_weights(config):
    """Random weights in place of finished trainings."""
    for stage in stages.STAGES:
        folder = runs.folder() / stages.run_id(config, stage)
        folder.mkdir(parents=True, exist_ok=True)
        model = micro.model(config, motion=stage in stages.WINDOWED, guidance=stage.startswith("distill"))
        state = model.state_dict()
        save_file({name: state[name].contiguous() for name in model.trainable(stage)}, folder / "weights.safetensors")


@pytest.fixture(scope="module", autouse=True)
def weights():
    for change in evaluate.ABLATIONS.values():
        write_weights(override(CONFIG, change))


@pytest.fixture(scope="module")
def held():
    return evaluate.held_out(CONFIG)


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_the_reference_is_older_than_the_driven_frames(held):
    cfg = CONFIG.data
    clips = StudioClips("test", cfg.test_clips, cfg.test_gap + FRAMES, cfg.size)
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
    model = evaluate.load(CONFIG, "autoencoder")
    ceiling = evaluate.generate(CONFIG, "autoencoder", held, model)
    alone = held.__class__(held.reference, held.frames[:, 3:4], held.condition, held.mask)
    assert np.array_equal(evaluate.generate(CONFIG, "autoencoder", alone), ceiling[:, 3:4])  # frame by frame, loaded


def test_wrong_differs_from_rain_in_nothing_but_the_reference(held):
    model = evaluate.load(CONFIG, "rain")
    right, wrong = (evaluate.generate(CONFIG, method, held, model) for method in ("rain", "wrong"))
    exchanged = replace(held, reference=held.reference[[1, 0]])
    assert np.array_equal(evaluate.generate(CONFIG, "rain", exchanged, model), wrong)
    assert not np.array_equal(right, wrong) and right.shape == held.frames.shape


def test_undistilled_is_stage_2_without_guidance(held):
    model = evaluate.load(CONFIG, "undistilled")
    frames = evaluate.generate(CONFIG, "undistilled", held)
    options = evaluate.stream_options(CONFIG.stream) | {"guidance": None}
    stream = Stream(model, batch=len(held.reference), **options)
    stream.reference(held.reference)
    around = CONFIG.stream.window - CONFIG.stream.window // CONFIG.stream.groups
    pushed = stream.push([held.condition[:, i] for i in evaluate.mirrored(FRAMES, around, around + 8)])
    assert np.array_equal(np.stack(pushed[around : around + FRAMES], axis=1), frames)


def test_many_clips_stream_some_side_by_side(held, monkeypatch):
    monkeypatch.setattr(evaluate, "SIDE_BY_SIDE", 1)
    model = evaluate.load(CONFIG, "rain")
    frames = evaluate.stream(model, held.reference, held.condition, CONFIG.stream)
    first = evaluate.stream(model, held.reference[:1], held.condition[:1], CONFIG.stream)
    assert frames.shape == held.frames.shape and np.array_equal(frames[:1], first)


def test_streams_are_measured_in_full_flow():
    """Before and behind a clip runs its mirror image, however short the clip."""
    assert evaluate.mirrored(4, 6, 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert evaluate.mirrored(1, 2, 2).tolist() == [0] * 5


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
    streamed = {"wrong", "undistilled", "rain"}
    assert len(set(own.values())) == len(evaluate.METHODS)
    assert changed(data__test_clips=3) == changed(data__test_gap=3) == set(evaluate.METHODS)
    assert changed(train_autoencoder__steps=9) == streamed | {"autoencoder"}
    assert changed(stage2__steps=9) == changed(stream__guidance=3.0) == streamed
    assert changed(distill3d__steps=9) == {"wrong", "rain"}


def test_reading_what_nobody_recorded_names_the_command():
    other = micro.micro(data__test_clips=5)
    for read in (lambda: evaluate.measure(other, "rain"), lambda: evaluate.compare(other)):
        with pytest.raises(FileNotFoundError, match="make tables"):
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
    assert evaluate.measure(CONFIG, "rain", record=True).id == run.id
    assert evaluate.compare(CONFIG, record=True).metrics() == evaluate.compare(CONFIG).metrics() == compared.metrics()


def test_flicker_is_that_of_one_frozen_pose_over_as_many_frames_for_every_window(monkeypatch):
    driven = []

    def stream(model, reference, condition, cfg):
        driven.append(condition)
        return micro.pictures(*condition.shape[:2])

    monkeypatch.setattr(evaluate, "stream", stream)
    config = micro.micro(stream__window=8, data__test_clips=3)
    run = evaluate.measure(config, "rain", record=True)
    moving, frozen = driven
    assert frozen.shape == moving.shape and (frozen == moving[:, :1]).all() and not np.array_equal(frozen, moving)
    steps = [row for row in run.metrics() if row["metric"] == "flicker_step"]
    assert [row["step"] for row in steps] == list(range(1, FRAMES))
    assert np.mean([row["value"] for row in steps]) == pytest.approx(run.value("flicker")["value"])
    size = config.stream.window // config.stream.groups
    border = [row["value"] for row in steps if row["step"] % size == 0]
    inside = [row["value"] for row in steps if row["step"] % size]
    assert run.value("flicker_border_ratio")["value"] == pytest.approx(np.mean(border) / np.mean(inside), rel=0.05)


def test_flicker_is_measured_where_it_says_something(compared):
    for method in evaluate.METHODS:
        measured = {row["metric"] for row in evaluate.measure(CONFIG, method).metrics()}
        assert ("flicker" in measured) == ("flicker_step" in measured) == (method in evaluate.STANDING_STILL)
        assert {"psnr", "ssim", "psnr_fg", "ssim_fg", "tde", "sharpness_error"} <= measured


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


# -- looking inside --------------------------------------------------------------------------------------------------


def test_ddim_samples_all_frames_together_unless_causal():
    model, reference = micro.model(guidance=False), micro.pictures(1, seed=9)
    condition = micro.pictures(1, 4)
    changed = condition.copy()
    changed[:, 3] = 255
    made = {
        causal: [evaluate.sample(model, reference, x, steps=2, causal=causal)[0] for x in (condition, changed)]
        for causal in (False, True)
    }
    differs = {causal: (a != b).any((1, 2, 3)).tolist() for causal, (a, b) in made.items()}
    assert differs == {False: [True] * 4, True: [False] * 3 + [True]}


def test_ddim_guidance_of_one_is_none_and_two_is_not():
    model, inputs = micro.model(guidance=False), (micro.pictures(1, seed=9), micro.pictures(1, 2))
    plain, one, two = (evaluate.sample(model, *inputs, steps=2, guidance=g).astype(int) for g in (None, 1.0, 2.0))
    assert np.abs(plain - one).max() <= 1 < np.abs(plain - two).max()
    again = evaluate.sample(model, *inputs, steps=2)
    assert np.array_equal(plain, again) and not np.array_equal(plain, evaluate.sample(model, *inputs, steps=2, seed=1))


def test_the_film_of_a_window_fills_from_the_noisy_end():
    conditions = micro.pictures(12)
    made = [Stream(micro.model(), 8, 4, guidance=2.0) for _ in range(2)]
    for stream in made:
        stream.reference(micro.pictures(seed=9))
    film = evaluate.window_film(made[0], conditions)
    assert film.shape == (6, 4, 32, 24, 3)
    filled = (film != 255).any((2, 3, 4))
    assert np.array_equal(filled, np.arange(6)[:, None] + np.arange(4) >= 3)  # a group more each tick
    assert np.array_equal(film[3:, 0], made[1].push(list(conditions))[::2])


def test_attention_over_time_is_a_distribution_and_obeys_the_mask():
    model = micro.model(guidance=False)
    bank, context = model.look(torch.rand(1, 3, 32, 24) * 2 - 1)
    pose = model.pose_guider(torch.rand(1, 8, 3, 32, 24))
    inputs = (torch.randn(1, 8, 4, 8, 6), torch.full((1, 8), 499), context, pose, None, bank)
    free = evaluate.temporal_attention(model.denoising_unet, *inputs)
    causal = evaluate.temporal_attention(model.denoising_unet, *inputs, temporal_mask=losses.causal_mask(8))
    assert free.keys() == causal.keys() and len(free) > 2
    for name in free:
        assert free[name].shape == (8, 8) and np.allclose(free[name].sum(1), 1, atol=1e-5)
        assert (np.triu(causal[name], 1) == 0).all() and (np.triu(free[name], 1) > 0).sum() == 28
    assert not any(module._forward_pre_hooks for module in model.denoising_unet.modules())


def test_motion_gain_compares_stage_2_with_stage_1_clip_by_clip():
    short = override(CONFIG, {"stream.window": 8})
    with_motion, without = evaluate.motion_gain(short, repeats=1)
    assert with_motion.shape == without.shape == (CONFIG.data.test_clips,)
    assert (with_motion > 0).all() and not np.allclose(with_motion, without)
    again, _ = evaluate.motion_gain(short, repeats=1)
    assert np.array_equal(again, with_motion)
