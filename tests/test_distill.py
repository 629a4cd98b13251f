"""Consistency distillation: the grid, the loss, the initialisation, what trains."""

import micro
import pytest
import torch
from goldens import worst

from rainlab.data.dataset import Draw
from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding
from rainlab.training import distill

CONFIG = micro.micro(stream__causal=True)


def test_solver_grid():
    flat = distill.solver_times(Draw(0, 0, range(300)), 4, CONFIG)
    assert set(flat.flatten().tolist()) == set(range(10, 1001, 10))
    stairs = distill.solver_staircase(Draw(0, 0, range(300)), 8, CONFIG)
    assert set(stairs[:, 0].tolist()) == set(range(10, 251, 10))
    assert (stairs[:, 2:] - stairs[:, :-2] == 250).all()


def test_huber():
    """Like torch's smooth L1 |d| - c far out and d²/2c close in; between them rising, and even."""
    far, near = torch.tensor([-3.0, 1.0, 2.0]), torch.tensor([-3e-5, 1e-5, 5e-5], dtype=torch.float64)
    assert worst(distill.huber(far, 0.001), far.abs() - 0.001) < 1e-6
    zero = torch.zeros_like(near)
    smooth = torch.nn.functional.smooth_l1_loss(near, zero, beta=0.001, reduction="none")
    assert worst(distill.huber(near, 0.001), smooth) < 1e-3 * smooth.max()
    between = distill.huber(torch.linspace(0, 0.01, 50), 0.001)
    assert between[0] == 0 and (between.diff() > 0).all()
    assert torch.equal(distill.huber(-far, 0.001), distill.huber(far, 0.001))


def parts(motion):
    """Student, teacher and target: three different random networks."""
    teacher, target = (micro.model(CONFIG, motion, guidance=i == 2, seed=i).denoising_unet for i in (1, 2))
    return micro.model(CONFIG, motion), teacher, target


@pytest.mark.parametrize(("motion", "times"), [(False, distill.solver_times), (True, distill.solver_staircase)])
def test_the_loss_is_equation_five(motion, times):
    """Recomputed by hand from the teacher's guided prediction, one solver step, and the target."""
    student, teacher, target = parts(motion)
    frames = 8 if motion else 3
    batch = micro.training_set(CONFIG).batch(0, 0, range(2), 2, frames, motion)
    loss = distill.consistency_loss(student, teacher, target, CONFIG, times)(batch, Draw(0, 0, range(2)))

    draw, x, mask = Draw(0, 0, range(2)), batch.latents, torch.ones(8, 8).tril().bool() if motion else None
    t = times(draw, frames, CONFIG)
    noisy = schedule.add_noise(x, draw.normal(*x.shape[1:]), t - 1)
    strength = 1 + 3 * draw.uniform()
    omega = guidance_embedding(strength, 16)
    bank, context = student.look(distill.to_signed(batch.reference), batch.reference_latents)
    pose = student.pose_guider(distill.to_unit(batch.condition))
    with torch.no_grad():
        v = teacher(noisy, t - 1, context, pose, None, bank, mask)
        null = teacher(noisy, t - 1, 0 * context, pose, temporal_mask=mask)
        guided = null + strength[:, None, None, None, None] * (v - null)
        closer = schedule.solver_step(noisy, guided, t - 1, t - 11)
        v = target(closer, (t - 11).clamp(min=0), context, pose, omega, bank, mask)
        goal = torch.where((t == 10)[..., None, None, None], closer, schedule.consistency(closer, v, t - 11))
        v = student.denoising_unet(noisy, t - 1, context, pose, omega, bank, mask)
        error = schedule.consistency(noisy, v, t - 1) - goal
    assert loss.item() == pytest.approx(((error**2 + 1e-6).sqrt() - 1e-3).mean().item(), rel=1e-5)


def test_with_its_own_history_the_student_goes_on_from_what_the_target_made():
    """Noise of a tick earlier, one jump to clean frames, and these noised to now; the rest is equation 5 as before."""
    student, teacher, target = parts(motion=True)
    batch = micro.training_set(CONFIG).batch(0, 0, range(2), 2, 8, True)
    inputs, v = [], torch.zeros_like(batch.latents)
    teacher.forward = lambda x, t, *given, **kw: inputs.append((x, t)) or torch.cat([v, v])
    given = student, teacher, target, CONFIG, distill.solver_staircase
    for share in (0.0, 1.0):
        distill.consistency_loss(*given, own_history=share)(batch, Draw(0, 0, range(2)))

    draw, x, mask = Draw(0, 0, range(2)), batch.latents, torch.ones(8, 8).tril().bool()
    t = distill.solver_staircase(draw, 8, CONFIG)
    noise, strength = draw.normal(*x.shape[1:]), 1 + 3 * draw.uniform()
    draw.uniform()
    before = (t + 250).clamp(max=1000)
    further = schedule.add_noise(x, draw.normal(*x.shape[1:]), before - 1)
    bank, context = student.look(distill.to_signed(batch.reference), batch.reference_latents)
    pose = student.pose_guider(distill.to_unit(batch.condition))
    made = target(further, before - 1, context, pose, guidance_embedding(strength, 16), bank, mask)
    made = schedule.consistency(further, made, before - 1)
    for clean, (noisy, times) in zip((x, made), inputs, strict=True):
        assert torch.equal(times[:2], t - 1)
        assert worst(noisy[:2], schedule.add_noise(clean, noise, t - 1)) < 1e-5
    assert worst(inputs[0][0], inputs[1][0]) > 0.1


def test_gradients_reach_the_student_alone():
    student, teacher, target = parts(motion=True)
    student.denoising_unet.requires_grad_(True)
    batch = micro.training_set(CONFIG).batch(0, 0, range(2), 2, 8, True)
    loss = distill.consistency_loss(student, teacher, target, CONFIG, distill.solver_staircase)
    loss(batch, Draw(0, 0, range(2))).backward()
    frozen = (teacher, target, student.reference_unet, student.pose_guider)
    assert all(p.grad is None for net in frozen for p in net.parameters())
    grads = {n for n, p in student.denoising_unet.named_parameters() if p.grad is not None and p.grad.any()}
    assert "time_embedding.cond_proj.weight" in grads and any(".motion_modules." in n for n in grads)
    assert "conv_in.weight" in grads
