"""The pose-driven systems side by side: what is timed makes the frames it says, and memory is that of a process."""

import micro
import numpy as np
import pytest

from rainlab.measure import systems

CONFIG = micro.micro(data__height=32, data__width=24)
LITTLE = {"steps": 2, "inner": 1}


def test_a_run_has_all_of_them_beside_rain(monkeypatch):
    with pytest.raises(FileNotFoundError, match="python -m rainlab.measure.systems --preset tiny"):
        systems.compare(CONFIG)
    films = []
    monkeypatch.setattr(systems, "ROUNDS", 1)
    monkeypatch.setattr(systems, "_frames", lambda call: films.append(call()) or len(films[-1]))
    monkeypatch.setattr(systems, "peak_alone", lambda preset, label, **options: 1e9 + len(label))
    run = systems.compare(CONFIG, record=True, **LITTLE)
    assert systems.compare(CONFIG).id == run.id
    labels = {row["contender"] for row in run.metrics() if row["metric"] == "frames_per_second"}
    assert labels == {"RAIN", "RAIN, fast", "AnimateAnyone", "PoseAnimate"}
    value = {label: run.value("speed", contender=label)["value"] for label in labels}
    assert value["RAIN"] == 1 and min(value.values()) > 0
    work = {label: run.value("flops_per_frame", contender=label)["value"] for label in labels - {"RAIN, fast"}}
    assert work["PoseAnimate"] > 2 * work["AnimateAnyone"]  # its embeddings are optimised, at each step
    waits = {label: run.value("latency_frames", contender=label)["value"] for label in labels}
    assert waits["AnimateAnyone"] == waits["PoseAnimate"] == CONFIG.stream.window >= waits["RAIN"]
    assert run.value("peak_bytes", contender="RAIN")["value"] == 1e9 + 4
    assert {film.shape for film in films} == {(CONFIG.stream.window, 32, 24, 3)}
    assert all(film.dtype == np.uint8 and film.std() > 0 for film in films)


def test_memory_is_that_of_a_process_of_its_own():
    nothing, whole = (systems.peak_alone("tiny", label, **LITTLE) for label in (systems.NOTHING, "AnimateAnyone"))
    assert 1e8 < nothing < whole
