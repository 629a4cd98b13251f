"""Published weights: whole files load strictly and are mapped, others are refused by name, nothing in them runs."""

import os
import pickle
import shutil

import micro
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import rainlab
from rainlab.config import PRESETS, make_preset
from rainlab.files import digest
from rainlab.method import pretrained
from rainlab.method.rain import RAIN
from rainlab.training import stages

CONFIG = micro.micro()
NETWORKS = {
    "reference_unet": "reference_unet.pth",
    "denoising_unet": "motion_unet.pth",
    "pose_guider": "pose_guider.pth",
}


@pytest.fixture
def published(tmp_path):
    """A folder as RAIN v0.1 is published, of narrow networks, and the model that it was written from."""
    model = micro.model(CONFIG)
    for part, file in NETWORKS.items():
        state = {key: tensor.clone() for key, tensor in getattr(model, part).state_dict().items()}
        torch.save(state, tmp_path / file)
    return tmp_path, model


def small(monkeypatch):
    """The small autoencoder and context stand in for the published ones."""
    model = micro.model(CONFIG)
    monkeypatch.setattr(pretrained.vae, "build", lambda cfg: model.autoencoder)
    monkeypatch.setattr(pretrained, "build_context", lambda cfg: model.context_encoder)


def test_rain_loads_and_streams_the_same_frames(published, monkeypatch):
    folder, model = published
    small(monkeypatch)
    loaded = pretrained.load_rain(folder, CONFIG)
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    conditions, frames = list(micro.pictures(8)), []
    for each in (model, loaded):
        stream = rainlab.Stream(each, 8, 4, guidance=2.0)
        stream.reference(micro.pictures(seed=9))
        frames.append(stream.push(conditions))
    assert np.array_equal(*frames)
    half = pretrained.load_rain(folder, CONFIG, torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}


def test_a_folder_is_a_model_s_name(published, monkeypatch):
    small(monkeypatch)
    monkeypatch.setitem(PRESETS, "paper", CONFIG)
    monkeypatch.setattr("rainlab.config.PAPER_TASKS", {"face": {"stream.guidance": 2.5}})
    assert rainlab.load(str(published[0])).preset.stream.guidance == 2.5


def test_a_file_is_mapped_not_read(tmp_path):
    """A gigabyte is there at once, and memory grows by what is used of it."""
    psutil = pytest.importorskip("psutil")
    resident = psutil.Process().memory_info
    big = torch.zeros(64, 2**20, dtype=torch.float16)
    torch.save({"weight": big}, tmp_path / "w.pth")
    save_file({"weight": big}, tmp_path / "v.safetensors")
    del big
    for file in ("w.pth", "v.safetensors"):
        before = resident().rss
        network = nn.Linear(2**20, 64, bias=False, device="meta")
        pretrained.place(network, pretrained.mapped(tmp_path / file), file)
        assert resident().rss - before < 16 * 2**20
        assert network.weight[3, 5] == 0 and network.weight.dtype == torch.float16


def test_stages_start_from_published_files(tmp_path):
    """Stage 1's two networks from one UNet of SD's, stage 2's motion modules from AnimateDiff's; the rest is new."""
    source, fresh = micro.model(CONFIG, seed=1), RAIN.build(CONFIG, motion=True, guidance=False)
    state = source.denoising_unet.state_dict()
    motion = {f"module.{key}": tensor for key, tensor in state.items() if ".motion_modules." in key}
    spatial = {k: t for k, t in state.items() if ".motion_modules." not in k and k != pretrained.OMEGA}
    torch.save({"state_dict": motion, "epoch": torch.tensor(3)}, tmp_path / "mm.ckpt")
    save_file(spatial, tmp_path / "unet.safetensors")
    files = {"model.unet_path": str(tmp_path / "unet.safetensors"), "model.motion_path": str(tmp_path / "mm.ckpt")}
    preset = micro.micro(**{key.replace(".", "__"): value for key, value in files.items()})
    micro.write_weights(preset, ("autoencoder",))
    one = stages.Training(preset, "stage1").start().model
    assert torch.equal(one.denoising_unet.conv_in.weight, state["conv_in.weight"])
    assert torch.equal(one.reference_unet.conv_in.weight, state["conv_in.weight"])
    pretrained.start(fresh, motion=files["model.motion_path"])
    for key, tensor in fresh.denoising_unet.state_dict().items():
        if ".motion_modules." in key:
            assert torch.equal(tensor, state[key]), key
    assert not torch.equal(fresh.denoising_unet.conv_in.weight, state["conv_in.weight"])


def test_a_folder_of_moores(tmp_path):
    source, fresh = micro.model(CONFIG, guidance=False, seed=1), RAIN.build(CONFIG, motion=True, guidance=False)
    state = source.denoising_unet.state_dict()
    parts = {
        "denoising_unet.pth": {key: t for key, t in state.items() if ".motion_modules." not in key},
        "motion_module.pth": {key: t for key, t in state.items() if ".motion_modules." in key},
        "reference_unet.pth": source.reference_unet.state_dict(),
        "pose_guider.pth": source.pose_guider.state_dict(),
    }
    for file, tensors in parts.items():
        torch.save({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / file)
    pretrained.start(fresh, spatial=tmp_path)
    for part in NETWORKS:
        for key, tensor in getattr(source, part).state_dict().items():
            assert torch.equal(getattr(fresh, part).state_dict()[key], tensor), key


class Runs:
    """What a file must not be able to do: call something while it is read."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("kind", ["code", "code, old", "torn", "empty", "text", "list", "safetensors"])
def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "code":
        torch.save({"w": Runs()}, path)
    elif kind == "code, old":
        path.write_bytes(pickle.dumps({"w": Runs()}, protocol=2))
    elif kind == "list":
        torch.save([torch.zeros(3)], path)
    elif kind == "torn":
        torch.save({"w": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "safetensors":
        save_file({"w": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:2000])
    else:
        path.write_text("<html>not found</html>" if kind == "text" else "")
    with pytest.raises(ValueError, match=r"^w\.(pth|safetensors): "):
        pretrained.mapped(path)
    assert not (tmp_path / "executed").exists()


def test_what_does_not_fit_is_named_and_changes_nothing(published):
    folder, model = published
    before = {key: tensor.clone() for key, tensor in model.pose_guider.state_dict().items()}
    tensors = pretrained.mapped(folder / "pose_guider.pth")
    first = next(iter(tensors))
    wrong = {key: tensor + 1 for key, tensor in tensors.items()} | {first: torch.zeros(3), "extra": torch.zeros(1)}
    with pytest.raises(
        ValueError, match="g.pth: these are not the weights of this PoseGuider: extra: unknown"
    ) as error:
        pretrained.place(model.pose_guider, wrong, "g.pth")
    assert f"{first}: got shape (3,), expected" in str(error.value)
    with pytest.raises(ValueError, match=f"{first}: missing"):
        pretrained.place(model.pose_guider, {k: t for k, t in tensors.items() if k != first}, "g.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.pose_guider.state_dict().items())
    wide = micro.model(micro.micro(model__channels=(64, 64)))
    with pytest.raises(ValueError, match=r"got shape \(32, .*expected \(64, .*in all\)"):
        pretrained.place(wide.reference_unet, pretrained.mapped(folder / "reference_unet.pth"), "reference_unet.pth")
    with pytest.raises(FileNotFoundError, match="rain-v0.1/motion_unet.pth is not there.*Pscgylotti/RAIN-v0.1"):
        pretrained.mapped(folder / "weights" / "rain-v0.1" / "motion_unet.pth")


def test_a_converted_file_replaces_the_pickled_one(tmp_path):
    shared = torch.arange(6.0)
    torch.save({"state_dict": {"module.a": shared, "module.b": shared[2:4]}}, tmp_path / "w.ckpt")
    before = pretrained.mapped(tmp_path / "w.ckpt")
    assert pretrained.convert(tmp_path / "w.ckpt") == tmp_path / "w.safetensors" and not (tmp_path / "w.ckpt").exists()
    after = pretrained.mapped(tmp_path / "w.ckpt")  # asked for by the name it was published under
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in after)
    with pytest.raises(ValueError, match="got '.safetensors', expected one of"):
        pretrained.convert(tmp_path / "w.safetensors")


def test_a_file_is_fetched_once_at_its_commit_and_only_whole(tmp_path, monkeypatch):
    origin, asked = tmp_path / "origin.ckpt", []
    torch.save({"w": torch.arange(5.0)}, origin)
    monkeypatch.setattr(pretrained, "root", lambda: tmp_path)

    def download(repo, file, revision, local_dir):
        asked.append((repo, file, revision))
        local_dir.mkdir(parents=True)
        return shutil.copy(origin, local_dir / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    right = pretrained.Source("a/b", "c0ffee", "w.ckpt", origin.stat().st_size, digest(origin))
    with pytest.raises(ValueError, match="got .* bytes with sha256 .*, expected .* and 0000"):
        pretrained.fetch("x/w.ckpt", pretrained.Source("a/b", "c0ffee", "w.ckpt", right.size, "0000"))
    assert not list(tmp_path.rglob("weights/**/*.ckpt"))
    shutil.rmtree(tmp_path / "weights")
    for _ in range(2):
        assert pretrained.fetch("x/w.ckpt", right) == tmp_path / "weights" / "x" / "w.safetensors"
    assert asked == [("a/b", "w.ckpt", "c0ffee")] * 2 and os.listdir(tmp_path / "weights" / "x") == ["w.safetensors"]
    with pytest.raises(ValueError, match="no checksum is known.*Pscgylotti/RAIN-v0.1 by hand"):
        pretrained.fetch("rain-v0.1/motion_unet.pth")
    assert pretrained.missing() == [*pretrained.SOURCES]


def test_sources_are_pinned_where_the_presets_look(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "root", lambda: tmp_path)
    paper = make_preset("paper").model
    for path in (paper.unet_path, paper.motion_path):
        assert (tmp_path / path).relative_to(pretrained.folder()).as_posix() in pretrained.SOURCES
    for name, source in pretrained.SOURCES.items():
        if source.sha256:
            assert (len(source.revision), len(source.sha256)) == (40, 64) and source.size and source.file, name


@pytest.mark.slow
def test_full_width_files_load_without_a_second_copy(tmp_path):
    """The paper's networks in fp16, 4.4 GB of random content under all of the published names."""
    psutil = pytest.importorskip("psutil")
    cfg = make_preset("paper").model
    with torch.device("meta"):
        networks = {"motion_unet.pth": pretrained.UNet(cfg.unet(4, motion=True, guidance=True)),
                    "reference_unet.pth": pretrained.UNet(cfg.unet(4, out=False))}  # fmt: skip
    count = 0
    for file, network in networks.items():
        state = {
            key: torch.full(tensor.shape, 0.01, dtype=torch.float16) for key, tensor in network.state_dict().items()
        }
        count += sum(tensor.numel() for tensor in state.values())
        torch.save(state, tmp_path / file)
        del state
    before = psutil.Process().memory_info().rss
    for file, network in networks.items():
        pretrained.place(network, pretrained.mapped(tmp_path / file), file)
    assert count > 2.1e9 and psutil.Process().memory_info().rss - before < 0.2 * 2 * count
    assert all(tensor.device.type == "cpu" for net in networks.values() for tensor in net.state_dict().values())
