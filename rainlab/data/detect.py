"""Detectors: what is to be seen in a picture, with files that lie on this machine; nothing is downloaded.

Each factory takes a device, "cpu" or "cuda[:number]", and gives a `Detector`, to be called with one picture, from any
thread. Of several people or faces the one that is seen best counts; None where nobody is.

    body_detector      18 key points of a body     (18, 3)   DWPose, or BlazePose where its files are missing
    face_landmarks     68 points of a face         (68, 3)   DWPose, or MediaPipe's face mesh
    face_detector      boxes of anime faces        (n, 5)    hysts' anime-face-detector
    landmark_detector  28 points of an anime face  (28, 3)   the same
    depth_estimator    how near everything is      (h, w)    DPT-Hybrid (MiDaS)

Points are x, y in pixels, the centre of pixel (row i, column j) at x=j, y=i, and a confidence; 0.3 is `pose.draw`'s
least. All factories raise FileNotFoundError that names missing files and where to get them, ModuleNotFoundError for a
missing package, and ValueError for a file that is not what it should be or a device that isn't there.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from rainlab.data import blaze
from rainlab.files import check_digest, root
from rainlab.method import pretrained

# Path in weights/ -> its sha256. Of the files with None no checksum is known (those of anime-face/ everybody exports
# anew), only what is in them is checked: put your own here to have it compared.
SHA256: dict[str, str | None] = {
    **{name: pretrained.SOURCES[name].sha256 for name in ("dwpose/yolox_l.onnx", "dwpose/dw-ll_ucoco_384.onnx")},
    "anime-face/yolov3.onnx": None,
    "anime-face/faster-rcnn.onnx": None,
    "anime-face/hrnetv2.onnx": None,
    "dpt-hybrid-midas/config.json": None,
    "dpt-hybrid-midas/preprocessor_config.json": None,
    "dpt-hybrid-midas/model.safetensors": None,
}
SOURCES = {
    "dwpose": "huggingface.co/yzd-v/DWPose",
    "anime-face": "github.com/hysts/anime-face-detector (how to export them stands in rainlab/data/detect.py)",
    "dpt-hybrid-midas": "huggingface.co/Intel/dpt-hybrid-midas",
}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet
# Face detectors, the first that is there: input (height, width) where the file leaves it open, mean and deviation
ANIME = {"yolov3.onnx": ((608, 608), (0, 0, 0), (255, 255, 255)), "faster-rcnn.onnx": ((800, 1344), MEAN, STD)}


@dataclass(frozen=True)
class Detector:
    """A function of one picture, uint8 (h, w, 3) RGB, under the name of what is looking."""

    name: str
    find: Callable[[np.ndarray], Any]

    def __call__(self, picture: np.ndarray) -> Any:
        """Raises ValueError for anything but a picture."""
        is_array = isinstance(picture, np.ndarray)
        if not (
            is_array and picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size
        ):
            got = f"{picture.dtype} {picture.shape}" if is_array else type(picture).__name__
            raise ValueError(f"picture: got {got}, expected uint8 (height, width, 3), RGB")
        return self.find(np.ascontiguousarray(picture))


def body_detector(device: str = "cpu") -> Detector:
    """Key points of a body, float (18, 3), as `pose.draw` takes them; None where nobody is.

    DWPose, `weights/dwpose/yolox_l.onnx` and `dw-ll_ucoco_384.onnx`. Where these are missing, BlazePose if package
    ai-edge-litert is there, on the processor whatever the device: `name` says which.
    """
    return _dwpose_or("BlazePose", blaze.body, slice(18), device)


def face_landmarks(device: str = "cpu") -> Detector:
    """Points of a face in iBUG's order, float (68, 3), as `pose.draw` takes them; None where nobody is.

    DWPose's whole body, or MediaPipe's face mesh, as in `body_detector`.
    """
    return _dwpose_or("MediaPipe face mesh", blaze.face, slice(24, 92), device)


def _dwpose_or(name: str, other: Callable[[], Callable], part: slice, device: str) -> Detector:
    try:
        return Detector("DWPose", _dwpose(part, device))
    except FileNotFoundError as error:
        try:
            return Detector(name, other())
        except (FileNotFoundError, ModuleNotFoundError):
            raise FileNotFoundError(f"{error}. That command alone brings another detector, {name}.") from None


def _dwpose(part: slice, device: str) -> Callable[[np.ndarray], np.ndarray | None]:
    """What DWPose finds of the person whose points in this part of OpenPose's 134 it is surest of."""
    paths = _present("pose detector", "dwpose/yolox_l.onnx", "dwpose/dw-ll_ucoco_384.onnx")
    try:
        from rtmlib import YOLOX, RTMPose
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("no pose detector: rtmlib is missing; `pip install -e .[detect]`") from error
    _provider(device)
    det, points = (str(_checked(path)) for path in paths)
    try:
        with redirect_stdout(io.StringIO()):  # it prints what it loads
            boxes_of = YOLOX(det, (640, 640), "multiclass", score_thr=0.3, backend="onnxruntime", device=device)
            points_of = RTMPose(points, (288, 384), to_openpose=True, backend="onnxruntime", device=device)
    except Exception as error:  # onnxruntime's have no common class
        raise ValueError(
            f"{det} or {points} can't be loaded, get them again from {SOURCES['dwpose']}: {error}"
        ) from error

    def detect(picture: np.ndarray) -> np.ndarray | None:
        picture = np.ascontiguousarray(picture[..., ::-1])
        boxes, kinds = boxes_of(picture)
        people = boxes[kinds == 0]  # of COCO's kinds of things
        if not len(people):  # asked without boxes, RTMPose would see somebody in the whole picture
            return None
        keypoints, scores = points_of(picture, people)
        best = scores[:, part].mean(1).argmax()
        return np.concatenate([keypoints[best, part], scores[best, part, None]], axis=1)

    return detect


def face_detector(device: str = "cpu", least: float = 0.5) -> Detector:
    """Boxes of anime faces, float (n, 5), the surest first: x0, y0, x1, y1 in pixels and a score of at least `least`.

    hysts' anime-face-detector (MIT): `weights/anime-face/yolov3.onnx`, else `faster-rcnn.onnx`. To export them: with
    mmdetection 2, `python tools/deployment/pytorch2onnx.py CONFIG CHECKPOINT --shape 608 608 --output-file yolov3.onnx`
    (`--shape 800 1344` for the other), CONFIG from the package, CHECKPOINT `mmdet_anime-face_yolov3.pth` from its
    release v0.0.1. Input (1, 3, h, w), RGB, not yet divided by mean and deviation in the file; output `dets`
    (1, n, 5), boxes in pixels of the input and scores, overlaps removed.
    """
    known = [name for name in ANIME if (_weights() / "anime-face" / name).is_file()] or ["yolov3.onnx"]
    (path,) = _present("anime face detector", f"anime-face/{known[0]}")
    size, mean, std = ANIME[known[0]]
    session, (height, width) = _session(path, device, size)
    names = [output.name for output in session.get_outputs()]
    boxes = "dets" if "dets" in names else names[0]
    _expect(path, session.get_outputs()[names.index(boxes)], (1, None, 5), "boxes and scores")

    def detect(picture: np.ndarray) -> np.ndarray:
        h, w = picture.shape[:2]
        scale = min(height / h, width / w)
        small = [max(1, round(h * scale)), max(1, round(w * scale))]
        planes = torch.from_numpy((picture - np.float32(mean)) / np.float32(std)).permute(2, 0, 1)[None]
        whole = np.zeros((1, 3, height, width), np.float32)  # right and below filled up, as in training
        whole[..., : small[0], : small[1]] = interpolate(planes, small, mode="bilinear").numpy()
        found = session.run([boxes], {session.get_inputs()[0].name: whole})[0].reshape(-1, 5).astype(np.float64)
        found = found[found[:, 4] >= least]
        found[:, :4] = np.clip(found[:, :4] / (np.array(small[::-1] * 2) / [w, h, w, h]), 0, [w, h, w, h])
        return found[np.argsort(-found[:, 4], kind="stable")]

    return Detector(f"anime-face-detector, {Path(known[0]).stem}", detect)


def landmark_detector(device: str = "cpu", least: float = 0.5) -> Detector:
    """Landmarks in the surest anime face, float (28, 3): x, y in pixels and confidence; None without a face of `least`.

    0 … 4 lie on the jaw, 5 … 7 and 8 … 10 on the brows, 11 … 16 and 17 … 22 around the eyes, 23 on the nose, 24 … 27
    around the mouth. hysts' HRNetV2 (MIT): `weights/anime-face/hrnetv2.onnx` beside a face detector's file. To export
    it: with mmpose 0.x, `python tools/deployment/pytorch2onnx.py CONFIG CHECKPOINT --shape 1 3 256 256 --output-file
    hrnetv2.onnx`, CHECKPOINT `mmpose_anime-face_hrnetv2.pth`. Input (1, 3, 256, 256), RGB, mean and deviation of
    ImageNet not yet applied in the file; output heat maps (1, 28, 64, 64). Unlike hysts', it looks once, not at the
    mirror picture too, and refines by a quarter of a pixel.
    """
    (path,) = _present("anime landmark detector", "anime-face/hrnetv2.onnx")
    faces_of = face_detector(device, least)
    session, (height, width) = _session(path, device, (256, 256))
    if height != width:
        raise ValueError(f"{path}: got an input of {height}×{width}, expected a square")
    _expect(path, session.get_outputs()[0], (1, 28, None, None), "heat maps")

    def detect(picture: np.ndarray) -> np.ndarray | None:
        faces = faces_of.find(picture)
        if not len(faces):
            return None
        low, high = faces[0, :2], faces[0, 2:4]
        x, y = (low + high) / 2
        side = 1.1 * 1.25 * max(high - low + 1)  # hysts' margin around the box, and mmpose's
        # to mmpose, the left upper corner of the crop is the centre of a pixel
        crop = blaze.sample(picture, (x - side / width / 2, y - side / width / 2, side, 0.0), width)
        planes = ((crop - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)[None]
        heat = session.run(None, {session.get_inputs()[0].name: planes})[0][0]
        points = peaks(heat)
        points[:, :2] = points[:, :2] * side / heat.shape[2] + [x - side / 2, y - side / 2]
        return points

    return Detector("anime-face-detector, hrnetv2", detect)


def peaks(heat: np.ndarray) -> np.ndarray:
    """Where heat maps (n, h, w) are highest, float (n, 3): x, y in their pixels and the height.

    Each is shifted by a quarter of a pixel towards the higher of its neighbours, as in Newell et al. 2016 (stacked
    hourglasses, arXiv 1603.06937).
    """
    count, height, width = heat.shape
    y, x = np.divmod(heat.reshape(count, -1).argmax(1), width)
    points = np.stack([x, y, heat[np.arange(count), y, x]], 1).astype(np.float64)
    for k in np.flatnonzero((x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)):
        around = heat[k, y[k] - 1 : y[k] + 2, x[k] - 1 : x[k] + 2]
        points[k, :2] += 0.25 * np.sign([around[1, 2] - around[1, 0], around[2, 1] - around[0, 1]])
    return points


def depth_estimator(device: str = "cpu") -> Detector:
    """How near everything is, float32 (h, w): 1 the nearest, 0 the farthest of this picture; 0 where all is the same.

    DPT-Hybrid (Ranftl et al. 2021), trained as MiDaS, for inverse depth; in `weights/dpt-hybrid-midas/` config.json,
    preprocessor_config.json and model.safetensors. Any model of transformers for depth will do that puts out inverse
    depth.
    """
    names = [name for name in SHA256 if name.startswith("dpt-hybrid-midas/")]
    folder = [_checked(path) for path in _present("depth estimator", *names)][0].parent
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    where = dict(local_files_only=True, trust_remote_code=False)
    try:
        prepare = AutoImageProcessor.from_pretrained(folder, **where)
        model, info = AutoModelForDepthEstimation.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **where
        )
    except Exception as error:  # of safetensors, of json, of transformers
        raise ValueError(
            f"{folder} can't be loaded, get its files again from {SOURCES[folder.name]}: {error}"
        ) from error
    # the first fusion has nothing to add: published files lack its unused weights
    missing = [key for key in info["missing_keys"] if "fusion_stage.layers.0.residual_layer1" not in key]
    if missing:
        raise ValueError(f"{folder}: model.safetensors lacks {len(missing)} tensors, for example {sorted(missing)[0]}")
    try:
        model = model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # torch has both for a device that isn't there
        raise ValueError(f"device: got {device}, expected one of torch's that is there: {error}") from error

    @torch.inference_mode()
    def detect(picture: np.ndarray) -> np.ndarray:
        inputs = prepare(images=picture, input_data_format="channels_last", return_tensors="pt").to(device)
        near = model(**inputs).predicted_depth[:, None].float()
        near = interpolate(near, picture.shape[:2], mode="bicubic", align_corners=False)[0, 0].cpu()
        near -= near.min()
        return (near / near.max().clamp(min=torch.finfo(torch.float32).tiny)).clamp(0, 1).numpy()

    return Detector("DPT-Hybrid (MiDaS)", detect)


# -- files and sessions ----------------------------------------------------------------------------------------------


def _weights() -> Path:
    return root() / "weights"


def _present(what: str, *names: str) -> list[Path]:
    """The paths of files in one folder of weights/; FileNotFoundError that says which are missing."""
    folder = names[0].split("/")[0]
    missing = [name for name in names if not (_weights() / name).is_file()]
    if missing:
        listed = " and ".join(Path(name).name for name in missing)
        sums = "".join(f", sha256 of {Path(name).name} {SHA256[name]}" for name in missing if SHA256[name])
        raise FileNotFoundError(
            f"no {what}: {listed} missing in weights/{folder}/; get them from {SOURCES[folder]}{sums}, and "
            "`pip install -e .[detect]`"
        )
    return [_weights() / name for name in names]


def _checked(path: Path) -> Path:
    """The path of a file with the checksum it should have, if one is known; ValueError else."""
    name = f"{path.parent.name}/{path.name}"
    again = f"get it again from {SOURCES[path.parent.name]}, or put its checksum into SHA256 of rainlab/data/detect.py"
    check_digest(path, SHA256[name], again)
    return path


def _provider(device: str) -> tuple[str, dict]:
    """onnxruntime's name of a device; ValueError for one that it can't use."""
    import onnxruntime

    kind, _, number = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(kind)
    if provider not in (there := onnxruntime.get_available_providers()):
        raise ValueError(f"device: got {device}, expected cpu or, with package onnxruntime-gpu, cuda; here are {there}")
    return provider, {"device_id": int(number)} if number else {}


def _session(path: Path, device: str, size: tuple[int, int]) -> tuple[Any, tuple[int, int]]:
    """A file's network, and the (height, width) of its input, `size` where it leaves that open."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("onnxruntime is missing; `pip install -e .[detect]`") from error
    provider = _provider(device)
    _checked(path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=[provider])
    except Exception as error:  # onnxruntime's have no common class
        source = SOURCES[path.parent.name]
        raise ValueError(f"{path} is damaged or no ONNX file; get it again from {source}: {error}") from error
    _expect(path, session.get_inputs()[0], (1, 3, None, None), "one picture")
    shape = session.get_inputs()[0].shape[2:]
    return session, tuple(n if isinstance(n, int) else open_ for n, open_ in zip(shape, size, strict=True))


def _expect(path: Path, tensor: Any, shape: tuple, what: str) -> None:
    """ValueError unless an input or output of a file can have this shape; None stands for any number."""
    got = list(tensor.shape)
    fits = [wanted is None or not isinstance(n, int) or n == wanted for n, wanted in zip(got, shape, strict=False)]
    if len(got) != len(shape) or not all(fits):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{path}: got {tensor.name} of shape {got}, expected {what}, ({wanted}): another network?")
