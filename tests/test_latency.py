"""rainlab.measure.latency: what waits for what; never how long this machine takes."""

from dataclasses import replace

import micro
import numpy as np
import pytest
import torch

from rainlab.config import make_preset
from rainlab.measure import latency

CONFIG = micro.micro()
OWN = CONFIG.stream


def test_one_thing_is_varied_at_a_time():
    preset = make_preset("small")
    found = latency.settings(preset)
    assert list(found)[0] == "K = 16, p = 4, N = 1" and len(found) == 6
    for cfg in found.values():
        assert sum(getattr(cfg, name) != getattr(preset.stream, name) for name in vars(cfg)) <= 1
    assert all(cfg.window <= CONFIG.model.motion_length for cfg in latency.settings(CONFIG).values())


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_a_stream_that_cannot_keep_up_has_a_queue_that_grows(threads):
    found = latency.watch(CONFIG, OWN, rate=1e6, seconds=12e-6 * OWN.window, threads=1)
    size = OWN.window // OWN.groups
    assert len(found.tick) == round(12 * OWN.window / size) - OWN.groups + 1  # the soft start makes no frames
    assert (np.diff(found.queue) > 0).all()
    assert (sum(found.parts.values()) <= found.tick).all() and all((part > 0).all() for part in found.parts.values())
    waited = found.queue[0] + OWN.window / 1e6 + found.tick[0]
    assert found.first_frame == pytest.approx(waited, rel=0.05) and found.first_frame < found.ready
    assert found.weights > 0 and found.peak >= 0


def test_a_first_frame_waits_for_its_window(threads):
    rate = 50.0
    found = latency.watch(CONFIG, OWN, rate, seconds=0.1, threads=1)
    assert found.first_frame >= (OWN.window - 1) / rate and (found.queue >= 0).all()


def test_latency_is_window_queue_and_tick(monkeypatch):
    queue, tick = np.array([0.0, 0.1, 0.0]), np.array([0.2, 0.2, 0.4])
    parts = {"guider": tick / 4, "network": tick / 2, "decoder": tick / 4}
    watched = latency.Watched(queue, tick, parts, first_frame=3.0, ready=1.0, weights=10, peak=20)
    seen = []

    def watch(preset, cfg, *given):
        seen.append((cfg, given))
        return watched

    monkeypatch.setattr(latency, "watch", watch)
    monkeypatch.setattr(latency, "ProcessPoolExecutor", Here)
    run = latency.latency(CONFIG, record=True, seconds=7.0)
    assert [cfg for cfg, _ in seen] == list(latency.settings(CONFIG).values())
    rate = CONFIG.data.fps
    assert {given[:2] for _, given in seen} == {(rate, 7.0)}
    for cfg in (OWN, replace(OWN, steps_per_group=2)):
        about = {"setting": latency.label(cfg)}
        late = (cfg.window - 1) / rate + queue + tick
        for q in (0.5, 0.95, 0.99):
            assert run.value("latency", quantile=q, **about)["value"] == pytest.approx(np.quantile(late, q))
            assert run.value("stage", quantile=q, part="network", **about)["value"] == pytest.approx(
                np.quantile(tick, q) / 2)  # fmt: skip
        assert run.value("jitter", **about)["value"] == pytest.approx((0.1 + 0.1) / 2)
        assert run.value("busy", **about)["value"] == pytest.approx(tick.mean() * rate * cfg.groups / cfg.window)
    assert latency.latency(CONFIG).id == run.id
    with pytest.raises(FileNotFoundError, match="nothing recorded for latency"):
        latency.latency(micro.micro(data__height=64))


class Here:
    """An executor that runs what it gets, here."""

    def __init__(self, *given):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *given):
        pass

    def submit(self, function, *given):
        result = function(*given)
        return type("Done", (), {"result": lambda self: result})()
