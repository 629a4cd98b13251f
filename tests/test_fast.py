"""The fast network gives what the plain one gives, whatever is rewritten and however the stream goes."""

import types

import micro
import numpy as np
import pytest
import torch
from goldens import BOUNDS, denoising_unet, golden, worst

from rainlab.method import fast as fast_module
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.fast import REWRITES, FastUNet, keep_freed_memory, laid_out, quantise
from rainlab.method.stream import Stream
from rainlab.method.unet import causal_mask

MODEL = micro.model()
UNET = MODEL.denoising_unet


def arguments(frames=8, batch=1, seed=0, guidance=2.0):
    """What a stream passes: random latents, features and bank, times in pairs."""
    draw = torch.Generator().manual_seed(seed)
    cfg = UNET.cfg
    pictures = torch.rand(batch, 3, 32, 24, generator=draw) * 2 - 1
    bank, context = MODEL.look(pictures)
    latents = torch.randn(batch, frames, cfg.latent_channels, 8, 6, generator=draw)
    pose = torch.randn(batch, frames, cfg.channels[0], 8, 6, generator=draw)
    times = torch.tensor([249, 499, 749, 999]).repeat_interleave(2)[-frames:].expand(batch, -1)
    omega = guidance_embedding(torch.full((batch,), guidance), cfg.guidance_dim)
    return latents, times, context, pose, omega, bank


def same(got, expected):
    return (got - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.fixture(autouse=True, params=[0, fast_module.PAYS], ids=["pack all", "pack what pays"])
def pays(request, monkeypatch):
    """The networks here are so small that packing none of their products would pay."""
    monkeypatch.setattr(fast_module, "PAYS", request.param)


@pytest.mark.parametrize("rewrites", [(), *((one,) for one in REWRITES), REWRITES], ids=lambda r: "+".join(r) or "none")
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_equal_to_the_plain_network(rewrites, batch):
    fast = FastUNet(UNET, rewrites)
    for frames in (2, 8, 8, 4):  # the window fills, runs, drains
        given = arguments(frames, batch, seed=frames)
        assert same(fast(*given), UNET(*given))


@torch.no_grad()
def test_what_is_kept_is_made_anew_when_reference_guidance_or_window_change():
    fast = FastUNet(UNET)
    for seed, guidance, frames in ((0, 2.0, 8), (1, 2.0, 8), (1, 3.0, 8), (1, 3.0, 6), (0, 2.0, 8)):
        given = arguments(frames, seed=seed, guidance=guidance)
        assert same(fast(*given), UNET(*given)), (seed, guidance, frames)


@pytest.mark.parametrize("options", [{"temporal_mask": causal_mask(8)}, {"temporal_strength": 0.3}], ids=str)
@torch.no_grad()
def test_mask_and_strength_act_as_in_the_plain_network(options):
    given = arguments()
    assert same(FastUNet(UNET)(*given, **options), UNET(*given, **options))
    assert not same(FastUNet(UNET)(*given), UNET(*given, **options))


@torch.no_grad()
def test_the_published_network_s_numbers():
    b, a = golden("b_denoise"), golden("a_reference")
    bank = {key.removeprefix("bank/"): states for key, states in a.items() if key.startswith("bank/")}
    given = (b["in/sample"], b["in/timesteps"], b["in/clip"], b["in/pose_fea"], b["in/w_emb"], bank)
    assert worst(FastUNet(denoising_unet())(*given), b["out/v"]) < BOUNDS["b_denoise"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_fast_stream_shows_the_same_frames(steps):
    conditions = list(micro.pictures(21))

    def frames(fast):
        s = Stream(MODEL, 8, 4, steps, guidance=2.0, fast=fast)
        s.reference(micro.pictures(seed=9))
        out = s.push(conditions[:10])
        s.reference(micro.pictures(seed=3))
        s.guidance, s.temporal_strength = 3.0, 0.5
        return np.stack(out + s.push(conditions[10:]) + s.flush()).astype(int)

    assert np.abs(frames(True) - frames(False)).max() <= 1


def test_the_plain_network_is_left_as_it_is():
    before = {name: value.clone() for name, value in UNET.state_dict().items()}
    kinds = [type(module) for module in UNET.modules()]
    fast = FastUNet(UNET)
    fast(*arguments())
    assert [type(module) for module in UNET.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in UNET.state_dict().items())
    assert fast.unet.conv_out.bias is UNET.conv_out.bias  # shared, but for what is laid out anew


def test_what_cannot_be_made_fast_is_refused():
    with pytest.raises(ValueError, match="rewrites: got .'flash'"):
        FastUNet(UNET, ["flash"])
    with pytest.raises(ValueError, match="expected a denoising network"):
        FastUNet(MODEL.reference_unet)


def test_fp8_rounds_the_weights_of_products(monkeypatch):
    given, functional = arguments(), [name for name in REWRITES if name != "packed"]
    network = FastUNet(UNET, functional)
    exact = network(*given)
    before = {name: m.weight for name, m in network.named_modules() if isinstance(m, fast_module.Product)}
    quantise(network)
    rounded = {name: network.get_submodule(name).weight.dequantize() for name in before}
    assert len(before) > 10 and all(weight.shape[0] % 16 == 0 for weight in before.values())
    for name, weight in before.items():  # three bits of mantissa; below a 2^-15th of the row's largest they run out
        error, largest = (rounded[name] - weight).abs(), weight.abs().amax(1, keepdim=True)
        assert error.max() > 0 and (error <= weight.abs() / 15 + largest * 2**-15).all()
    error = (network(*given) - exact).norm() / exact.norm()
    assert 1e-3 < error < 0.2
    with pytest.raises(ValueError, match="leave the rewrite 'packed' out"):
        quantise(FastUNet(UNET))
    with pytest.raises(ValueError, match="fp8: got a plain stream, expected fast=True"):
        Stream(MODEL, fp8=True)
    monkeypatch.setattr(fast_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'rainlab\[fp8\]'"):
        Stream(MODEL, fast=True, fp8=True)


def test_changed_weights_and_a_reference_of_another_size_are_refused():
    plain = micro.model().denoising_unet
    network, given = FastUNet(plain), arguments()
    bank = {name: states[:, : states.shape[1] // 2] for name, states in given[-1].items()}
    with pytest.raises(ValueError, match="got a bank of 24 places in .*, expected 48 like the latents, for each"):
        network(*given[:-1], bank)
    network(*given)
    plain.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match="weights have changed since this was made"):
        network(*given)


@pytest.mark.parametrize("rewrites", [("channels_last",), ("packed",), REWRITES], ids="+".join)
@torch.no_grad()
def test_guider_and_autoencoder_too(rewrites):
    pictures, latents = torch.rand(1, 3, 3, 32, 24), torch.randn(1, 3, MODEL.autoencoder.latent_channels, 8, 6)
    guider, autoencoder = laid_out(MODEL.pose_guider, rewrites), laid_out(MODEL.autoencoder, rewrites)
    assert same(guider(pictures), MODEL.pose_guider(pictures))
    assert same(autoencoder.decode_next(latents)[0], MODEL.autoencoder.decode_next(latents)[0])


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    asked = {}
    monkeypatch.setattr(fast_module.ctypes, "CDLL", lambda name: types.SimpleNamespace(mallopt=asked.__setitem__))
    keep_freed_memory()
    assert asked == {fast_module.M_TRIM_THRESHOLD: 2**31 - 1, fast_module.M_MMAP_THRESHOLD: 2**25}
    monkeypatch.setattr(fast_module.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert keep_freed_memory() is None
