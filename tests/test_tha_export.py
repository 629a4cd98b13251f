"""A student as one graph: the same pictures, from PyTorch and from onnxruntime."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rainlab.baselines import siren, tha, tha_export
from rainlab.data.studio.expression import POSE, pose_of


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(3)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[16:60, 20:50] = np.random.default_rng(0).integers(0, 256, (44, 30, 4))
    face, body = siren.FaceMorpher(24, 3, 16), siren.BodyMorpher(((20, 16), (14, 12), (10,)), 64)
    return tha.Student(tha.from_picture(picture), face.requires_grad_(False), body.requires_grad_(False), (18, 24))


POSES = [pose_of({}), pose_of({"head_y": 0.6, "mouth_aaa": 1.0}), pose_of({"body_z": -1.0})]


@pytest.mark.parametrize("pose", POSES)
def test_the_graph_draws_what_the_student_does(student, pose):
    made, expected = tha_export.Graph(student)(pose[0].float()).numpy(), student.frame(pose[0])
    assert made.dtype == np.uint8 and made.shape == (64, 64, 4)
    assert np.abs(made.astype(int) - expected).max() <= 1


def test_onnxruntime_draws_the_same_picture(student, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tha_export.to_onnx(student, tmp_path / "character.onnx")
    runs = tha_export.OnnxStudent(path, 1)
    for pose in POSES:
        assert np.abs(runs.frame(pose[0]).astype(int) - student.frame(pose[0])).max() <= 1
    assert not np.array_equal(runs.frame(POSES[0][0]), runs.frame(POSES[1][0]))
    assert runs.frame(np.zeros(len(POSE))).shape == (64, 64, 4)


def test_a_folder_becomes_a_file(tmp_path, capsys):
    pytest.importorskip("onnxscript")
    picture = np.zeros((512, 512, 4), np.uint8)
    picture[100:400, 150:350] = (90, 40, 200, 255)
    Image.fromarray(picture).save(tmp_path / "character.png")
    torch.save(siren.FaceMorpher().state_dict(), tmp_path / "face_morpher.pt")
    torch.save(siren.BodyMorpher().state_dict(), tmp_path / "body_morpher.pt")
    tha_export.main([str(tmp_path), str(tmp_path / "made.onnx")])
    megabytes = (tmp_path / "made.onnx").stat().st_size / 1e6
    assert f"made.onnx: {megabytes:.1f} MB" in capsys.readouterr().out and 4 < megabytes < 20


def test_without_the_extra_it_says_so(student, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e .\[export\]"):
        tha_export.to_onnx(student, tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e .\[export\]"):
        tha_export.OnnxStudent(tmp_path / "x.onnx")
