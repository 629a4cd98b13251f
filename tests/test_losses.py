"""The losses of stages 1 and 2: what they weigh, what they drop, which times they draw."""

import micro
import pytest
import torch
from goldens import worst

from rainlab.data.dataset import Draw
from rainlab.measure import v_loss
from rainlab.method import schedule
from rainlab.method.unet import temporal_mask
from rainlab.training import losses

CONFIG = micro.micro()


def networks():
    """Random networks of stage 1 and a batch for them."""
    torch.manual_seed(0)
    model = micro.RAIN.build(CONFIG, motion=False, guidance=False)
    return model, micro.training_set(CONFIG).batch(0, 0, range(2), 2, 3, False)


def test_snr_weight():
    """min(SNR + 1, γ)/(SNR + 1) in float64 with diffusers' ᾱ; both branches of the minimum occur."""
    from diffusers import DDIMScheduler

    bar = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    t = [999, 700, 500, 300, 100, 10]
    expected = [min(1.0, 5.0 * (1 - float(bar.alphas_cumprod[i]))) for i in t]  # SNR + 1 = 1/(1 - ᾱ)
    assert expected[0] == 1 and expected[-1] < 0.1
    assert losses.snr_weight(torch.tensor(t), 5.0).tolist() == pytest.approx(expected, rel=1e-4)


def test_staircase_times():
    times = losses.staircase_times(Draw(0, 0, range(200)), 8, CONFIG)
    assert times.shape == (200, 8)
    assert (times[:, 2:] - times[:, :-2] == 250).all() and (times[:, ::2] == times[:, 1::2]).all()
    t0 = times[:, 0]
    assert 1 <= t0.min() <= 10 and 240 <= t0.max() <= 250 and abs(t0.float().mean() - 125.5) < 15
    uniform = losses.uniform_times(Draw(0, 0, range(300)), 4, CONFIG)
    assert uniform.min() >= 1 and uniform.max() <= 1000 and abs(uniform.float().mean() - 500) < 40


def test_the_loss_is_the_weighted_v_error():
    """With the clean latents and noise known, a network that answers v exactly has no loss, one that answers 0 has
    the mean of weight·v²."""
    model, batch = networks()
    draw = lambda: Draw(0, 0, range(2))  # noqa: E731
    per_sample = losses.sample_losses(model, CONFIG, losses.uniform_times, dropout=0.0)
    d = draw()
    t = losses.uniform_times(d, 3, CONFIG) - 1
    noise = d.normal(*batch.latents.shape[1:]) + 0.05 * d.normal(3, 4, 1, 1)
    v = schedule.velocity(batch.latents, noise, t)
    seen = {}

    def exact(x, *args, **options):
        seen["noisy"] = x
        return v

    model.denoising_unet.forward = exact
    assert per_sample(batch, draw()).abs().max() < 1e-10
    assert worst(seen["noisy"], schedule.add_noise(batch.latents, noise, t)) < 1e-6
    model.denoising_unet.forward = lambda x, *args, **options: torch.zeros_like(x)
    expected = (losses.snr_weight(t, 5.0) * v.square().mean((2, 3, 4))).mean(1)
    assert worst(per_sample(batch, draw()), expected) < 1e-6


def test_dropout_drops_token_and_bank_of_a_sample_but_never_the_pose():
    model, batch = networks()
    seen = {}

    def look(x, t, context, pose, guidance, bank, temporal_mask=None, reference_keep=None):
        seen.update(context=context, pose=pose, keep=reference_keep)
        return torch.zeros_like(x)

    model.denoising_unet.forward = look
    model.pose_guider.forward = lambda condition: condition
    for dropout, keep in ((1.0, False), (0.0, None)):
        losses.sample_losses(model, CONFIG, losses.uniform_times, dropout)(batch, Draw(0, 0, range(2)))
        assert (seen["keep"] is None) == (keep is None) and (keep is None or not seen["keep"].any())
        assert bool(seen["context"].any()) == (keep is None)
        assert torch.equal(seen["pose"], batch.condition.movedim(-1, 2) / 255)


def test_a_tenth_of_the_references_is_dropped_unless_told_otherwise():
    model, batch = networks()
    many = micro.Batch(*(tensor[:1].expand(200, *tensor.shape[1:]) for tensor in vars(batch).values()))
    model.look = lambda pictures, latents: ({}, torch.ones(200, 1, 16))
    model.pose_guider.forward = lambda condition: None
    seen = {}

    def look(x, *args, reference_keep=None, **options):
        seen["keep"] = reference_keep
        return torch.zeros_like(x)

    model.denoising_unet.forward = look
    losses.denoising_loss(model, CONFIG, losses.uniform_times)(many, Draw(0, 0, range(200)))
    assert CONFIG.loss.condition_dropout == 0.1 and 8 <= (~seen["keep"]).sum() <= 35


@pytest.mark.parametrize("change", [{"stream__causal": True}, {"stream__cross_level": False}], ids=str)
def test_the_denoising_network_sees_the_reference_through_token_and_bank_and_the_frames_masked(change):
    config = micro.micro(**change)
    model, batch = micro.model(config, guidance=False), micro.training_set(config).batch(0, 0, range(2), 2, 8, True)
    seen = {}

    def look(x, t, context, pose, guidance, bank, temporal_mask=None, reference_keep=None):
        seen.update(context=context, bank=bank, mask=temporal_mask)
        return torch.zeros_like(x)

    model.denoising_unet.forward = look
    losses.sample_losses(model, config, losses.staircase_times, dropout=0.0)(batch, Draw(0, 0, range(2)))
    context = model.context_encoder(batch.reference.movedim(-1, 1) / 127.5 - 1)
    bank = model.reference_unet.bank(batch.reference_latents, context)
    assert worst(seen["context"], context) < 1e-6 and seen["bank"].keys() == bank.keys()
    assert max(worst(seen["bank"][name], bank[name]) for name in bank) < 1e-5
    assert torch.equal(seen["mask"], temporal_mask(config.stream, 8)) and not seen["mask"].all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_sink_is_clean_seen_and_never_painted(share, monkeypatch):
    """Its noise level is the lowest, its own error does not count, and without it the window is as it was."""
    monkeypatch.setattr(losses, "NO_SINK", share)
    config = micro.micro(stream__sink=True, stream__window=4, stream__groups=2)
    model, batch = micro.model(config, guidance=False), micro.training_set(config).batch(0, 0, range(2), 2, 4, True, 2)
    loss = losses.sample_losses(model, config, losses.staircase_times, dropout=0.0)
    seen, forward = [], model.denoising_unet.forward
    model.denoising_unet.forward = lambda x, t, *given, **kw: seen.append(t) or forward(x, t, *given, **kw)
    own = loss(batch, Draw(0, 0, range(2)))
    batch.condition[:, 4:] = 255 - batch.condition[:, 4:]
    other = loss(batch, Draw(0, 0, range(2)))
    assert seen[0].shape == (2, 4 if share else 6) and not seen[0][:, 4:].any() and seen[0][:, :4].all()
    assert (own == other).all() if share else (own != other).all()
    model.denoising_unet.forward = lambda x, *given, **kw: torch.cat([forward(x, *given, **kw)[:, :4], 9 * x[:, 4:]], 1)
    assert torch.equal(loss(batch, Draw(0, 0, range(2))), other)


def test_stage_one_has_a_gradient_for_all_of_its_networks():
    model, batch = networks()
    losses.denoising_loss(model, CONFIG, losses.uniform_times)(batch, Draw(0, 0, range(2))).backward()
    trained = (model.reference_unet, model.context_encoder, model.pose_guider, model.denoising_unet)
    assert all(any(p.grad is not None and p.grad.any() for p in network.parameters()) for network in trained)


def test_the_autoencoders_loss_is_squared_and_a_tenth_of_absolute_error():
    model, batch = networks()
    pictures = batch.reference.movedim(-1, 1) / 127.5 - 1
    error = (model.autoencoder.decode(model.autoencoder.encode(pictures)) - pictures).double()
    expected = (error**2).mean() + 0.1 * error.abs().mean()
    assert losses.autoencoder_loss(model)(batch, None).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_held_out_loss_is_the_mean_over_draws_clip_by_clip():
    data = micro.training_set(micro.micro(data__clips=6))
    per_sample = lambda batch, draw: batch.latents[:, 0, 0, 0, 0] + draw.uniform()  # noqa: E731 - which clip, which draw
    expected = torch.zeros(6)
    for repeat in range(2):
        for sample in range(6):
            alone = per_sample(data.batch(0, repeat, [sample], 6, 3, False), Draw(0, repeat, [sample]))
            expected[data.clip_at(0, repeat, sample, 6)] += alone.item() / 2
    assert worst(v_loss.held_out_loss(per_sample, data, 3, False, repeats=2), expected) < 1e-5
