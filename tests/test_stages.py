"""The chain of runs: ids, inputs, initialisation; every stage trains, saves and loads at micro size."""

import hashlib
import json

import micro
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import rainlab
from rainlab import runs
from rainlab.config import PRESETS, make_preset, override
from rainlab.method import checkpoint
from rainlab.method.rain import to_signed
from rainlab.method.stream import Stream
from rainlab.training import loop, stages, weights
from rainlab.training.parameters import dead_parameters, trainable

CONFIG = micro.micro()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All stages trained for a few steps, each run finished."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAINLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
    folder = runs.folder()
    for stage in stages.STAGES:
        run, history = stages.train_stage(CONFIG, stage)
        stages.record_history(run, history)
        run.finish()
    yield folder
    patch.undo()


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(trained))


def test_ids_follow_what_determines_a_result():
    ids = {stage: stages.run_id(CONFIG, stage) for stage in stages.STAGES}
    changed = lambda **change: {s for s in stages.STAGES if stages.run_id(micro.micro(**change), s) != ids[s]}  # noqa: E731
    everything = set(stages.STAGES)
    assert changed(train_autoencoder__steps=9) == changed(data__clips=9) == changed(data__margin=3) == everything
    assert changed(stage1__steps=9) == changed(model__heads=4) == everything - {"autoencoder"}
    assert changed(loss__huber_c=0.1) == everything - {"autoencoder"}
    assert changed(stage2__steps=9) == changed(stream__causal=True) == {"stage2", "distill3d"}
    assert changed(stream__cross_level=False) == {"stage2", "distill3d"}
    assert changed(distill2d__steps=9) == {"distill2d", "distill3d"}
    assert changed(stage1__save_every=7) == changed(stream__guidance=3.0) == changed(data__test_clips=1) == set()


def test_ids_of_what_is_shipped_stay():
    """A changed id would part the shipped weights from their preset: a new field needs `config.added`."""
    shipped = {file.stem for file in weights.SHIPPED.glob("*.safetensors")}
    for preset in map(make_preset, ("small", "tiny")):
        assert {stages.run_id(preset, stage) for stage in stages.STAGES} <= shipped


def test_what_a_later_stage_trained_again_need_not_be_shipped(here, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path / "shipped")
    expected = stages.trained(CONFIG, "distill3d").state_dict()
    again = trainable(stages.build(CONFIG, "distill3d"), "distill3d")
    ids = {stage: stages.run_id(CONFIG, stage) for stage in ("autoencoder", "stage1", "distill3d")}
    for stage, id in ids.items():
        file = weights.ship(id, again if stage == "stage1" else ())
        assert again[0] not in load_file(file) or stage == "distill3d"
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path / "empty"))
    model = stages.trained(CONFIG, "distill3d")
    names, got = {name for stage in ids for name in trainable(model, stage)}, model.state_dict()
    assert all(torch.equal(got[name], expected[name].half().float()) for name in names)


def test_every_stage_is_recorded_and_loads(here):
    for stage in stages.STAGES:
        run = stages.recorded(CONFIG, stage)
        assert run.id == stages.run_id(CONFIG, stage)
        assert [row["step"] for row in run.metrics() if row["metric"] == "loss"] == [1, 2, 3, 4]
        model = stages.trained(CONFIG, stage)
        kept = weights.weights_of(run.id)
        assert set(trainable(model, stage)) <= set(kept)
        state = model.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in kept.items())
    clips = stages.Training(CONFIG, "autoencoder").data()
    latents = model.autoencoder.encode(to_signed(torch.from_numpy(np.stack([clips.take(i)[0][0] for i in range(4)]))))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4  # with the scale that came along
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 1e-3
    stream = Stream(model, 8, 4)
    stream.reference(micro.pictures())
    assert len(stream.push(list(micro.pictures(8)))) == 2


def test_what_a_stage_does_not_train_stays(here):
    before, after = (dict(stages.trained(CONFIG, s).named_parameters()) for s in ("stage1", "stage2"))
    dead = {f"reference_unet.{name}" for name in dead_parameters(micro.model(CONFIG).reference_unet)}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name not in dead)
    assert all(".motion_modules." in name for name in after.keys() - before.keys())


def test_initialisation_of_three_dimensional_distillation(here):
    """Student: 2D consistency model and motion modules; target: the original 2D network and motion modules."""
    model, _, ema = stages.Training(CONFIG, "distill3d").start()
    flat = stages.trained(CONFIG, "distill2d").denoising_unet.state_dict()
    video = stages.trained(CONFIG, "stage2").denoising_unet.state_dict()
    for name, parameter in model.denoising_unet.named_parameters():
        expected = video[name] if ".motion_modules." in name else flat[name]
        assert torch.equal(parameter, expected), name
        start = ema[f"denoising_unet.{name}"]
        assert torch.equal(start, video[name] if name in video else torch.zeros_like(start)), name
    moved = [n for n in video if ".motion_modules." not in n and not torch.equal(video[n], flat[n])]
    assert moved  # otherwise the two initialisations could not be told apart


def test_the_target_of_two_dimensional_distillation_is_the_student(here):
    model, _, ema = stages.Training(CONFIG, "distill2d").start()
    assert all(torch.equal(p, ema[f"denoising_unet.{n}"]) for n, p in model.denoising_unet.named_parameters())
    assert model.denoising_unet.time_embedding.cond_proj.weight.abs().max() > 0  # must not start at zero here


@pytest.mark.parametrize("stage", ["distill2d", "distill3d"])
def test_a_blend_lies_on_the_line_from_the_first_weights_to_the_learned_ones(here, stage):
    def learned(blend: float) -> dict:
        changed = override(CONFIG, {f"{stage}.steps": 3, f"{stage}.blend": blend})
        return weights.weights_of(stages.train_stage(changed, stage, inputs_from=CONFIG)[0].id)

    whole, part = learned(1.0), learned(0.25)
    start = stages.Training(CONFIG, stage).start().average
    assert part.keys() == whole.keys()
    for name, tensor in part.items():
        torch.testing.assert_close(tensor, 0.75 * start[name] + 0.25 * whole[name])
    assert any(not torch.equal(whole[name], start[name]) for name in part)  # otherwise there is no line


@pytest.mark.parametrize(("stage", "blend"), [("distill3d", 0.0), ("distill3d", 1.5), ("stage2", 0.5)])
def test_a_blend_that_means_nothing_is_refused(stage, blend):
    with pytest.raises(ValueError, match=rf"{stage}.blend: got {blend}, expected a share of a distillation"):
        stages.Training(override(CONFIG, {f"{stage}.blend": blend}), stage)


def test_a_trial_is_found_where_its_inputs_end(here):
    """Networks of a stage trained on other stages' weights: those and its own."""
    other = override(CONFIG, {"data.margin": 3, "stage1.steps": 2})
    run, _ = stages.train_stage(other, "stage1", inputs_from=CONFIG)
    state, own = stages.trained(other, "stage1", inputs_from=CONFIG).state_dict(), weights.weights_of(run.id)
    inherited = weights.weights_of(stages.run_id(CONFIG, "autoencoder"))
    assert own and inherited and own.keys().isdisjoint(inherited)
    assert all(torch.equal(state[name], tensor) for name, tensor in (own | inherited).items())
    with pytest.raises(FileNotFoundError):
        stages.trained(other, "stage1")


@pytest.mark.parametrize("stage", ["autoencoder", "stage1", "stage2"])
def test_a_stage_begins_with_what_another_preset_learned(here, monkeypatch, stage):
    field = stages.section(stage)
    preset = override(CONFIG, {f"{field}.start": "tiny", f"{field}.seed": 1})
    monkeypatch.setattr(stages, "make_preset", lambda name: {"tiny": CONFIG}[name])
    training = stages.Training(preset, stage, source=CONFIG)
    model, learned = dict(training.start().model.named_parameters()), weights.weights_of(stages.run_id(CONFIG, stage))
    for name in trainable(training.start().model, stage):
        assert torch.equal(model[name], learned[name]), name
    assert training.describe()[1]["start"] == stages.run_id(CONFIG, stage)
    assert training.id != stages.Training(override(preset, {f"{field}.start": ""}), stage, source=CONFIG).id


def test_what_a_stage_can_not_begin_with_is_refused(here, monkeypatch):
    with pytest.raises(ValueError, match="distill2d.start: got 'tiny', expected none: a student begins as its teacher"):
        stages.Training(override(CONFIG, {"distill2d.start": "tiny"}), "distill2d")
    with pytest.raises(ValueError, match="preset: got 'tinny', expected one of"):
        stages.run_id(override(CONFIG, {"stage1.start": "tinny"}), "stage1")
    wider = override(CONFIG, {"stage1.start": "tiny", "model.channels": (64, 64)})
    monkeypatch.setattr(stages, "make_preset", lambda name: CONFIG)
    with pytest.raises(ValueError, match=r"^stage1-\w+: \S+: got shape .* expected .*; use the weights of"):
        stages.Training(wider, "stage1", source=CONFIG).start()


def test_finished_work_is_not_done_again(here):
    run, history = stages.train_stage(CONFIG, "stage2", each=lambda state: pytest.fail("trained again"))
    assert len(history) == 4 and run.finished


def test_the_command_line_trains_a_stage_of_a_preset(here, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "micro", CONFIG)
    stages.main(["stage1", "--preset", "micro", "--device", "cpu"])
    assert capsys.readouterr().out.startswith(f"{stages.run_id(CONFIG, 'stage1')}: 4 steps, loss ")
    with pytest.raises(SystemExit):
        stages.main(["stage3"])


def test_an_unfinished_training_is_exported_finished_and_continued(here, tmp_path, monkeypatch, capsys):
    longer = override(CONFIG, {"stage1.steps": 6, "stage1.optimizer": "muon"})
    monkeypatch.setitem(PRESETS, "micro", longer)
    files = [str(tmp_path / f"{name}.safetensors") for name in ("reached", "finished")]
    with pytest.raises(FileNotFoundError, match="stage1 of preset tiny: no state.safetensors in its run"):
        stages.main(["stage1", "--preset", "micro", "--export", files[0]])

    def kill(state):
        if state.step == 5:  # saved at 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.train_stage(longer, "stage1", each=kill)
    checkpoint_file = stages.Training(longer, "stage1").checkpoint
    before = checkpoint_file.read_bytes()
    stages.main(["stage1", "--preset", "micro", "--export", files[0]])
    stages.main(["stage1", "--preset", "micro", "--finish", "3", files[1]])
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{files[1]}: 7 steps")
    assert checkpoint_file.read_bytes() == before  # the training itself is left alone
    with safe_open(files[1], "pt") as file:
        assert file.metadata() == {"stage": "stage1", "step": "7", "preset": longer.name, "decayed": "3"}
    step, average = loop.averaged(checkpoint_file)
    reached = load_file(files[0])
    assert step == 4 and all(torch.equal(reached[n], tensor.half()) for n, tensor in average.items())
    assert any(not torch.equal(tensor, reached[n]) for n, tensor in load_file(files[1]).items())

    begun = {}
    again = override(longer, {"stage1.seed": 1})
    run, history = stages.train_stage(again, "stage1", warm=files[0], each=lambda s: begun or begun.update(
        {name: (p.detach() - reached[name].float()).abs().max() for name, p in s.parameters.items()}))  # fmt: skip
    assert begun and max(begun.values()) < 0.1  # one step of warm-up away
    rates = [loop.learning_rate(again.stage1, step, begun=4) for step in (4, 5)]
    assert [(row["step"], row["learning_rate"]) for row in history] == [(5, rates[0]), (6, rates[1])]
    warm = json.loads((run.finish().path / "provenance.json").read_text("utf-8"))["warm"]
    assert warm["file"] == "reached.safetensors" and (warm["step"], warm["stage"]) == ("4", "stage1")
    other = override(longer, {"stage1.seed": 2, "model.cross_attention_dim": 8})
    with pytest.raises(ValueError, match=r"reached.safetensors: .*: got shape .*, expected .* same stage and preset"):
        stages.train_stage(other, "stage1", warm=files[0])
    with pytest.raises(ValueError, match=r"got 4 steps done, expected fewer than stage1.steps = 4"):
        stages.train_stage(override(CONFIG, {"stage1.seed": 3}), "stage1", warm=files[0])


def test_single_values_are_set_on_the_command_line(here, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "micro", CONFIG)
    stages.main(["stage1", "--preset", "micro", "--set", "stage1.steps=1", "model.channels=[32, 32]"])
    assert ": 1 steps, loss" in capsys.readouterr().out


def test_a_trial_starts_from_another_presets_stages(here):
    trial = override(CONFIG, {"stage2.steps": 1, "data.clips": 2})
    with pytest.raises(FileNotFoundError, match="make train"):
        stages.train_stage(trial, "stage2")
    run, history = stages.train_stage(trial, "stage2", inputs_from=CONFIG)
    assert run.inputs == {"stage1": stages.run_id(CONFIG, "stage1")} and len(history) == 1


def test_shipped_weights_are_found(here, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    id = stages.run_id(CONFIG, "stage1")
    shipped = weights.ship(id)
    exact = weights.weights_of(id)
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path / "empty"))
    rounded = weights.weights_of(id)
    assert shipped.stat().st_size < 1.1 * sum(2 * t.numel() for t in exact.values()) + 100_000
    assert rounded.keys() == exact.keys()
    assert all(torch.equal(rounded[n], t.half().float()) for n, t in exact.items())
    sums = (tmp_path / weights.SUMS).read_text("utf-8")
    assert sums == f"{hashlib.sha256(shipped.read_bytes()).hexdigest()}  {shipped.name}\n"
    shipped.write_bytes(shipped.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match=f"{shipped.name}: got sha256 .*, expected .* git checkout"):
        weights.weights_of(id)


def test_the_ready_model_by_name_or_file(here, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "micro", CONFIG)
    ready = rainlab.load("micro")
    assert not ready.training and ready.denoising_unet.cfg.motion and ready.denoising_unet.cfg.guidance_dim
    checkpoint.save_model(ready, tmp_path / "mine.safetensors")
    again = rainlab.load(tmp_path / "mine.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(ready.parameters(), again.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="got 'smal', expected one of .*'small'.* or a model file"):
        rainlab.load("smal")


def test_a_stage_that_was_trained_over_need_not_be_there(here, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    for stage in ("autoencoder", "stage1", "distill3d"):
        weights.ship(stages.run_id(CONFIG, stage))
    expected = stages.trained(CONFIG, "distill3d").denoising_unet
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path / "empty"))
    model = stages.trained(CONFIG, "distill3d").denoising_unet
    assert all(torch.equal(a.half(), b.half()) for a, b in zip(expected.parameters(), model.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="weights of stage2"):
        stages.trained(CONFIG, "stage2")


def test_whole_models_in_one_file(here, tmp_path):
    model, path = stages.trained(CONFIG, "distill3d"), tmp_path / "model.safetensors"
    checkpoint.save_model(model, path)
    again = checkpoint.load_model(path)
    assert again.preset == CONFIG
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        checkpoint.load_model(path)
    other = weights.SHIPPED / "none"
    with pytest.raises(FileNotFoundError, match="make train"):
        weights.weights_file(other.name)


def test_unknown_stages_are_named():
    with pytest.raises(ValueError, match="got 'stage3'"):
        stages.run_id(CONFIG, "stage3")


def test_damaged_weights_are_named_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    (tmp_path / "stage1-0.safetensors").write_bytes(b"\x09")
    with pytest.raises(ValueError, match="stage1-0.*: got sha256 .*, expected one in SHA256SUMS: .* git checkout"):
        weights.weights_of("stage1-0")
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    (tmp_path / "stage1-1").mkdir()
    (tmp_path / "stage1-1" / "weights.safetensors").write_bytes(b"\x09")
    with pytest.raises(ValueError, match="weights of stage1-1: .* delete its run and call `make train`"):
        weights.weights_of("stage1-1")
