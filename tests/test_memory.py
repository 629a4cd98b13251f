"""What a stream remembers: where a disturbance enters and how far it gets, and that a second picture is looked at."""

import micro
import numpy as np
import pytest

from rainlab.measure import evaluate, memory, metrics
from rainlab.training import stages

CONFIG = micro.micro()


@pytest.fixture(scope="module", autouse=True)
def weights():
    micro.write_weights(CONFIG)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(memory, "AT", 20)
    monkeypatch.setattr(memory, "AFTER", 20)
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


def test_the_run_holds_strengths_and_pictures_and_is_made_once():
    with pytest.raises(FileNotFoundError, match="record"):
        memory.memory(CONFIG)
    run = memory.memory(CONFIG, record=True)
    assert memory.memory(CONFIG).id == run.id and memory.memory(CONFIG, record=True).id == run.id
    curve = [row for row in run.metrics() if row["metric"] == "disturbed" and row["strength"] == 1.0]
    assert [row["frame"] for row in curve] == list(range(20))
    held = evaluate.held_out(CONFIG)
    frames = evaluate.generate(CONFIG, "rain", held)
    own = metrics.psnr(frames, held.frames, held.mask).mean()
    assert run.value("psnr_fg", strength=1.0)["value"] == pytest.approx(own, abs=1e-3)
    assert run.value("psnr_fg", shown="the reference")["value"] == pytest.approx(own, abs=1e-3)
    assert run.value("psnr_fg", strength=0.0)["value"] != pytest.approx(own, abs=1e-3)
    cost = {label: run.value("flops", shown=label)["value"] for label in memory.views(CONFIG)}
    assert cost["the reference"] < cost["the reference, twice"] == cost["and a picture from later on"]
    twice, other = (run.value("psnr_fg", shown=label)["value"] for label in list(cost)[1:])
    assert twice != other
