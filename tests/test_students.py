"""Students of drawn faces: what is trained, what is measured, and that both can be looked at again."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from rainlab import runs
from rainlab.baselines import siren, tha, tha_distill, tha_teacher
from rainlab.data.studio import body
from rainlab.measure import metrics, students

MICRO = students.Recipe(32, 6, 3, 24, 16, (16, 3), ((16, 12), (12, 8)))


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAINLAB_RUNS", str(tmp_path_factory.mktemp("students")))
        yield


@pytest.mark.parametrize("architecture", students.ARCHITECTURES)
def test_a_student_is_trained_measured_and_drawn_again(architecture):
    with pytest.raises(FileNotFoundError):
        students.student(0, MICRO, architecture=architecture)
    run = students.student(0, MICRO, True, architecture)
    assert students.student(0, MICRO, architecture=architecture).id == run.id
    parts = {row["part"]: row["step"] for row in run.metrics() if row["metric"] == "loss"}
    assert parts == [{"face": 3, "body": 2}, {"body": 2}, {"whole": 2}][students.ARCHITECTURES.index(architecture)]
    if architecture == "Section 4.1 w/o multi-res":  # its face is that of the student as published
        base = students.student(0, MICRO)
        assert run.inputs == {"face": base.id}
        ours, theirs = (students.load(each).face.state_dict() for each in (run, base))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    asked = students.lessons(0, MICRO, "test")
    drawn = students.pictures(students.load(run), asked.pose)
    truth = np.stack([students.on_white(each) for each in asked.final])
    assert drawn.shape == truth.shape == (3, 32, 32, 3)
    given = students.lessons(0, MICRO)
    near = [int(np.argmin([float((pose - other).norm()) for other in given.pose])) for pose in asked.pose]
    frames_of = {
        "student": drawn,
        "nearest": np.stack([students.on_white(given.final[i]) for i in near]),
        "copy": students.on_white(asked.character)[None].repeat(3, 0),
    }
    mask = (asked.final[:, 3] > 0).numpy()[:, None]
    (top, left), side = students.face_place(given)
    face = mask.copy()
    face[:, :, :top], face[:, :, top + side :], face[..., :left], face[..., left + side :] = (False,) * 4
    each = run.values()
    assert each == json.loads((run.path / runs.VALUES).read_text())
    assert each.keys() == frames_of.keys()
    for method, frames in frames_of.items():
        for name, function, where in (("psnr", metrics.psnr, None), ("ssim", metrics.ssim, None),
                                      ("psnr_fg", metrics.psnr, mask), ("psnr_face", metrics.psnr, face)):  # fmt: skip
            row, by_hand = run.value(name, method=method), function(frames[:, None], truth[:, None], where)
            assert row["n"] == 3 and row["protocol"] == students.PROTOCOL
            assert row["value"] == pytest.approx(by_hand.mean(), rel=1e-6)
            assert each[method][name] == pytest.approx(by_hand, rel=1e-6)
    whole = architecture == "Vanilla SIREN"
    network = students.load(run)
    count = [network] if whole else [network.face, network.body]
    assert run.value("parameters")["value"] == sum(x.numel() for part in count for x in part.parameters())
    assert run.value("flops")["value"] > 1e5


def test_students_differ_by_all_that_they_are_told():
    told = [(0, MICRO), (1, MICRO), (0, MICRO, "Vanilla SIREN"), (0, MICRO, "Section 4.1", "B")]
    told.append((0, MICRO, "Section 4.1", "G", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "made", lambda make, record, preset, *given: runs.run_id(*given))
        assert len({students.student(who, recipe, False, *more) for who, recipe, *more in told}) == len(told)


@pytest.mark.parametrize("which", students.COMPARED)
def test_students_are_compared_pose_with_pose(which):
    with pytest.raises(FileNotFoundError):
        students.compare(which, 1, MICRO)
    run, found = students.compare(which, 1, MICRO, record=True)
    assert [*found] == [*students.COMPARED[which]] and students.compare(which, 1, MICRO)[0].id == run.id
    base = "G" if which == "models" else "Section 4.1"
    other = "A" if which == "models" else "Vanilla SIREN"
    ours, theirs = (json.loads((found[x].path / runs.VALUES).read_text())["student"]["psnr_fg"] for x in (other, base))
    row = run.value("psnr_fg_change", student=other)
    assert row["value"] == pytest.approx(np.mean(np.subtract(ours, theirs))) and row["n"] == MICRO.tests
    assert row["ci_low"] <= row["value"] <= row["ci_high"]
    assert {row["student"] for row in run.metrics()} == set(found) - {base}
    assert found[base].id == students.student_id(1, MICRO)
    with pytest.raises(ValueError, match="which: got 'seeds', expected one of architectures, models"):
        students.compare("seeds", 1, MICRO)


def test_a_curve_is_recorded_as_means(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    run, curve = runs.open_run("curve", {}, 1), np.random.default_rng(0).random(1000)
    students.record_curve(run, curve, part="face")
    rows = [row for row in run.metrics() if row["metric"] == "loss"]
    assert len(rows) == 200 and rows[-1]["step"] == 1000 and rows[0]["step"] == 5
    assert [row["value"] for row in rows] == pytest.approx(curve.reshape(200, 5).mean(1))


def test_a_training_goes_on_where_it_stopped(monkeypatch):
    whole, kept = students.student(2, MICRO, True), tha_distill.train_body

    def stops(*given):
        kept(*given)
        raise KeyboardInterrupt

    again = students.Recipe(**vars(MICRO) | {"tests": 4})  # another run of the same training
    monkeypatch.setattr(tha_distill, "train_body", stops)
    with pytest.raises(KeyboardInterrupt):
        students.student(2, again, True)
    monkeypatch.setattr(tha_distill, "train_body", kept)
    monkeypatch.setattr(tha_distill, "face_loss", None)  # of the face nothing is left to do
    resumed = students.student(2, again, True)
    ours, theirs = (students._tensors(students.load(run)) for run in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_a_picture_of_one_s_own_is_learned_from_the_published_teacher(tmp_path, monkeypatch):
    """Small sizes, and the studio says what the teacher would."""
    for name, value in {"SIZE": 32, "FACE": 16, "CORNER": (8, 8)}.items():
        monkeypatch.setattr(tha, name, value)
    for name in tha_teacher.NETWORKS:
        (tmp_path / f"{name}.pt").write_bytes(name.encode())
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[4:28, 8:24] = (200, 120, 40, 255)
    Image.fromarray(picture).save(tmp_path / "me.png")
    asked = []

    def says(teacher, character, poses):
        assert teacher == tmp_path and torch.equal(character, tha.from_picture(picture))
        asked.append(poses)
        return tha_distill.studio_lessons(body.split_seeds("test", 1, 0), poses, 32)

    monkeypatch.setattr(tha_teacher, "load", lambda folder: SimpleNamespace(to=lambda place: folder))
    monkeypatch.setattr(tha_distill, "teacher_lessons", says)
    given = tmp_path / "me.png", tmp_path, MICRO
    with pytest.raises(FileNotFoundError):
        students.own(*given)
    run = students.own(*given, record=True)
    assert [len(poses) for poses in asked] == [MICRO.lessons, MICRO.tests] and students.own(*given).id == run.id
    assert run.value("psnr", method="student")["n"] == MICRO.tests
    drawn = students.load(run)
    assert (drawn.corner, drawn.face.size) == ((8, 8), 16) and torch.equal(drawn.character, tha.from_picture(picture))
    (tmp_path / "upscaler.pt").write_bytes(b"another")
    with pytest.raises(FileNotFoundError, match="no finished run"):
        students.own(*given)
    with pytest.raises(ValueError, match="got pictures of 64 pixels, expected 32"):
        students.own(*given[:2], students.RECIPES["tiny"])
    Image.fromarray(picture[:16]).save(tmp_path / "me.png")
    with pytest.raises(ValueError, match="got a picture of 32×16"):
        students.own(*given)


def test_phases_that_are_left_share_the_whole_training():
    assert [weights for _, weights in students.phases_of("G")] == [weights for _, weights in tha_distill.PHASES]
    assert [begin for begin, _ in students.phases_of("G")] == pytest.approx([0, 4 / 15, 8 / 15])
    assert students.phases_of("B") == [(0.0, (5.0, 2.5, 1.0, 1.0))]
    (first, one), (second, other) = students.phases_of("E")
    assert (first, second) == (0, pytest.approx(4 / 11))
    assert (one, other) == ((0.5, 0.25, 2.0, 0.25), (1.0, 1.0, 1.0, 10.0))


def test_the_face_is_where_something_moves():
    given = students.lessons(1, MICRO)
    (top, left), side = students.face_place(given)
    moves = tha_distill.movable(given, (0, 0), 32)
    assert side % 8 == 0 and 0 <= top <= 32 - side and 0 <= left <= 32 - side
    assert moves[top : top + side, left : left + side].sum() == moves.sum() > 0


def test_a_vanilla_siren_has_as_many_numbers_as_the_body():
    for recipe in (students.Recipe(), students.RECIPES["tiny"]):
        painter, own = students.painter(recipe), siren.BodyMorpher(recipe.widths, recipe.size)
        wider, ours, theirs = (sum(p.numel() for p in network.parameters()) for network in (
            siren.FaceMorpher(len(painter.siren.sine_layers[0].linear.bias) + 1, 9, recipe.size, 45), painter, own))
        assert abs(ours - theirs) <= abs(wider - theirs) and ours == pytest.approx(theirs, rel=0.005)
        assert len(painter.siren.sine_layers) == 9 and painter.numbers == 45


def test_pictures_are_shown_on_white():
    made = tha.from_picture(np.array([[[200, 100, 0, 255], [10, 20, 30, 0]]], np.uint8))
    assert students.on_white(made).tolist() == [[[200, 100, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"recipe": "large"}, "recipe: got 'large', expected one of tiny, small, paper"),
     ({"architecture": "MLP"}, "architecture: got 'MLP', expected one of Section 4.1"),
     ({"model": "H"}, "model: got 'H', expected one of A, B")],
)  # fmt: skip
def test_unknown_names_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        students.student(0, **given)
