"""What is timed draws the same pictures."""

import numpy as np
import pytest
import torch
from test_tha import poses, student  # noqa: F401  the published students' goldens
from test_tha_export import POSES
from test_tha_export import student as small  # noqa: F401

from rainlab import runs
from rainlab.baselines import tha
from rainlab.measure import bench, student_speed, students


def test_the_published_algorithm_is_the_published_one(student):  # noqa: F811
    ours = student.draw(poses()[1]).blended
    torch.testing.assert_close(student_speed.published(student, poses()[1]), ours, atol=2e-4, rtol=0)


def test_all_contenders_show_the_same(small):  # noqa: F811
    with torch.inference_mode():
        expected = tha.to_picture(student_speed.published(small, POSES[1][0].float()), straight=False)
        assert np.abs(small.frame(POSES[1][0], straight=False).astype(int) - expected).max() <= 1


def test_a_speed_is_recorded_with_what_it_was_measured_on(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="python -m rainlab.measure.student_speed"):
        monkeypatch.setattr(runs, "published", lambda: tmp_path / "none")
        student_speed.speed()
    monkeypatch.setattr(student_speed, "ROUNDS", 1)
    monkeypatch.setattr(student_speed, "find_spec", lambda name: None)
    monkeypatch.setattr(student_speed, "UNSEEN", 1)
    run, drawn = student_speed.speed(record=True), [student_speed.FIRST, "here", "here, the head alone"]
    assert student_speed.speed().id == run.id
    assert run.config["weights"] == "random" and run.config["threads"] == torch.get_num_threads()
    labels = [row["contender"] for row in run.metrics() if row["metric"] == "frames_per_second"]
    assert labels == [*drawn, *students.ARCHITECTURES[1:]]
    assert run.value("speed", contender=student_speed.FIRST)["value"] == 1
    assert all(run.value("grey_levels", contender=label)["value"] <= 1 for label in drawn)
    assert all(run.value("grey_levels", contender=label)["n"] == 1 for label in drawn)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / tha.FILES["body_morpher_file_name"]).write_bytes(b"another student")
    with pytest.raises(FileNotFoundError, match="student_speed .*other"):
        student_speed.speed(tmp_path / "other")
    assert run.value("frames_per_second", contender="here")["protocol"] == bench.PROTOCOL
