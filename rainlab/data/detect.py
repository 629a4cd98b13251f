"""Detectors: key points of people in camera pictures, with files that lie on this machine; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rainlab.files import root

# DWPose (https://huggingface.co/yzd-v/DWPose): who is where, and whole-body key points
FILES = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")


def folder() -> Path:
    """Where DWPose's files are looked for: `weights/dwpose/` in the project root."""
    return root() / "weights" / "dwpose"


def body_detector(device: str = "cpu") -> Callable[[np.ndarray], np.ndarray | None]:
    """DWPose through onnxruntime: a picture uint8 (h, w, 3) -> key points float (18, 3) as `pose.draw` takes them.

    Of several people the one that is seen best; None where nobody is. Raises FileNotFoundError naming the missing
    files, ModuleNotFoundError naming the missing package.
    """
    if missing := [name for name in FILES if not (folder() / name).is_file()]:
        raise FileNotFoundError(
            f"no pose detector: {' and '.join(missing)} missing in weights/dwpose/; get them from "
            "huggingface.co/yzd-v/DWPose, and `pip install -e .[detect]`"
        )
    try:
        from rtmlib import Wholebody
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("no pose detector: rtmlib is missing; `pip install -e .[detect]`") from error
    det, points = (str(folder() / name) for name in FILES)
    whole = Wholebody(det=det, pose=points, to_openpose=True, backend="onnxruntime", device=device)

    def detect(picture: np.ndarray) -> np.ndarray | None:
        keypoints, scores = whole(np.ascontiguousarray(picture[..., ::-1]))
        if not len(scores):
            return None
        best = int(np.asarray(scores)[:, :18].mean(1).argmax())
        return np.concatenate([keypoints[best][:18], scores[best][:18, None]], axis=1)

    return detect
