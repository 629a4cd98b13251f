"""Networks of published measures: their shapes, their files, and that nothing is downloaded."""

import micro
import numpy as np
import pytest
import torch
from torchvision import models

from rainlab.measure import published


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


def test_files_are_found_checked_and_loaded_strictly(brought):
    assert published.found() == {} and published.missing().count("\n") == len(published.FILES) - 1
    path = brought / "resnet-50-kinetics.pth"
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
    torch.save({"state_dict": Evil(brought / "harmed")}, path)
    with pytest.raises(ValueError, match="no weights of ResNet3D"):
        published.load(published.ResNet3D(), path)
    assert not (brought / "harmed").exists()
    (brought / "hub" / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="vgg16-397923af.pth: got sha256 e3b0c442.*, expected 397923af"):
        published.found()


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")
