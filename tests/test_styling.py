"""Streets in styles: what is compared by camera and second, and who is told what."""

import micro
import numpy as np
import pytest

from rainlab.data import dataset
from rainlab.data.scenes import StudioScenes
from rainlab.measure import evaluate, metrics, styling

CONFIG = micro.micro(
    data__source="scenes", data__height=32, data__width=32, data__test_clips=10, data__test_frames=8, data__fps=4.0
)


def test_cameras_are_compared_on_the_same_frames(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    micro.write_weights(CONFIG)
    run = styling.cameras(CONFIG, record=True)
    held, moves = evaluate.held_out(CONFIG), dataset.clips_of(CONFIG.data, "test").cameras()
    assert 0 < moves.sum() < 10
    copied = evaluate.generate(CONFIG, "copy", held)
    for camera, chosen in (("moves", moves), ("stands", ~moves)):
        expected = metrics.psnr(copied[chosen], held.frames[chosen])
        rows = [row for row in run.metrics() if row["metric"] == "psnr" and row["method"] == "copy"]
        whole, *seconds = (row for row in rows if row["camera"] == camera)
        assert whole["value"] == pytest.approx(expected.mean()) and whole["n"] == chosen.sum()
        assert [row["second"] for row in seconds] == [0, 1]
        last = metrics.psnr(copied[chosen, 4:], held.frames[chosen, 4:])
        assert seconds[1]["value"] == pytest.approx(last.mean())
    assert run.value("tde", method="rain", camera="moves")["value"] > 0
    assert styling.cameras(CONFIG).id == styling.cameras(CONFIG, record=True).id == run.id
    with pytest.raises(FileNotFoundError, match="nothing recorded"):
        styling.cameras(micro.micro(data__source="scenes", data__height=32, data__width=32))


def test_clips_say_whose_camera_moves():
    clips = StudioScenes("test", 4, frames=6, size=(32, 32), start=8)
    still = np.array([(clip.flow[:, 0, 0] == 0).all() for clip in clips])  # the sky at a corner, or a house
    assert clips.cameras().tolist() == (~still).tolist() == [True, False, True, False]
    assert (
        StudioScenes("test", 3, moving=True).cameras().all()
        and not StudioScenes("test", 3, moving=False).cameras().any()
    )


def test_a_street_in_several_styles():
    model = micro.model(CONFIG)
    depth, truth, films = styling.styled(CONFIG, 2, ("plain", "etching"), 9, model)
    assert depth.shape == truth["plain"].shape == films["etching"].shape == (9, 32, 32, 3)
    assert [*films] == ["plain", "etching"] and (truth["plain"] != truth["etching"]).any()
    alone = styling.styled(CONFIG, 2, ("etching",), 9, model)
    assert np.array_equal(alone[0], depth) and np.array_equal(alone[1]["etching"], truth["etching"])
    assert (styling.styled(CONFIG, 2, ("plain",), 9, model, moving=True)[0] != depth).any()
    with pytest.raises(ValueError, match="styles: got 'baroque'"):
        styling.styled(CONFIG, 2, ("baroque",), 9, model)
