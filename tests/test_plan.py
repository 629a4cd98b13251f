"""The plan of a training: counted bytes against those that real passes hold, and what follows for a GPU."""

import micro
import pytest
import torch

from rainlab.config import make_preset, override
from rainlab.data.dataset import Draw
from rainlab.measure import count, plan, ways
from rainlab.training import loop, optim, stages
from rainlab.training.parameters import STAGES, trainable

PRESET = micro.micro()


def held(preset, stage, samples):
    """Most bytes that a real pass held, by the allocator's own events; and the networks, with gradients."""
    loss, model, _ = count.networks(preset, stage, "cpu")
    batch = count.empty_batch(preset, stage, samples, model.autoencoder.latent_channels)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        loss(batch, Draw(0, 0, range(samples))).backward()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # in the order of time
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak, model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_counted_bytes_are_those_that_a_pass_holds(stage, checkpointing):
    if stage == "autoencoder" and checkpointing:
        pytest.skip("it has none")
    preset = override(PRESET, {f"{stages.section(stage)}.checkpointing": checkpointing})
    need = count.count(preset, stage, 2)
    got, model = held(preset, stage, 2)
    assert need.activations + need.gradients == pytest.approx(got, rel=0.01)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert need.weights == 4 * sum(p.numel() for p in parameters)
    assert need.gradients == 4 * sum(p.grad.numel() for p in parameters if p.grad is not None) > 0
    assert need.peak > need.activations + need.gradients + need.optimizer + need.weights


@pytest.mark.parametrize("stage", ["stage1", "distill3d"])
def test_operations_are_those_of_torch_s_counter(stage):
    loss, model, _ = count.networks(PRESET, stage, "cpu")
    batch = count.empty_batch(PRESET, stage, 1, model.autoencoder.latent_channels)
    counted = ways.flops(lambda: loss(batch, Draw(0, 0, range(1))).backward())
    assert count.count(PRESET, stage).flops == counted > 1e6


def test_checkpointing_bf16_and_accumulation_do_what_they_are_for():
    plain = count.count(PRESET, "stage2", 2)
    saved = count.count(override(PRESET, {"stage2.checkpointing": True}), "stage2", 2)
    assert saved.activations < 0.6 * plain.activations and 1.2 < saved.flops / plain.flops < 1.5
    half = count.count(PRESET, "stage2", 2, bf16=True)
    assert 0.4 * plain.activations < half.activations < 0.9 * plain.activations and half.flops == plain.flops
    assert half.weights == plain.weights  # the copies that autocast makes are not what is trained
    more = count.count(PRESET, "stage2", 2, accumulating=True)
    assert plain.activations <= more.activations <= plain.activations + plain.gradients
    with pytest.raises(ValueError, match="samples: got 0, expected at least 1"):
        count.count(PRESET, "stage2", 0)
    with pytest.raises(ValueError, match="stage: got 'stage3'"):
        count.count(PRESET, "stage3")


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw8bit"])
def test_the_optimiser_s_bytes_are_those_it_keeps(optimizer):
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason='needs the extra memory: pip install -e ".[memory]"')
    cfg = override(PRESET, {"stage1.optimizer": optimizer}).stage1
    _, model, _ = count.networks(PRESET, "stage1", "cpu")
    state = loop.start(model, trainable(model, "stage1"), cfg)
    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    kept = 0
    for values in state.optimizer.state.values():
        tensors = [v for key, v in values.items() if key != "step" and not key.startswith("qmap")]
        kept += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert optim.state_bytes(state.parameters, cfg) == kept > 0


def test_what_fits_on_a_gpu():
    one, two = plan._one_and_two(PRESET, "stage2")
    each = two.peak - one.peak
    cfg = override(PRESET, {"stage2.batch": 6})
    size = lambda samples: (one.peak + (samples - 0.5) * each) / plan.USABLE  # noqa: E731
    for room, samples in ((0.4, 0), (1, 1), (2, 2), (4, 3), (5, 3), (6, 6), (9, 6)):
        got = plan.fit(cfg, "stage2", plan.Gpu(size(room) if samples else one.peak, 1e12))
        assert got["samples"] == samples, "the largest share of six that there is room for"
        assert got["accumulate"] == (6 // samples if samples else 0)
    least, most = got["hours"]
    steps = cfg.stage2.steps * 6 * (two.flops - one.flops) / 3600e12
    assert (least, most) == pytest.approx((steps / plan.SHARE[1], steps / plan.SHARE[0]))


def test_the_paper_s_model_counts_as_published(tmp_path, monkeypatch):
    """860 million parameters of SD 1.5 twice, 454 million of AnimateDiff; a GPU of 24 GB holds three stages of four."""
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    paper = make_preset("paper", {"data.height": 64, "data.width": 64})  # weights are what counts here
    motion = count.count(paper, "stage2", bf16=True)
    assert motion.weights == pytest.approx(4 * 454e6, rel=0.01)
    assert motion.frozen == pytest.approx(4 * (2 * 860e6 + 304e6 + 84e6), rel=0.02)
    assert plan.lighter(paper, "stage1") == {
        "stage1.optimizer": "adamw8bit", "stage1.ema": 0.0, "stage1.checkpointing": True
    }  # fmt: skip
    assert "distill2d.ema" not in plan.lighter(paper, "distill2d")


def test_a_recorded_table_is_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(plan, "STAGES", ("stage1",))
    monkeypatch.setattr(plan, "GPUS", {"some": plan.Gpu(2**30, 1e12), "none": plan.Gpu(1, 1e12)})
    run = plan.record(PRESET)
    rows = plan.table(PRESET)
    assert plan.recorded(run)[rows.columns].to_dict() == rows.to_dict()
    assert plan.record(PRESET).metrics() == run.metrics()
    words = plan.shown(rows)
    assert list(words["at once × passes"]) == ["2 × 1", "does not fit"] * 2
    assert "hours at 50% to 20% of its peak" in words


def test_the_command_line(capsys):
    none = [f"{stage}.steps=0" for stage in ("train_autoencoder", "stage1", "distill2d", "distill3d")]
    plan.main(["--preset", "tiny", "--gpu", "RTX 4090", "--set", "data.height=32", "data.width=24", *none])
    said = capsys.readouterr().out
    assert said.count("RTX 4090") == said.count("stage2") == 2 and "does not fit" not in said


def test_passes_are_measured_in_their_own_process(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(plan, "CHECKED", [("stage2", False)])
    preset = make_preset("tiny", {"stage2.batch": 2})  # large enough to be more than the process held before
    run = plan.check(preset)
    labels = {"stage": "stage2", "checkpointing": False}
    counted = count.count(preset, "stage2", 2)
    assert run.value("counted_bytes", **labels)["value"] == counted.activations + counted.gradients
    assert all(run.value(metric, **labels)["value"] > 0 for metric in ("measured_bytes", "seconds", "product_rate"))
    assert plan.check(preset).metrics() == run.metrics()
