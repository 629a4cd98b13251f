"""Detectors say what is missing; what their files do needs the files (`pytest --paper`)."""

import sys

import pytest

from rainlab.data import detect


def test_missing_files_are_named_with_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(detect, "root", lambda: tmp_path)
    detect.folder().mkdir(parents=True)
    (detect.folder() / detect.FILES[0]).touch()
    with pytest.raises(FileNotFoundError, match=r"dw-ll_\w+.onnx missing in weights/dwpose/; .*yzd-v/DWPose") as told:
        detect.body_detector()
    assert detect.FILES[0] not in str(told.value)


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(detect, "root", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    detect.folder().mkdir(parents=True)
    for name in detect.FILES:
        (detect.folder() / name).touch()
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e \.\[detect\]"):
        detect.body_detector()
