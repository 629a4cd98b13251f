"""What a stream remembers: where a disturbance enters and how far it gets, and that a second picture is looked at."""

import micro
import numpy as np
import pytest

from rainlab import runs
from rainlab.files import write_json
from rainlab.measure import ablations, evaluate, memory, metrics
from rainlab.method.stream import animate
from rainlab.training import stages

CONFIG = micro.micro(data__frames=14, data__test_frames=8)


@pytest.fixture(scope="module", autouse=True)
def weights():
    micro.write_weights(CONFIG)
    write_json(runs.folder() / stages.run_id(CONFIG, "stage2") / "history.json", [])  # a variant starts from it


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(memory, "AT", 8)
    monkeypatch.setattr(memory, "AFTER", 10)
    monkeypatch.setattr(memory, "CLIPS", 2)
    monkeypatch.setattr(memory, "STRENGTHS", (0.0, 1.0))


def test_noise_is_off_in_a_quarter_of_one_group():
    one, other = memory.Disturbed(4, 2), memory.Disturbed(None, 2)
    for call in range(8):
        shape = (1, 2, 4, 8, 6) if call % 2 == 0 else (1, 8, 4, 8, 6)
        difference = one(shape) - other(shape)
        assert difference.any() == (call == 4)
        if call == 4:
            assert np.allclose(difference[..., :4, :3], memory.OFFSET, atol=1e-5) and not difference[..., 4:, :].any()


def test_a_disturbance_reaches_others_through_attention_over_time_alone():
    """At strength 0 it stays in its own group of two; at 1 its neighbours see it, and those before it in the window."""
    model = stages.trained(CONFIG, "distill3d")
    alone, together = (memory.trace(CONFIG, model, strength, clips=2) for strength in (0.0, 1.0))
    assert alone[:2].min() > 0.1 and not alone[2:].any()
    assert together[:2].min() > 0.1 and together[2:8].any()
    with pytest.raises(ValueError, match="steps_per_group: got 2, expected 1"):
        memory.trace(micro.micro(stream__steps_per_group=2), model, 1.0)


def test_a_beginning_is_compared_frame_by_frame():
    """The frames of a soft start are those of a plain stream; those of a filled window stand for the same moments."""
    model, held = stages.trained(CONFIG, "distill3d"), evaluate.held_out(CONFIG, 2)
    soft, filled = memory.beginning(CONFIG, model).values()
    frames = animate(model, held.reference, held.condition, **evaluate.stream_options(CONFIG, model))
    own = [metrics.psnr(frames[:, [i]], held.frames[:, [i]], held.mask[:, [i]]) for i in range(8)]
    assert np.allclose(soft, np.stack(own, 1)) and filled.shape == soft.shape == (2, 8) and not (filled == soft).any()


def test_the_run_holds_strengths_and_pictures_and_is_made_once():
    with pytest.raises(FileNotFoundError, match="record"):
        memory.memory(CONFIG)
    run = memory.memory(CONFIG, record=True)
    assert memory.memory(CONFIG).id == run.id and memory.memory(CONFIG, record=True).id == run.id
    curve = [row for row in run.metrics() if row["metric"] == "disturbed" and row.get("strength") == 1.0]
    assert [row["frame"] for row in curve] == list(range(10))
    held = evaluate.held_out(CONFIG)
    frames = evaluate.generate(CONFIG, "rain", held)
    own = metrics.psnr(frames, held.frames, held.mask).mean()
    assert run.value("psnr_fg", strength=1.0)["value"] == pytest.approx(own, abs=1e-3)
    assert run.value("psnr_fg", shown="the reference")["value"] == pytest.approx(own, abs=1e-3)
    assert run.value("psnr_fg", strength=0.0)["value"] != pytest.approx(own, abs=1e-3)
    cost = {label: run.value("flops", shown=label)["value"] for label in memory.views(CONFIG)}
    assert cost["the reference"] < cost["the reference, twice"] == cost["and a picture from later on"]
    sink, own_history = ablations.CURES
    assert cost["the reference"] < run.value("flops", trained=sink)["value"]
    assert cost["the reference"] == run.value("flops", trained=own_history)["value"]
    for label in ablations.CURES:
        assert len([row for row in run.metrics() if row["metric"] == "disturbed" and row.get("trained") == label]) == 10
        assert run.value("tde", trained=label)["value"] != run.value("tde", strength=1.0)["value"]
    twice, other = (run.value("psnr_fg", shown=label)["value"] for label in list(cost)[1:])
    assert twice != other
