"""Published measures that packages bring, on weights of the right shape: that the real path runs, and what it says."""

import micro
import numpy as np
import pytest
import torch
from torchvision import models

from rainlab import files
from rainlab.measure import legacy, metrics, perception, published


@pytest.fixture
def cache(brought, monkeypatch):
    """Torch's folder of checkpoints, in which any file has the checksum that its name says."""
    monkeypatch.setattr(files, "digest", lambda path: path.stem.rpartition("-")[2])
    return brought / "hub" / "checkpoints"


def test_nothing_there_is_said_with_the_files_that_are_missing(brought):
    with pytest.raises(FileNotFoundError, match="no network for a published measure is there; get one:\ni3d_pretr"):
        perception.compare(micro.micro())
    x = micro.pictures(1, 2)
    asked = {perception.clip_i: "clip-vit", perception.warping_error: "raft_large", perception.fid: "weights-inception"}
    for ask, file in asked.items():
        with pytest.raises(FileNotFoundError, match=file):
            ask(x, x)


def test_clip_compares_frames_and_frames_further_apart(brought):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                              image_size=32, patch_size=8, projection_dim=16)  # fmt: skip
    folder = brought / "clip-vit-base-patch32"
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    x, y = micro.pictures(2, 6), micro.pictures(2, 6, seed=1)
    assert perception.clip_i(x, x) == pytest.approx([1, 1], abs=1e-5)
    assert (perception.clip_i(x, y) < 1 - 1e-4).all() and perception.clip_vectors(x).shape == (2, 6, 16)
    half = np.concatenate([np.repeat(x[:, :1], 3, 1), np.repeat(y[:, :1], 3, 1)], 1)
    near, far = perception.consistency(half), perception.consistency(half, 3)
    assert far == pytest.approx(perception.clip_i(x[:, :1], y[:, :1]), abs=1e-5)
    assert near == pytest.approx(0.8 + 0.2 * far, abs=1e-5)


def test_raft_runs_on_small_pictures_and_its_flow_has_their_scale(cache, monkeypatch):
    torch.manual_seed(0)
    torch.save(models.optical_flow.raft_large().state_dict(), cache / "raft_large_C_T_SKHT_V2-ff5fadd5.pth")
    there, sure = perception.flow(micro.pictures(2))
    assert there.shape == (1, 32, 24, 2) and sure.shape == (1, 32, 24) and np.isfinite(there).all()
    # a network that sees everything go right by 8 of its pixels and back: 8 · 24/128 of the picture's
    seen = []

    def known(a, b):
        seen.append(a.shape)
        sign = 1 if len(seen) % 2 else -1
        return [torch.zeros(1, 2, *a.shape[2:]) + torch.tensor([sign * 8.0, 0])[:, None, None]]

    monkeypatch.setattr(perception, "_raft", lambda path: known)
    there, sure = perception.flow(micro.pictures(2))
    assert seen[0] == (1, 3, 176, 128)
    assert there[..., 0] == pytest.approx(8 * 24 / 128, rel=1e-4) and not there[..., 1].any()
    assert sure[0, :, :20].all() and not sure[0, :, 23:].any()  # what leaves the picture is not seen
    picture = np.repeat(micro.pictures(1, 1), 2, axis=1)
    seen.clear()
    assert perception.warping_error(picture, picture)[0] > 1  # it should have moved


@pytest.mark.filterwarnings("ignore:Metric `FrechetInceptionDistance`")
def test_fid_reads_inception_from_the_cache(cache, monkeypatch):
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    file = cache / "weights-inception-2015-12-05-6726825d.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(fidelity("shape", ["64"], str(file)).state_dict(), file)
    x, y = micro.pictures(2, 40), micro.pictures(2, 40, seed=1) // 2
    assert perception.fid(x, x, 64) == pytest.approx(0, abs=1e-3) and perception.fid(x, y, 64) > 0.01
    monkeypatch.setattr(perception.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'rainlab\[fid\]'"):
        perception.fid(x, y)


def test_lpips_reads_its_network_from_the_cache(brought, monkeypatch):
    x, y = micro.pictures(2, 2, size=(64, 64)), micro.pictures(2, 2, size=(64, 64), seed=1)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    with pytest.raises(FileNotFoundError, match="alex needs alexnet-owt-7be5be79.pth from download.pytorch.org"):
        perception.lpips(x, y, "alex")
    torch.manual_seed(0)
    torch.save(models.alexnet().state_dict(), brought / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    monkeypatch.setattr(files, "digest", lambda path: "7be5be79")
    right, wrong = (perception.lpips(x, y, "alex", legacy_range) for legacy_range in (False, True))
    assert right.shape == (2,) and (right > 0).all() and not np.allclose(right, wrong, rtol=1e-3)
    assert perception.lpips(x, x, "alex") == pytest.approx([0, 0], abs=1e-7)


def test_measures_are_recorded_with_the_files_they_looked_through(brought, monkeypatch):
    config = micro.micro(data__test_frames=18)
    micro.write_weights(config)
    torch.save(published.I3D().state_dict(), brought / "i3d_pretrained_400.pt")
    cheap = lambda window: torch.from_numpy(window[:, ::4, ::4].astype(np.float32))  # noqa: E731
    monkeypatch.setattr(perception, "i3d_input", cheap)
    monkeypatch.setattr(published.I3D, "forward", lambda self, x: x.flatten(1)[:, :8])
    run = perception.compare(config, record=True)
    assert {row["metric"] for row in run.metrics()} == {"fvd"}
    assert {row["method"] for row in run.metrics()} == set(legacy.COMPARED)
    row = run.value("fvd", method="copy")
    assert row["n"] == config.data.test_clips * 2 and row["protocol"] == legacy.PROTOCOL != metrics.PROTOCOL
    assert perception.compare(config).id == run.id
    torch.save(published.I3D().state_dict(), brought / "i3d_pretrained_400.pt")  # other weights: another run
    with pytest.raises(FileNotFoundError, match="record=yes"):
        perception.compare(config)
