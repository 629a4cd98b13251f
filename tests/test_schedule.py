"""The schedule equals the published code's and diffusers'; the staircase holds for any K, p, N."""

import pytest
import torch
from goldens import BOUNDS, golden, worst
from hypothesis import given
from hypothesis import strategies as st

from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding

ROUNDING = BOUNDS["d_scheduler"]


def test_published_tables():
    d = golden("d_scheduler")
    assert worst(schedule.alphas_cumprod(), d["out/alphas_cumprod"]) < ROUNDING
    assert schedule.alphas_cumprod()[-1] == 0  # zero terminal SNR
    for groups, calls in ((4, 1), (4, 2), (2, 1)):
        expected = d[f"out/timesteps{groups * calls}"]
        steps = [int(t) for row in schedule.stream_times(groups, calls)[:-1] for t in row - 1]
        assert sorted(steps, reverse=True) == expected.tolist()


def test_published_consistency_step():
    d = golden("d_scheduler")
    x, v, noise, t = d["in/sample"], d["in/model_output"], d["in/noise"], d["in/timesteps"]
    c_skip, c_out = schedule.boundary(t[0])
    assert max(worst(c_skip, d["out/c_skip"]), worst(c_out, d["out/c_out"])) < ROUNDING
    assert worst(schedule.consistency(x, v, t), d["out/denoised"]) < ROUNDING
    assert worst(schedule.consistency_step(x, v, t, t - 250, noise), d["out/prev_sample"]) < ROUNDING
    t8 = d["in/timesteps8x2"]
    assert worst(schedule.consistency_step(x, v, t8, t8 - 125, noise), d["out/prev_sample8"]) < ROUNDING


def test_published_guidance_embedding():
    e = golden("e_guidance")
    for dim in (512, 256, 33):
        assert worst(guidance_embedding(e["in/w"], dim), e[f"out/emb{dim}"]) < BOUNDS["e_guidance"]


def test_agrees_with_diffusers():
    from diffusers import DDIMScheduler, LCMScheduler

    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
              "prediction_type": "v_prediction", "timestep_spacing": "trailing",
              "rescale_betas_zero_snr": True}  # fmt: skip
    assert worst(LCMScheduler(**common).alphas_cumprod, schedule.alphas_cumprod()) < 1e-7
    ddim = DDIMScheduler(**common)
    ddim.set_timesteps(20)
    assert (schedule.ddim_times(20)[:-1] - 1).tolist() == ddim.timesteps.tolist()
    x = noise = torch.randn(1, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    network = lambda x, t: torch.sin(x) * (t[..., None, None, None] / 1000)  # noqa: E731
    for t in ddim.timesteps:
        x = ddim.step(network(x, torch.full((1, 2), int(t))), t, x).prev_sample
    assert worst(schedule.ddim(network, noise, 20), x) < 1e-5


def test_snr_is_that_of_the_noisy_picture():
    """Signal over noise as variances of what `add_noise` makes of a clean and of an empty picture, in float64."""
    one, zero = torch.ones(1, 999, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 999, 1, 1, 1, dtype=torch.float64)
    t = torch.arange(999)[None]
    signal, noise = schedule.add_noise(one, zero, t)[0, :, 0, 0, 0], schedule.add_noise(zero, one, t)[0, :, 0, 0, 0]
    # near t = 0 1 - ᾱ cancels: 6e-8 of 8e-4
    torch.testing.assert_close(schedule.snr(t[0]).double(), (signal / noise) ** 2, rtol=1e-3, atol=0)
    assert schedule.snr(torch.tensor(999)) == 0


def test_v_round_trip():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 4, 3, 3, generator=generator) for _ in range(2))
    t = torch.tensor([[0, 249, 499, 999], [1, 10, 750, 998]])
    noisy, v = schedule.add_noise(clean, noise, t), schedule.velocity(clean, noise, t)
    assert worst(schedule.clean_from_v(noisy, v, t), clean) < 1e-5
    assert worst(schedule.noise_from_v(noisy, v, t), noise) < 1e-5
    assert worst(schedule.solver_step(noisy, v, t, torch.full_like(t, -1)), clean) < 1e-5
    assert worst(schedule.consistency(clean, v, torch.zeros_like(t)), clean) == 0  # f(x, 0) = x


@given(st.integers(1, 8), st.integers(1, 6), st.data())
def test_staircase(groups, group_size, data):
    top = 1000 // groups
    t0 = data.draw(st.integers(1, top))
    times = schedule.staircase(t0, groups * group_size, groups)
    assert times.shape == (groups * group_size,)
    assert times.min() == t0 and times.max() <= 1000
    for g, group in enumerate(times.split(group_size)):
        assert (group == t0 + g * 1000 // groups).all()


@given(st.integers(1, 8), st.integers(1, 8))
def test_stream_times_go_down_to_where_the_next_group_stood(groups, calls):
    times = schedule.stream_times(groups, calls)
    assert times.shape == (calls + 1, groups)
    assert times[0, -1] == 1000 and times[-1, 0] == 0
    assert (times[:-1] > times[1:]).all()
    assert torch.equal(times[-1, 1:], times[0, :-1])  # after N calls each group stands where the one before it stood


def test_bad_windows_are_named():
    with pytest.raises(ValueError, match="K=10, groups p=4"):
        schedule.staircase(1, 10, 4)
    with pytest.raises(ValueError, match=r"\[251, 251\], expected \[1, T/p\] = \[1, 250\]"):
        schedule.staircase(251, 16, 4)
    with pytest.raises(ValueError, match="groups=0"):
        schedule.stream_times(0)
