"""The grid of ablations: what each variant changes, what a resumed one computes again, and how sure its numbers are."""

import json

import micro
import numpy as np
import pytest

from rainlab.config import make_preset
from rainlab.measure import ablations, evaluate
from rainlab.training import stages

SIZE = {"data__height": 64, "data__width": 48, "data__test_frames": 17}  # what the features see
CONFIG = micro.micro(**SIZE, autoencoder__factor=8, model__guider_widths=(8, 8, 8, 16))
FEW = {
    ablations.BASE: {},
    "causal mask": {"stream.causal": True},
    "N = 2 (p·N = 8)": {"stream.steps_per_group": 2},
}


def test_one_factor_at_a_time_and_eleven_trainings_a_seed():
    preset = make_preset("tiny")
    found = {label: ablations.variant(preset, label) for label in ablations.CHANGES}
    assert found[ablations.BASE] == preset
    assert len({stages.run_id(changed, "distill3d") for changed in found.values()}) == 11
    assert len({stages.run_id(changed, "distill2d") for changed in found.values()}) == 1
    eight = [p for label, p in found.items() if "p·N = 8" in label]
    assert [p.stream.groups * p.stream.steps_per_group for p in eight] == [8] * 3
    for label in ("K = 8, equal frames", "K = 32, equal frames"):
        seen = found[label].stage2.steps * found[label].stream.window
        assert seen == preset.stage2.steps * preset.stream.window
    assert max(p.stream.window for p in found.values()) <= preset.data.frames - preset.data.facing
    other = ablations.variant(preset, ablations.BASE, 1)
    assert stages.run_id(other, "stage2") != stages.run_id(preset, "stage2")
    with pytest.raises(ValueError, match="label: got 'K = 4', expected one of"):
        ablations.variant(preset, "K = 4")


def test_a_grid_is_recorded_once_and_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(ablations, "CHANGES", FEW)
    micro.write_weights(CONFIG, ("autoencoder", "stage1", "distill2d"))
    with pytest.raises(FileNotFoundError, match="record"):
        ablations.grid(CONFIG, (0, 1))
    asked, measure, stop = [], evaluate.measure, [True]

    def broken(preset, method, record=False):
        if record:
            asked.append((preset.stream.causal, preset.stream.steps_per_group, preset.stage2.seed, method))
        if stop and record and len(asked) == 4:
            stop.clear()
            raise KeyboardInterrupt
        return measure(preset, method, record)

    monkeypatch.setattr(evaluate, "measure", broken)
    with pytest.raises(KeyboardInterrupt):
        ablations.grid(CONFIG, (0, 1), record=True)
    asked.clear()
    run = ablations.grid(CONFIG, (0, 1), record=True)
    assert len(asked) == 2 * 5 - 3 and run.finished and ablations.grid(CONFIG, (0, 1)).id == run.id
    own = json.loads((measure(CONFIG, "rain").path / "values.json").read_text())
    row = run.value("psnr", variant=ablations.BASE, method="rain", seed=0)
    assert row["value"] == pytest.approx(np.mean(own["psnr"])) and row["n"] == 2
    both = [run.value("psnr", variant="causal mask", method="undistilled", seed=s)["value"] for s in (0, 1)]
    mean = run.value("psnr", variant="causal mask", method="undistilled", seed="all")["value"]
    assert mean == pytest.approx(np.mean(both))
    base = run.value("psnr", variant=ablations.BASE, method="undistilled", seed="all")["value"]
    change = run.value("psnr_change", variant="causal mask", method="undistilled")
    assert change["value"] == pytest.approx(mean - base) and change["ci_low"] <= change["value"] <= change["ci_high"]
    assert run.value("fvd_studio", variant="N = 2 (p·N = 8)", method="rain", seed="all")["value"] > 0


def test_what_is_missing_is_counted_in_proportion(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(ablations, "CHANGES", FEW)
    monkeypatch.setattr(ablations, "evaluation_seconds", lambda preset: 8.0)
    micro.write_weights(CONFIG, ("autoencoder", "stage1", "distill2d"))
    for stage in stages.WINDOWED:
        stages.finished(CONFIG, stage)
    own = {}
    for stage in stages.WINDOWED:
        loss = [row for row in stages.recorded(CONFIG, stage).metrics() if row["metric"] == "loss"]
        own[stage] = loss[-1]["seconds"]
    # of one seed: the causal training, and all five measurements, one of them with twice the calls
    expected = (sum(own.values()) + 8.0 * (2 + 2 + 2)) / 3600
    assert ablations.cost(CONFIG, (0,)) == pytest.approx(expected)


def test_an_interval_over_seeds_and_clips_holds_both():
    rng = np.random.default_rng(0)
    clips, seeds = rng.normal(size=(1, 64)), np.array([[-1.0], [0.0], [1.0]])
    narrow, wide = (ablations.over_seeds(np.broadcast_to(x, (3, 64))) for x in (clips, clips + seeds))
    assert wide.value == pytest.approx(narrow.value) and wide.n == 64
    assert ablations.over_seeds(np.array([[0.5]])) == (0.5, None, None, 1)
    assert wide.ci_high - wide.ci_low > 2 * (narrow.ci_high - narrow.ci_low)
