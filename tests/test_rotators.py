"""Two designs that turn faces: what they see, what they are told, equal arithmetic."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rainlab.baselines import tha_distill, tha_teacher
from rainlab.data.studio import body
from rainlab.measure import metrics, rotators, students

MICRO = rotators.Recipe(32, 6, 4, 3, 2, 1e-3, (8, 8, 16, 16), 8, (1, 2))


def test_each_face_turns_as_its_own_pose_says():
    pose, given = rotators.pictures("train", 6, MICRO)
    seeds = body.split_seeds("train", 6)
    alone = tha_distill.studio_lessons(seeds[3:4], pose[3:4], 32)
    for name in ("faced", "final", "grid", "known"):
        torch.testing.assert_close(getattr(given, name)[3:4], getattr(alone, name))
    assert len({picture.numpy().tobytes() for picture in given.faced}) == 6


@pytest.mark.parametrize("design", rotators.DESIGNS)
def test_a_rotator_turns_and_sees_only_what_turns(design):
    torch.manual_seed(0)
    network, (pose, given) = rotators.build(design, MICRO), rotators.pictures("test", 4, MICRO)
    made = rotators.turn(network, given.faced, pose)
    assert made.picture.shape == (4, 4, 32, 32) and made.grid.shape == (4, 2, 32, 32)
    torch.testing.assert_close(made.picture, made.direct * made.alpha + made.warped * (1 - made.alpha))
    mouth, head = pose.clone(), pose.clone()
    mouth[:, : tha_teacher.TURN.start] += 1
    head[:, tha_teacher.TURN.start] += 1
    assert torch.equal(rotators.turn(network, given.faced, mouth).picture, made.picture)
    assert not torch.equal(rotators.turn(network, given.faced, head).picture, made.picture)
    everyone, one = (rotators.turn_all(network, given.faced[:n], pose[:n]) for n in (4, 1))
    torch.testing.assert_close(everyone[:1], one, atol=1e-4, rtol=0)


def test_the_loss_by_hand():
    pose, given = rotators.pictures("test", 4, MICRO)
    torch.manual_seed(1)
    made = rotators.turn(rotators.build("THA3", MICRO), given.faced, pose)
    known = given.known.numpy() > 0
    arrays = {name: getattr(made, name).detach().double().numpy() for name in ("picture", "direct", "warped", "grid")}
    final, grid = (x.double().numpy() for x in (given.final, given.grid))
    expected = np.abs(arrays["picture"] - final).mean() + np.abs(arrays["direct"] - final).mean()
    warped = tha_teacher.move(given.faced, given.grid).double().numpy()
    for ours, theirs in ((arrays["warped"], warped), (arrays["grid"], grid)):
        expected += np.abs(ours - theirs)[np.broadcast_to(known, ours.shape)].mean()
    assert rotators.loss_of(made, given).item() == pytest.approx(expected, rel=1e-5)
    exact = tha_teacher.Turned(given.final, None, tha_teacher.move(given.faced, given.grid), given.grid, given.final)
    assert float(rotators.loss_of(exact, given)) == 0


def test_designs_are_compared_at_equal_arithmetic(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        rotators.compare((0,), MICRO)
    compared = rotators.compare((0, 1), MICRO, record=True)
    found = {design: [rotators.rotator(design, seed, MICRO) for seed in (0, 1)] for design in rotators.DESIGNS}
    assert set(compared.inputs.values()) == {run.id for each in found.values() for run in each}
    assert len(set(compared.inputs.values())) == 4
    paid = {}
    for design, (run, other) in found.items():
        steps, flops = (run.value(name)["value"] for name in ("steps", "flops"))
        paid[design] = steps * flops
        assert run.value("psnr", method="rotator")["value"] != other.value("psnr", method="rotator")["value"]
        assert run.value("psnr", method="copy")["value"] == other.value("psnr", method="copy")["value"]
        assert run.value("ssim", method="rotator")["n"] == MICRO.tests
    assert found["Section 3.1"][0].value("steps")["value"] == MICRO.steps
    half = rotators.arithmetic("THA3", MICRO) / 2  # steps are whole
    assert paid["THA3"] == pytest.approx(paid["Section 3.1"], abs=half)
    _, given = rotators.pictures("test", 4, MICRO)
    truth, still = students.shown(given.final), students.shown(given.faced)
    copied = found["THA3"][0].value("psnr", method="copy")["value"]
    assert copied == pytest.approx(metrics.psnr(still[:, None], truth[:, None]).mean(), rel=1e-6)
    assert rotators.compare((0, 1), MICRO).id == compared.id
    mean = {run.id: run.value("psnr_fg", method="rotator")["value"] for each in found.values() for run in each}
    means = {design: [mean[run.id] for run in each] for design, each in found.items()}
    for design, each in means.items():
        assert compared.value("psnr_fg", method=design)["value"] == pytest.approx(np.mean(each))
    change = compared.value("psnr_fg_change", method="Section 3.1")
    assert change["value"] == pytest.approx(np.mean(means["Section 3.1"]) - np.mean(means["THA3"]))
    assert change["n"] == MICRO.tests and change["ci_low"] < change["value"] < change["ci_high"]
    assert compared.value("psnr", method="copy")["value"] == pytest.approx(copied)


def test_a_rotator_learns():
    longer = replace(MICRO, steps=60, characters=2, learning_rate=3e-3)
    _, curve = rotators.train("Section 3.1", 0, longer)
    assert np.mean(curve[-5:]) < 0.7 * np.mean(curve[:5])


@pytest.mark.parametrize("design", rotators.DESIGNS)
def test_the_recipe_of_the_tables_can_be_built(design):
    network, size = rotators.build(design, rotators.SMALL), rotators.SMALL.size
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 4, size, size), torch.zeros(1, 6)).shape == (1, 7, size, size)


def test_unknown_designs_are_refused():
    with pytest.raises(ValueError, match="design: got 'THA5', expected one of THA3, Section 3.1"):
        rotators.rotator("THA5")
