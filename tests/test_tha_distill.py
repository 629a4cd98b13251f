"""How a student learns: lessons that are exact, losses by hand, and trainings that go on where they stopped."""

import numpy as np
import pytest
import torch

from rainlab.baselines import siren, tha, tha_distill, tha_teacher
from rainlab.data.studio import body
from rainlab.data.studio.expression import POSE, pose_of

SEED = body.split_seeds("val", 1, 3)
CORNER, FACE = (8, 8), 16


def wide_body():
    return siren.BodyMorpher(((16, 16), (16, 16)), 32)


def student_body():
    torch.manual_seed(0)
    return siren.BodyMorpher(((16, 12), (12, 8)), 32)


@pytest.fixture(scope="module")
def lessons():
    turned = torch.cat([pose_of(x) for x in ({"head_y": 0.5, "mouth_aaa": 1.0}, {"body_z": 0.6}, {"neck_z": -0.5})])
    return tha_distill.studio_lessons(SEED, torch.cat([turned, tha_distill.natural_poses(5)]), 32)


def test_a_moved_face_is_the_final_picture_where_that_is_known(lessons):
    assert lessons.final.shape == (8, 4, 32, 32) and lessons.grid.shape == (8, 2, 32, 32) and len(lessons) == 8
    moved = tha_teacher.move(lessons.faced, lessons.grid)
    known = lessons.known.bool().expand_as(moved)
    there, still = ((x - lessons.final).abs()[known].mean() for x in (moved, lessons.faced))
    assert there < 0.5 * still  # what is left is shading, and pixels that lie between others
    assert 0.05 < lessons.known.mean() < 1
    picture = tha_distill.studio_lessons(SEED, torch.zeros(1, len(POSE)), 32)
    torch.testing.assert_close(picture.final[0], lessons.character)
    assert picture.grid[0][:, picture.known[0, 0] > 0].abs().max() < 1e-6  # at rest nothing moves


def test_faces_do_not_turn_but_do_what_the_pose_says(lessons):
    same = tha_distill.studio_lessons(SEED, pose_of({"mouth_aaa": 1.0}), 32)
    torch.testing.assert_close(lessons.faced[0], same.final[0])
    moves = tha_distill.movable(lessons, CORNER, FACE)
    assert moves.shape == (FACE, FACE) and 0 < moves.mean() < 1


def test_losses_by_hand(lessons):
    made, moves = torch.rand(4, FACE, FACE), tha_distill.movable(lessons, CORNER, FACE)
    wanted = lessons.faced[1, :, 8:24, 8:24]
    error = np.abs(made.double().numpy() - wanted.double().numpy())
    expected = error.mean() + 20 * (error * moves.numpy()).mean()
    assert float(tha_distill.face_loss(made, wanted, moves)) == pytest.approx(expected, rel=1e-5)

    with torch.no_grad():
        drawn = student_body()(lessons.faced[2], lessons.pose[2])
    weights = (0.5, 0.25, 2.0, 0.25)
    known, every = lessons.known[2, 0].flatten().numpy() > 0, np.ones(32 * 32, bool)
    warped = tha_teacher.move(lessons.faced[2:3], lessons.grid[2:3])[0].flatten(1)
    direct, final, grid = (getattr(lessons, name)[2].flatten(1) for name in ("direct", "final", "grid"))
    errors = [
        (drawn.grid - grid, known),
        (drawn.warped - warped, known),
        (drawn.colour - direct, every),
        (drawn.blended - final, every),
    ]
    expected = sum(w * (np.abs(x.double().numpy()) * on).mean() for w, (x, on) in zip(weights, errors, strict=True))
    assert 0 < known.mean() < 1
    assert float(tha_distill.body_loss(drawn, lessons, 2, weights)) == pytest.approx(expected, rel=1e-4)


def test_rates_and_phases_are_the_papers():
    rate = [tha_distill.value_at(tha_distill.BODY_RATES, n / 1500) for n in (0, 199, 200, 600, 1300, 1499)]
    assert rate == [1e-4, 1e-4, 3e-5, 1e-5, 3e-6, 3e-6]
    faces = [tha_distill.value_at(tha_distill.FACE_RATES, n / 1000) for n in (199, 200, 500, 800)]
    assert faces == pytest.approx([1e-4, 3.33e-5, 1e-5, 3.33e-6], rel=2e-3)
    weights = [tha_distill.value_at(tha_distill.PHASES, n / 1500) for n in (0, 400, 800)]
    assert weights == [(0.5, 0.25, 2.0, 0.25), (5.0, 2.5, 1.0, 1.0), (1.0, 1.0, 1.0, 10.0)]


def test_a_fresh_student_is_smooth():
    """As SIREN begins: what is in front of every sine has a spread near 1, and neighbours are alike."""
    torch.manual_seed(0)
    network, seen = siren.FaceMorpher(64, 6, 32), []
    with torch.no_grad():
        for layer in network.siren.sine_layers[1:]:
            layer.register_forward_pre_hook(lambda module, given: seen.append((module, given[0])))
        made = network(torch.zeros(len(POSE)))
    for module, x in seen:
        inside = siren.OMEGA * x @ module.linear.weight.detach().flatten(1).T  # without the bias, the same everywhere
        assert 0.5 < inside.std() < 2
    pairs = torch.stack([made[:, :, 1:].flatten(), made[:, :, :-1].flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.9


def test_a_fresh_body_shows_the_picture_that_it_moves(lessons):
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = siren.BodyMorpher(size=32)(lessons.faced[0], lessons.pose[0])
    assert drawn.grid.abs().mean() < 0.1 and drawn.alpha.abs().mean() < 0.1
    last = siren.FaceMorpher().siren.last_linear
    assert not last.bias.any() and last.weight.abs().max() <= (6 / 128) ** 0.5 / 30 < 2 * last.weight.abs().max()


def test_who_draws_first_can_train_later(lessons):
    face = siren.FaceMorpher(8, 2, FACE)
    siren._of_region.cache_clear()
    with torch.inference_mode():
        tha.Student(lessons.character, face, student_body(), CORNER).draw(lessons.pose[0])
    for network, train in ((face, lambda n: tha_distill.train_face(n, lessons, CORNER, 8)),
                           (student_body(), lambda n: tha_distill.train_body(n, lessons, 8))):  # fmt: skip
        assert len(train(network)) == 1 and len(train(network)) == 1  # frozen by the first, it learns again


@pytest.mark.parametrize("matrix_rate", [0.0, 1e-3])
def test_a_shorter_training_goes_in_longer_strides(lessons, matrix_rate):
    moved, turned = [], []
    for rate in (1.0, 5.0):
        torch.manual_seed(0)
        network = wide_body()
        inner = network.siren_layers[0][1].linear.weight
        before = [x.detach().clone() for x in (network.last_linear.weight, inner)]
        strides = tha_distill.Strides(rate, matrix_rate)
        tha_distill.train_body(network, lessons, tha_distill.BATCH, strides=strides)  # one step
        moved.append(network.last_linear.weight - before[0])
        turned.append(inner - before[1])
    torch.testing.assert_close(moved[1], 5 * moved[0], rtol=1e-3, atol=1e-7)
    if matrix_rate:  # however the rest goes: nearly all directions as far
        torch.testing.assert_close(turned[1], turned[0])
        spread = torch.linalg.svdvals(turned[0].flatten(1))
        assert 0.5 * matrix_rate < spread.median() and spread.max() < 1.5 * matrix_rate
    else:
        torch.testing.assert_close(turned[1], 5 * turned[0], rtol=1e-3, atol=1e-7)


def test_rates_with_muon_rise_and_fall_along_straight_lines():
    rates = [tha_distill._rate(tha_distill.Strides(6.0, 1e-3), tha_distill.BODY_RATES, i, 100) for i in range(100)]
    assert np.allclose(rates[:5], 6e-4 * np.arange(1, 6) / 5) and np.allclose(rates[5:41], 6e-4)
    assert np.allclose(rates[40:], 6e-4 * np.arange(60, 0, -1) / 60)
    plain = [tha_distill._rate(tha_distill.Strides(2.0), tha_distill.FACE_RATES, i, 10) for i in (0, 2, 5, 8)]
    assert np.allclose(plain, [2e-4, 2e-4 / 3, 2e-5, 2e-5 / 3])


def test_lessons_of_the_published_teacher():
    def teacher(character, pose):
        assert character.dtype == pose.dtype == torch.float32
        shade = pose[0, 0] * torch.ones(1, 4, 8, 8)
        upscaled = tha_teacher.Turned(shade, shade[:, :1], shade, shade[:, :2], 2 * shade)
        return tha_teacher.Posed(upscaled, 3 * shade, None, None, None, None)

    poses = tha_distill.natural_poses(3)
    made = tha_distill.teacher_lessons(teacher, torch.zeros(4, 8, 8), poses)
    shade = poses[:, 0].float()[:, None, None, None]
    assert len(made) == 3 and (made.known == 1).all() and made.grid.shape == (3, 2, 8, 8)
    for name, factor in (("final", 1), ("direct", 2), ("faced", 3)):
        torch.testing.assert_close(getattr(made, name), (factor * shade.expand(3, 4, 8, 8)).half())


@pytest.mark.parametrize("matrix_rate", [0.0, 3e-3])
@pytest.mark.parametrize("part", ["face", "body"])
def test_a_training_learns_and_goes_on_where_it_stopped(lessons, part, matrix_rate, tmp_path, monkeypatch):
    strides = tha_distill.Strides(1.0, matrix_rate)

    def train(examples, state=None):
        torch.manual_seed(0)
        if part == "body":
            network, even = student_body(), ((0, (1.0, 1.0, 1.0, 1.0)),)
            return network, tha_distill.train_body(network, lessons, examples, state, even, strides)
        network = siren.FaceMorpher(24, 3, FACE)
        return network, tha_distill.train_face(network, lessons, CORNER, examples, state, strides)

    monkeypatch.setattr(tha_distill, "SAVED", 10)
    monkeypatch.setattr(tha_distill, "FACE_RATES", ((0, 5e-3),))
    monkeypatch.setattr(tha_distill, "BODY_RATES", ((0, 3e-3),))
    whole, curve = train(240, tmp_path / "whole.safetensors")
    assert len(curve) == 30 and np.mean(curve[-5:]) < 0.9 * np.mean(curve[:5])
    state = tmp_path / "state.safetensors"
    real = tha_distill.face_loss if part == "face" else tha_distill.body_loss
    calls = []

    def killed(*given):
        calls.append(1)
        if len(calls) > 15 * (1 if part == "face" else tha_distill.BATCH):  # faces of a step are drawn together
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(tha_distill, f"{part}_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train(240, state)
    monkeypatch.setattr(tha_distill, f"{part}_loss", real)
    resumed, again = train(240, state)
    assert again == curve
    with pytest.raises(ValueError, match=f"got a state of {part}, 240 examples.*expected one of {part}, 80 examples"):
        train(80, state)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_faces_of_several_poses_are_those_of_each(lessons):
    torch.manual_seed(0)
    face = siren.FaceMorpher(8, 3, 72)  # of more pixels than go through the layers together
    assert face.size**2 > siren.TOGETHER
    with torch.no_grad():
        many = face(lessons.pose[:6].reshape(2, 3, -1))
        assert many.shape == (2, 3, 4, 72, 72)
        for i in range(6):
            torch.testing.assert_close(many.flatten(0, 1)[i], face(lessons.pose[i]))


def test_a_small_student_draws_whole_pictures_and_parts(lessons):
    face = siren.FaceMorpher(8, 2, FACE)
    student = tha.Student(lessons.character, face, student_body(), CORNER)
    whole = student.draw(lessons.pose[0])
    assert whole.blended.shape == (4, 32, 32)
    part = student.draw(lessons.pose[0], (4, 6, 20, 31))
    torch.testing.assert_close(part.blended, whole.blended[:, 4:20, 6:31])
    assert student.frame(lessons.pose[0]).shape == (32, 32, 4)
