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

PARTS = ("reference_unet", "denoising_unet", "pose_guider", "context_encoder", "autoencoder")
IMAGE, VIDEO = micro.model(motion=False), micro.model()


@torch.no_grad()
def offline(model, reference, conditions, noise, mask=None, look=False, levels=4, strength=0.5, guidance=2.0):
    """All frames at one level after the other; noise: (frames, levels, c, h, w), of the level that it leads to."""
    picture = to_signed(torch.from_numpy(reference)[None])
    features = model.pose_guider(to_unit(torch.from_numpy(conditions))[None])
    bank, context = model.look(picture)
    times = (schedule.stream_times(levels) * strength).long() - 1
    frames = len(conditions)
    latents = schedule.add_noise(model.autoencoder.encode(picture), noise[:, -1], times[0, -1].expand(frames))[None]
    omega = guidance_embedding(torch.tensor([guidance]), model.denoising_unet.cfg.guidance_dim)
    for level in reversed(range(levels)):
        now, after = (times[k, level].expand(1, frames) for k in (0, 1))
        v = model.denoising_unet(latents, now, context, features, omega, bank if look else None, temporal_mask=mask)
        latents = schedule.consistency_step(latents, v, now, after, noise[None, :, level - 1])
    return to_uint8(model.autoencoder.decode(latents)[0]).numpy().astype(int)


class Drawn:
    """Noise that a stream asks for, and which frame and level each was for: frames come and leave in order."""

    def __init__(self, stream):
        self.ask, self.noise, self.newest, self.stream = stream._noise, {}, -1, stream

    def __call__(self, levels):
        noise, of = self.ask(levels), self.stream
        if len(of._levels) < len(of._features):
            self.newest += 1  # a frame begins: its level is not entered yet
            frames = [self.newest]
        else:
            frames = range(self.newest + 1 - len(levels), self.newest + 1)
        for frame, level, each in zip(frames, levels.tolist(), noise, strict=True):
            self.noise[frame, level] = each
        return noise

    def table(self, frames):
        levels = range(self.stream.levels)
        return torch.stack([torch.stack([self.noise[frame, level] for level in levels]) for frame in range(frames)])


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", [StreamDiffusion, Live2Diff])
def test_streamed_as_offline(kind, fast, look):
    model, frames = (VIDEO if kind.motion else IMAGE), 7
    reference, conditions = micro.pictures(seed=9), micro.pictures(frames)
    stream = kind(model, guidance=2.0, look=look, fast=fast)
    stream._noise = drawn = Drawn(stream)
    stream.reference(reference)
    assert stream.push(list(conditions[:3])) == [] and stream.latency_frames == 4
    film = np.stack(stream.push(list(conditions[3:])) + stream.flush()).astype(int)
    noise, mask = drawn.table(frames), causal_mask(frames) if kind.motion else None
    expected = offline(model, reference, conditions, noise, mask, look)
    assert film.shape == expected.shape and np.abs(film - expected).max() <= 1
    alike = all(torch.equal(noise[0], each) for each in noise[1:])
    assert alike == (kind is StreamDiffusion) and not torch.equal(noise[0, 3], noise[0, 2])


def test_a_new_character_leaves_the_old_one_s_past():
    conditions, other = list(micro.pictures(16)), micro.pictures(seed=3)
    films = []
    for first in (5, 9):
        stream = Live2Diff(VIDEO, length=5, anchor=2, guidance=2.0)
        stream.reference(micro.pictures(seed=first))
        stream.push(conditions[:9])
        stream.reference(other)
        films.append(stream.push(conditions))
    assert not np.array_equal(films[0][2], films[1][2])  # begun with the first
    assert np.array_equal(films[0][3:], films[1][3:])


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
        assert sorted(in_time, key=in_time.get) == expected and (cache.hidden == 0).sum() == len(expected)
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
    with pytest.raises(ValueError, match="guidance: got None for this network, expected ω"):
        StreamDiffusion(micro.RAIN(*[getattr(IMAGE, part) for part in PARTS]))
    with pytest.raises(ValueError, match="guidance: got 2.0 for this network, expected None"):
        StreamDiffusion(micro.model(motion=False, guidance=False), guidance=2.0)
    stream = StreamDiffusion(IMAGE, guidance=0.0)
    assert torch.equal(stream._omega, guidance_embedding(torch.zeros(1), IMAGE.denoising_unet.cfg.guidance_dim))
    stream.reference(micro.pictures())
    good = list(micro.pictures(4))
    with pytest.raises(ValueError, match=r"condition: got size \(16, 24\), expected \(32, 24\)"):
        stream.push([good[0], micro.pictures(size=(16, 24))])
    with pytest.raises(TypeError, match="condition: got dtype torch.float32"):
        stream.push(good[0].astype(np.float32))
    assert len(stream.push(good)) == 1  # nothing of the bad pushes was left
    with pytest.raises(ValueError, match=r"reference: got size \(16, 24\)"):
        stream.reference(micro.pictures(size=(16, 24)))
    with pytest.raises(RuntimeError, match="no reference"):
        StreamDiffusion(IMAGE).push(micro.pictures())
