"""AnimateAnyone's Table 3 in the harness: equal arithmetic, the same frames, and every number from them."""

from functools import partial

import micro
import numpy as np
import pytest

from rainlab.config import override
from rainlab.measure import count, metrics, tables
from rainlab.measure import reference_designs as designs
from rainlab.method.designs import DESIGNS
from rainlab.training import stages

CONFIG = micro.micro(data__test_clips=3, data__test_frames=9)


@pytest.mark.parametrize("design", DESIGNS)
def test_every_design_gets_the_same_arithmetic(design):
    longer = override(CONFIG, {"stage1.steps": 1000})
    each = designs.variant(longer, design, seed=1)
    spent = [p.stage1.steps * count.count(p, "stage1").flops for p in (longer, each)]
    assert spent[1] == pytest.approx(spent[0], rel=2e-3)
    assert (each.stage1.steps > 1000) == (design == "clip") and each.stage1.seed == longer.stage1.seed + 1
    assert (each.stage1.steps == 1000) == (design == "reference")
    assert stages.run_id(designs.variant(CONFIG, "reference"), "stage1") == stages.run_id(CONFIG, "stage1")


def test_designs_are_compared_on_the_same_frames(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(designs, "STEPS", 2)
    micro.write_weights(CONFIG, only=("autoencoder",))
    run = designs.compare(CONFIG, seeds=(0, 1), record=True)
    held = designs.some(CONFIG)
    assert (
        held.frames.shape[:2] == (3, 3) and (held.frames[:, 1] == designs.evaluate.held_out(CONFIG).frames[:, 4]).all()
    )
    by_hand = {}
    for design in DESIGNS:
        for seed in (0, 1):
            made = designs.images(designs.variant(CONFIG, design, seed), held)
            by_hand[design, seed] = metrics.psnr(made, held.frames)
            row = designs.measure(CONFIG, design, seed).value("psnr")
            assert row["value"] == pytest.approx(by_hand[design, seed].mean()) and row["n"] == 3
        whole = run.value("psnr", design=design)
        assert whole["value"] == pytest.approx(np.mean([by_hand[design, seed] for seed in (0, 1)]))
        assert whole["ci_low"] <= whole["value"] <= whole["ci_high"]
    change = run.value("psnr_change", design="clip")["value"]
    assert change == pytest.approx(np.mean([by_hand["clip", s] - by_hand["reference", s] for s in (0, 1)]))
    assert designs.compare(CONFIG, seeds=(0, 1)).id == run.id
    monkeypatch.setattr(designs, "compare", partial(designs.compare, seeds=(0, 1)))
    table = tables.designs(CONFIG).set_index("method")
    assert len(table) == 2 * len(DESIGNS) - 1 and table.loc["ControlNet", "n"] == "2 × 16"
    row = run.value("psnr_change", design="clip")
    assert table.loc["image encoder, against reference network", "PSNR ↑"] == tables.cell(row, 2)
    assert table.loc["image encoder", "PSNR ↑"] == tables.cell(run.value("psnr", design="clip"), 2)
    behind = {one.name for one in designs.behind(CONFIG)}
    assert behind == {"designs", "design", "stage1"} and len(designs.behind(CONFIG)) == 1 + 2 * 8
    assert designs.compare(CONFIG, seeds=(0,), record=True).inputs.items() <= run.inputs.items()
    with pytest.raises(FileNotFoundError, match="nothing recorded"):
        designs.compare(CONFIG, seeds=(0, 2))
    with pytest.raises(FileNotFoundError, match="nothing recorded"):
        designs.compare(override(CONFIG, {"data.test_gap": 4}), seeds=(0, 1))
    with pytest.raises(ValueError, match="got a stage 1 that starts from 'tiny', expected none"):
        designs.variant(override(CONFIG, {"stage1.start": "tiny"}), "clip")
