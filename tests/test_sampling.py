"""Streams in full flow, DDIM, and what can be seen inside a window."""

import micro
import numpy as np
import pytest
import torch
from goldens import worst

from rainlab.method import sampling
from rainlab.method.stream import Stream
from rainlab.method.unet import TemporalAttention, causal_mask


def test_streams_are_measured_in_full_flow():
    """Before and behind a clip runs its mirror image, however short the clip."""
    assert sampling.mirrored(4, 6, 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert sampling.mirrored(1, 2, 2).tolist() == [0] * 5


def test_many_clips_stream_some_side_by_side(monkeypatch):
    monkeypatch.setattr(sampling, "SIDE_BY_SIDE", 1)
    model = micro.model()
    reference, condition = micro.pictures(2, seed=9), micro.pictures(2, 6)
    frames = sampling.stream(model, reference, condition)
    alone = [sampling.stream(model, reference[i : i + 1], condition[i : i + 1]) for i in range(2)]
    assert frames.shape == condition.shape and np.array_equal(frames, np.concatenate(alone))


@pytest.mark.parametrize("streamed", [True, False])
def test_the_networks_are_shown_pictures_in_the_range_they_were_trained_on(streamed):
    picture, conditions = micro.pictures(seed=9), micro.pictures(2)
    model, seen = micro.model(guidance=streamed), {}
    model.context_encoder.register_forward_pre_hook(lambda _, inputs: seen.update(reference=inputs[0]))
    model.pose_guider.register_forward_pre_hook(lambda _, inputs: seen.update(pose=inputs[0]))
    if streamed:
        stream = Stream(model, 8, 4)
        stream.reference(picture)
        stream.push(list(conditions))
    else:
        sampling.sample(model, picture[None], conditions[None], steps=1)
    assert worst(seen["reference"], torch.from_numpy(picture).movedim(-1, 0)[None] / 127.5 - 1) < 1e-6
    assert worst(seen["pose"], torch.from_numpy(conditions).movedim(-1, 1)[None] / 255) < 1e-6


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_solver_stream_of_one_group_is_guided_ddim(guidance):
    """All frames at one level, p·N steps: plain DDIM of the window from the stream's noise."""
    model, reference, condition = micro.model(guidance=False), micro.pictures(1, seed=9), micro.pictures(1, 8)
    stream = sampling.SolverStream(model, 8, 1, 5, guidance=guidance, batch=1, seed=3)
    stream.reference(reference)
    frames = np.stack(stream.push(list(condition.swapaxes(0, 1))), axis=1)
    assert np.array_equal(frames, sampling.sample(model, reference, condition, 5, guidance, seed=3))


def test_ddim_samples_all_frames_together_unless_causal():
    model, reference = micro.model(guidance=False), micro.pictures(1, seed=9)
    condition = micro.pictures(1, 4)
    changed = condition.copy()
    changed[:, 3] = 255
    made = {
        causal: [sampling.sample(model, reference, x, steps=2, causal=causal)[0] for x in (condition, changed)]
        for causal in (False, True)
    }
    differs = {causal: (a != b).any((1, 2, 3)).tolist() for causal, (a, b) in made.items()}
    assert differs == {False: [True] * 4, True: [False] * 3 + [True]}


def test_ddim_guidance_of_one_is_none_and_two_is_not():
    model, inputs = micro.model(guidance=False), (micro.pictures(1, seed=9), micro.pictures(1, 2))
    plain, one, two = (sampling.sample(model, *inputs, steps=2, guidance=g).astype(int) for g in (None, 1.0, 2.0))
    assert np.abs(plain - one).max() <= 1 < np.abs(plain - two).max()
    again = sampling.sample(model, *inputs, steps=2)
    assert np.array_equal(plain, again) and not np.array_equal(plain, sampling.sample(model, *inputs, steps=2, seed=1))


def test_the_film_of_a_window_fills_from_the_noisy_end():
    conditions = micro.pictures(12)
    made = [Stream(micro.model(), 8, 4, guidance=2.0) for _ in range(2)]
    for stream in made:
        stream.reference(micro.pictures(seed=9))
    film = sampling.window_film(made[0], conditions)
    assert film.shape == (6, 4, 32, 24, 3)
    filled = (film != 255).any((2, 3, 4))
    assert np.array_equal(filled, np.arange(6)[:, None] + np.arange(4) >= 3)  # a group more each tick
    assert np.array_equal(film[3:, 0], made[1].push(list(conditions))[::2])
    latents, times = made[0].contents
    for group in (1, 2, 3):
        noisy = latents[:, times.tolist().index(250 * group)]
        picture = made[0].model.autoencoder.decode(noisy)[0].clamp(-1, 1).movedim(0, -1) * 127.5 + 127.5
        assert np.abs(film[-1, group] - picture.numpy()).max() < 1


@pytest.mark.parametrize("groups", [3, 16])
def test_every_group_has_its_column_also_where_p_does_not_divide_the_time(groups):
    stream = Stream(micro.model(), groups, groups, guidance=2.0)
    stream.reference(micro.pictures(seed=9))
    film = sampling.window_film(stream, micro.pictures(2 * groups))
    filled = (film != 255).any((2, 3, 4))
    assert np.array_equal(filled, np.arange(2 * groups)[:, None] + np.arange(groups) >= groups - 1)


def test_attention_weights_are_those_of_the_layer():
    torch.manual_seed(0)
    layer, x = TemporalAttention(32, 4, 16), torch.randn(3, 8, 32)
    with torch.no_grad():
        values = layer.to_v(x + layer.pos_encoder.pe[:, :8]).unflatten(2, (4, 8)).transpose(1, 2)
        for mask in (None, causal_mask(8)):
            weighted = (layer.weights(x, mask) @ values).transpose(1, 2).flatten(2)
            assert worst(layer.to_out[0](weighted), layer(x, mask)) < 1e-5


def test_attention_over_time_is_a_distribution_and_obeys_the_mask():
    model = micro.model(guidance=False)
    bank, context = model.look(torch.rand(1, 3, 32, 24) * 2 - 1)
    pose = model.pose_guider(torch.rand(1, 8, 3, 32, 24))
    inputs = (torch.randn(1, 8, 4, 8, 6), torch.full((1, 8), 499), context, pose, None, bank)
    free = sampling.temporal_attention(model.denoising_unet, *inputs)
    causal = sampling.temporal_attention(model.denoising_unet, *inputs, temporal_mask=causal_mask(8))
    assert free.keys() == causal.keys() and len(free) > 2
    for name in free:
        assert free[name].shape == (8, 8) and np.allclose(free[name].sum(1), 1, atol=1e-5)
        assert (np.triu(causal[name], 1) == 0).all() and (np.triu(free[name], 1) > 0).sum() == 28
    assert not any(module._forward_pre_hooks for module in model.denoising_unet.modules())
