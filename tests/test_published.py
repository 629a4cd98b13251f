"""Networks of published measures: their shapes, their files, and that nothing is downloaded."""

import micro
import numpy as np
import pytest
import torch
from torchvision import models

from rainlab.measure import legacy, metrics, published


@pytest.fixture
def weights(tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_WEIGHTS", str(tmp_path))
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path
    torch.hub.set_dir(before)


def test_i3d_has_the_published_size():
    network = published.I3D().eval()
    keys = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 12_697_264
    assert keys["Mixed_4f.b2b.conv3d.weight"].shape == (128, 32, 3, 3, 3)
    assert keys["logits.conv3d.bias"].shape == (400,) and "logits.bn.weight" not in keys
    # TensorFlow's "same": half of the size, rounded up, the odd one out at the end
    x = torch.arange(5.0).expand(1, 1, 1, 1, 5)
    assert published._same(x, (1, 1, 3), (1, 1, 2)).flatten().tolist() == [0, 0, 1, 2, 3, 4, 0]
    assert published._same(x, (1, 1, 7), (1, 1, 2)).shape[-1] == 5 + 6
    assert published._same(x[..., :4], (1, 1, 3), (1, 1, 2)).flatten().tolist() == [0, 1, 2, 3, 0]
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 16, 224, 224)).shape == (1, 400)


def test_the_3d_resnet_on_a_film_that_stands_still_is_the_2d_one():
    """With weights in the middle of each kernel only: torchvision's ResNet-50 is the measure."""
    torch.manual_seed(0)
    plain, inflated = models.resnet50().eval(), published.ResNet3D().eval()
    weights, flat = inflated.state_dict(), plain.state_dict()
    for key in weights.keys() & flat.keys():
        if weights[key].ndim == 5:
            weights[key].zero_()
            weights[key][:, :, weights[key].shape[2] // 2] = flat[key]
        elif not key.startswith("fc."):
            weights[key] = flat[key]
    inflated.load_state_dict(weights)
    picture = torch.randn(1, 3, 112, 112)
    plain.fc = torch.nn.Identity()
    with torch.no_grad():
        expected, got = plain(picture), inflated(picture[:, :, None].expand(-1, -1, 16, -1, -1))
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_frechet_distance_of_gaussians():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 3)) * [1, 2, 3]
    assert published.frechet(x, x) == pytest.approx(0, abs=1e-9)
    moved = 2 * x + [5, 0, 0]  # the covariance grows fourfold, and (2 - 1)² of its trace is the difference
    difference = np.square(x.mean(0) - moved.mean(0)).sum() + np.trace(np.cov(x, rowvar=False))
    assert published.frechet(x, moved) == pytest.approx(difference, rel=1e-6)
    with pytest.raises(ValueError, match="features: got 1 and 20000, expected at least two"):
        published.frechet(x[:1], x)


def test_windows_are_prepared_as_published():
    film = micro.pictures(16)
    assert published.i3d_input(film).shape == (3, 16, 224, 224) and published.resnet3d_input(film).shape[2:] == (
        112,
        112,
    )
    flat = np.full((1, 8, 8, 3), 255, np.uint8)
    assert published.i3d_input(flat).unique().tolist() == pytest.approx([1.0])
    assert published.resnet3d_input(flat)[:, 0, 0, 0].tolist() == pytest.approx([140.2252, 147.2646, 155.525])
    features = published.window_features(lambda x: x.mean((3, 4)).flatten(1), published.resnet3d_input,
                                         micro.pictures(2, 18))  # fmt: skip
    assert features.shape == (2 * 2, 3 * 16)


def test_files_are_found_checked_and_loaded_strictly(weights, monkeypatch):
    assert published.found() == {} and published.missing().count("\n") == 3
    with pytest.raises(FileNotFoundError, match="no network for a published measure is there; get one:\ni3d_pretr"):
        published.compare(micro.micro())
    path = weights / "resnet-50-kinetics.pth"
    made = published.ResNet3D().state_dict()
    torch.save({"epoch": 1, "state_dict": {f"module.{key}": value for key, value in made.items()}}, path)
    assert published.found() == {"resnet3d": path}
    loaded = published.load(published.ResNet3D(), path)
    assert torch.equal(loaded.state_dict()["layer4.2.conv3.weight"], made["layer4.2.conv3.weight"])
    with pytest.raises(ValueError, match="resnet-50-kinetics.pth: no weights of I3D"):
        published.load(published.I3D(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="no weights of ResNet3D .*; get it again"):
        published.load(published.ResNet3D(), path)
    torch.save({"state_dict": Evil(weights / "harmed")}, path)
    with pytest.raises(ValueError, match="no weights of ResNet3D"):
        published.load(published.ResNet3D(), path)
    assert not (weights / "harmed").exists()
    (weights / "hub" / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="vgg16-397923af.pth: got sha256 e3b0c442.*, expected 397923af"):
        published.found()


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_lpips_reads_its_network_from_the_cache(weights, monkeypatch):
    x, y = micro.pictures(2, 2, size=(64, 64)), micro.pictures(2, 2, size=(64, 64), seed=1)
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    with pytest.raises(FileNotFoundError, match="LPIPS needs alexnet-owt-7be5be79.pth from download.pytorch.org"):
        published.lpips(x, y, "alex")
    torch.manual_seed(0)
    torch.save(models.alexnet().state_dict(), weights / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth")
    monkeypatch.setattr(published, "digest", lambda path: "7be5be79")
    right, wrong = (published.lpips(x, y, "alex", legacy_range) for legacy_range in (False, True))
    assert right.shape == (2,) and (right > 0).all() and not np.allclose(right, wrong, rtol=1e-3)
    assert published.lpips(x, x, "alex") == pytest.approx([0, 0], abs=1e-7)


def test_measures_are_recorded_with_the_files_they_looked_through(weights, monkeypatch):
    config = micro.micro(data__test_frames=18)
    micro.write_weights(config)
    torch.save(published.I3D().state_dict(), weights / "i3d_pretrained_400.pt")
    cheap = lambda window: torch.from_numpy(window[:, ::4, ::4].astype(np.float32))  # noqa: E731
    monkeypatch.setattr(published, "i3d_input", cheap)
    monkeypatch.setattr(published.I3D, "forward", lambda self, x: x.flatten(1)[:, :8])
    run = published.compare(config, record=True)
    assert {row["metric"] for row in run.metrics()} == {"fvd"}
    assert {row["method"] for row in run.metrics()} == set(legacy.COMPARED)
    row = run.value("fvd", method="copy")
    assert row["n"] == config.data.test_clips * 2 and row["protocol"] == legacy.PROTOCOL != metrics.PROTOCOL
    assert published.compare(config).id == run.id
    torch.save(published.I3D().state_dict(), weights / "i3d_pretrained_400.pt")  # other weights: another run
    with pytest.raises(FileNotFoundError, match="record=yes"):
        published.compare(config)
