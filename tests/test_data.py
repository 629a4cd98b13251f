"""Draws and batches depend on (seed, step, sample) alone; arrays are made once and survive interruption."""

import micro
import numpy as np
import pytest
import torch

from rainlab import runs
from rainlab.data import dataset
from rainlab.data.dataset import Draw, TrainingSet
from rainlab.method.vae import build


def test_draws_do_not_depend_on_how_a_batch_is_split():
    whole = Draw(0, 3, range(4))
    parts = [Draw(0, 3, range(2)), Draw(0, 3, range(2, 4))]
    for name, shape in (("normal", (2, 3)), ("uniform", ()), ("integers", (0, 10, 5))):
        joined = torch.cat([getattr(part, name)(*shape) for part in parts])
        assert torch.equal(getattr(whole, name)(*shape), joined)
    first = Draw(0, 3, [0]).normal(8)
    assert not any(torch.equal(first, Draw(*key, [0]).normal(8)) for key in ((1, 3), (0, 4)))


def test_every_clip_is_seen_once_an_epoch():
    clips = micro.training_set(micro.micro(data__clips=6))
    for epoch in range(3):
        seen = [clips.clip_at(0, step, sample, 2) for step in range(3 * epoch, 3 * epoch + 3) for sample in range(2)]
        assert sorted(seen) == list(range(6))


def test_batches():
    config = micro.micro()
    clips = micro.training_set(config)
    one = clips.batch(0, 5, range(2), 2, 3, False)
    again = clips.batch(0, 5, range(2), 2, 3, False)
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(again).values(), strict=True))
    split = [clips.batch(0, 5, [i], 2, 3, False) for i in range(2)]
    assert torch.equal(one.latents, torch.cat([part.latents for part in split]))
    clip = clips.clip_at(0, 5, 0, 2)
    at = [int(np.where((clips.pictures[1][clip] == c.numpy()).all((1, 2, 3)))[0][0]) for c in one.condition[0]]
    reference = int(np.where((clips.pictures[0][clip] == one.reference[0].numpy()).all((1, 2, 3)))[0][0])
    assert len(set(at)) == 3 and at == sorted(at) and min(abs(i - reference) for i in at) >= config.data.margin
    assert torch.equal(one.latents[0], torch.from_numpy(np.array(clips.latents[clip, at])).float())
    assert torch.equal(one.reference_latents[0], torch.from_numpy(np.array(clips.latents[clip, reference])).float())
    starts = set()
    for step in range(20):
        windows, clip = clips.batch(0, step, range(2), 2, 8, True), clips.clip_at(0, step, 0, 2)
        found = [(clips.pictures[1][clip] == c.numpy()).all((1, 2, 3)) for c in windows.condition[0]]
        at = np.argmax(found, axis=1)
        assert np.any(found, axis=1).all() and np.diff(at).tolist() == [1] * 7
        starts.add(int(at[0]))
    assert starts == {0, 1, 2}
    with pytest.raises(ValueError, match="clips of 10 frames: got 11 asked for"):
        clips.batch(0, 0, [0], 2, 8, False)


def test_the_frame_that_faces_the_camera_is_the_reference():
    config = micro.micro(data__clips=16)
    clips = micro.training_set(config)
    clips.facing = True
    references, targets = [], []
    for step in range(20):
        batch = clips.batch(0, step, range(2), 2, 3, False)
        windows = clips.batch(0, step, range(2), 2, 8, True)
        for sample in range(2):
            pictures, conditions = clips.take(clips.clip_at(0, step, sample, 2))
            at = lambda x, arrays: int(np.flatnonzero((arrays == x.numpy()).all((1, 2, 3)))[0])  # noqa: E731
            references.append(at(batch.reference[sample], pictures))
            assert at(windows.reference[sample], pictures) in range(10)
            chosen = [at(c, conditions) for c in batch.condition[sample]]
            assert references[-1] == 0 or min(abs(i - references[-1]) for i in chosen) >= config.data.margin
            targets += chosen + [at(c, conditions) for c in windows.condition[sample]]
    assert 0.65 < np.mean(np.equal(references, 0)) < 0.95
    assert set(targets) == set(range(1, 10))  # it is never a target
    with pytest.raises(ValueError, match="clips of 10 frames: got 10 asked for"):
        clips.batch(0, 0, range(2), 2, 10, True)


def test_a_sink_is_from_elsewhere_in_the_clip():
    clips, seen = micro.training_set(micro.micro()), set()
    for step in range(40):
        alone, batch = (clips.batch(0, step, range(2), 2, 4, True, sink) for sink in (0, 2))
        assert torch.equal(batch.latents[:, :4], alone.latents) and torch.equal(batch.condition[:, :4], alone.condition)
        _, conditions = clips.take(clips.clip_at(0, step, 0, 2))
        at = [int(np.flatnonzero((conditions == c.numpy()).all((1, 2, 3)))[0]) for c in batch.condition[0]]
        assert len(set(at)) == 6 and at[5] == at[4] + 1
        seen.add(at[4] > at[0])
    assert seen == {False, True}
    with pytest.raises(ValueError, match="clips of 10 frames: got 11 asked for"):
        clips.batch(0, 0, range(2), 2, 8, True, 2)


class Breaks(list):
    """Clips that stop working half-way."""

    def __getitem__(self, i):
        if isinstance(i, slice) and i.stop > 60:
            raise KeyboardInterrupt
        return super().__getitem__(i)

    def fingerprint(self):
        return {"source": "test"}


class Counts(Breaks):
    asked = 0

    def __getitem__(self, i):
        part = list.__getitem__(self, i)
        Counts.asked += len(part) if isinstance(i, slice) else 1
        return part


def test_interrupted_arrays_go_on_and_are_made_once():
    from rainlab.data.clips import Clip

    frames = micro.pictures(70, 2, size=(4, 4))
    clips = [Clip(f, 255 - f, "x", 12.0, "train", "test") for f in frames]
    with pytest.raises(KeyboardInterrupt):
        dataset.cached(Breaks(clips))
    done, run = dataset.cached(Counts(clips))
    assert Counts.asked <= 40  # 32 were written down before the interruption
    assert run.finished and np.array_equal(done.pictures[0], frames) and np.array_equal(done.pictures[1], 255 - frames)
    Counts.asked = 0
    dataset.cached(Counts(clips))
    assert Counts.asked == 0


def test_latents_are_encoded_once():
    config = micro.micro()
    clips, vae = micro.training_set(config), build(config.autoencoder)
    path = runs.folder() / "latents.npy"
    latents = np.array(clips.encode(vae, path).latents)
    with torch.no_grad():
        expected = vae.encode(dataset.to_signed(torch.from_numpy(clips.pictures[0][2].copy())))
    assert np.abs(latents[2] - expected.numpy()).max() < 2e-3 and latents.dtype == np.float16
    stamp = path.stat().st_mtime_ns
    clips.encode(vae, path)
    assert path.stat().st_mtime_ns == stamp


def test_studio_and_manifest_read_alike(tmp_path):
    """Training does not care where clips come from."""
    from rainlab.data.clips import write_studio

    like = {"data__width": 32, "data__facing": False}  # h264 wants even sizes; a manifest knows of no facing
    config = micro.micro(data__fps=6.0, **like)
    cfg = config.data
    manifest = write_studio(tmp_path, "train", cfg.clips, cfg.frames, cfg.size, cfg.fps)
    real = micro.micro(data__source=str(manifest), **like).data
    sources = [dataset.clips_of(c, "train") for c in (cfg, real)]
    assert [source[0].fps for source in sources] == [6.0, 6.0]
    batches = []
    for source in sources:
        clips = TrainingSet(source)
        batches.append(clips.batch(0, 0, range(2), 2, 3, False))
    error = (batches[0].reference.float() - batches[1].reference.float()).square().mean()
    assert error < 255**2 * 10**-2.8  # 28 dB: what h264 loses
    assert torch.equal(batches[0].condition, batches[1].condition) and batches[0].condition.any()  # kept lossless
