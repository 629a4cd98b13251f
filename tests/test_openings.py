"""The network that sees how far eyes and mouth are open: what it should say, and that it learns to."""

import numpy as np
import pytest
import torch

from rainlab.data.studio import body, face
from rainlab.data.studio.expression import pose_of
from rainlab.measure import openings

SMALL = openings.CONFIG | {"characters": 50, "steps": 100, "learning_rate": 3e-3, "batch": 16, "tests": 50}


def test_openings_are_the_distances_between_lids_and_lips():
    poses = [{}, {"eye_wink_left": 1.0}, {"eye_wink_right": 1.0}, {"mouth_aaa": 1.0}]
    pose = torch.cat([pose_of(each) for each in poses])[None]
    points = face.landmarks(body.split_seeds("val", 1), pose, openings.SIZE)[0][0].numpy()
    right, left, mouth = openings.openings(points).T
    assert left[1] < 0.2 * left[0] and right[2] < 0.2 * right[0] and mouth[3] > mouth[0] + 0.02
    assert left[2] == left[0] and right[1] == right[0] and mouth[1] == mouth[2] == mouth[0]
    gaps = [np.linalg.norm(points[0, a] - points[0, b]) for a, b in ((37, 41), (38, 40))]
    assert right[0] == pytest.approx(np.mean(gaps))


def test_a_training_learns_and_is_recorded_once(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    run = openings.trained(record=True, config=SMALL)
    curve = [row["value"] for row in run.metrics() if row["metric"] == "loss"]
    assert curve[-1] < 0.9 * curve[0]
    for part in openings.NAMES:
        error, spread, alike = (
            run.value("opening_" + name, part=part)["value"] for name in ("error", "spread", "correlation")
        )
        assert error > 0 and spread > 0 and -1 <= alike <= 1
    assert openings.trained(config=SMALL).id == run.id
    with pytest.raises(FileNotFoundError):
        openings.trained(config=SMALL | {"seed": 1})


def test_softened_pictures_keep_their_size_and_range():
    pictures = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    soft = openings._softened(pictures, torch.Generator().manual_seed(1))
    assert soft.shape == pictures.shape and soft.min() >= 0 and soft.max() <= 1
    assert (soft != pictures).any()


def test_the_shipped_network_sees_what_a_face_does():
    """As well as is recorded, on characters that training never saw."""
    run = openings.trained()
    for part in openings.NAMES:
        error, spread = (run.value("opening_" + name, part=part)["value"] for name in ("error", "spread"))
        assert run.value("opening_correlation", part=part)["value"] > 0.9 and error < 0.4 * spread
    who = body.split_seeds("val", 12)
    clips = face.render(who, who, 4, (128, 128), fps=0.5)
    told = 100 * openings.openings(clips.landmarks.numpy())
    said = openings.seen(clips.frames.numpy())
    assert said.shape == told.shape == (12, 4, 3)
    for part in range(3):
        assert np.corrcoef(said[..., part].ravel(), told[..., part].ravel())[0, 1] > 0.85
