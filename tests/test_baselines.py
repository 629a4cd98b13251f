"""The streaming baselines give, frame by frame, what their method gives when all frames lie before one."""

import micro
import numpy as np
import pytest
import torch

from rainlab.baselines.live2diff import Live2Diff
from rainlab.baselines.stream_diffusion import StreamDiffusion
from rainlab.method import schedule
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.rain import to_signed, to_uint8, to_unit
from rainlab.method.unet import causal_mask

IMAGE, VIDEO = micro.model(motion=False), micro.model()


@torch.no_grad()
def offline(model, reference, conditions, noise, mask=None, levels=4, strength=0.5, guidance=2.0):
    """All frames at one level after the other."""
    picture = to_signed(torch.from_numpy(reference)[None])
    features, context = model.pose_guider(to_unit(torch.from_numpy(conditions))[None]), model.context_encoder(picture)
    times = (schedule.stream_times(levels) * strength).long() - 1
    frames = len(conditions)
    latent = schedule.add_noise(model.autoencoder.encode(picture)[0], noise[-1], times[0, -1])
    latents = latent.expand(1, frames, *latent.shape)
    omega = guidance_embedding(torch.tensor([guidance]), model.denoising_unet.cfg.guidance_dim)
    for level in reversed(range(levels)):
        now, after = (times[k, level].expand(1, frames) for k in (0, 1))
        v = model.denoising_unet(latents, now, context, features, omega, None, temporal_mask=mask)
        latents = schedule.consistency_step(latents, v, now, after, noise[level].expand_as(latents))
    return to_uint8(model.autoencoder.decode(latents)[0]).numpy().astype(int)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", [StreamDiffusion, Live2Diff])
def test_streamed_as_offline(kind, fast):
    model, frames = (VIDEO, 7) if kind.motion else (IMAGE, 7)
    reference, conditions = micro.pictures(seed=9), micro.pictures(frames)
    stream = kind(model, guidance=2.0, fast=fast)
    stream.reference(reference)
    assert stream.push(list(conditions[:3])) == [] and stream.latency_frames == 4
    film = np.stack(stream.push(list(conditions[3:])) + stream.flush()).astype(int)
    expected = offline(model, reference, conditions, stream._noise, causal_mask(frames) if kind.motion else None)
    assert film.shape == expected.shape and np.abs(film - expected).max() <= 1


def test_frames_of_stream_diffusion_do_not_see_each_other_and_those_of_live2diff_see_the_past_alone():
    conditions = micro.pictures(6)
    changed = conditions.copy()
    changed[2] = 255 - changed[2]
    for kind, model, alike in ((StreamDiffusion, IMAGE, [0, 1, 3, 4, 5]), (Live2Diff, VIDEO, [0, 1])):
        films = []
        for driver in (conditions, changed):
            stream = kind(model, guidance=2.0)
            stream.reference(micro.pictures(seed=9))
            films.append(np.stack(stream.push(list(driver)) + stream.flush()))
        same = [i for i in range(6) if np.array_equal(films[0][i], films[1][i])]
        assert same == alike


def test_the_cache_keeps_the_anchor_and_the_newest():
    """Where every frame has its slot in time: frames 0 and 1 stay, of the others the newest three are there."""
    stream = Live2Diff(VIDEO, length=5, anchor=2, levels=1, guidance=2.0)
    cache, held = stream._cache, {}
    for frame in range(12):
        cache.enter([0], 1, torch.device("cpu"))
        held[cache.places.item()] = frame
        in_time = {held[place]: position for place, position in enumerate(cache.positions[0].tolist()) if place in held}
        newest = list(range(max(2, frame - 2), frame + 1)) if frame > 1 else []
        expected = [0, 1][: frame + 1] + newest
        assert sorted(in_time, key=in_time.get) == expected and cache.seen.sum() == len(expected)
        assert sorted(in_time.values()) == list(range(len(expected))) and in_time[frame] == cache.now.item()


def test_a_long_stream_goes_on_and_begins_anew():
    stream, conditions = Live2Diff(VIDEO, length=5, anchor=2, guidance=2.0), list(micro.pictures(12))
    stream.reference(micro.pictures(seed=9))
    first = stream.push(conditions)
    assert len(first) == 9
    stream.reset()
    assert np.array_equal(stream.push(conditions), first)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="model: got motion=True, expected one made by RAIN.build"):
        StreamDiffusion(VIDEO)
    with pytest.raises(ValueError, match="model: got motion=False"):
        Live2Diff(IMAGE)
    with pytest.raises(ValueError, match="strength: got 0"):
        StreamDiffusion(IMAGE, strength=0)
    with pytest.raises(ValueError, match="anchor=8, length=8"):
        Live2Diff(VIDEO, length=8)
    with pytest.raises(RuntimeError, match="no reference"):
        StreamDiffusion(IMAGE).push(micro.pictures())
