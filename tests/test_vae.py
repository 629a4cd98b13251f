"""The streaming decoder is the published one; all autoencoders keep one interface."""

import pytest
import torch
from goldens import BOUNDS, filled, golden, keys, worst

from rainlab.config import AutoencoderConfig
from rainlab.method.vae import KL, TAESD, TAESDV, SmallVAE, build


def test_published_streaming_decoder():
    """In float64: in float32 the convolutions of some processors alone differ by more than the tolerance."""
    f, vae = golden("f_taesdv"), filled(TAESDV(), "taesdv").double()
    assert {k: list(v.shape) for k, v in vae.state_dict().items()} == keys("rain_keys")["taesdv"]["keys"]
    latents = f["in/latents"].double()
    first, memory = vae.decode_next(latents[:, :4])
    assert worst(first / 2 + 0.5, f["out/slice1"]) < BOUNDS["f_taesdv"]
    assert len(memory) == 10 and worst(memory[9], f["out/mem_after1/9"]) < BOUNDS["f_taesdv"]
    second, memory = vae.decode_next(latents[:, 4:], memory)
    assert worst(second / 2 + 0.5, f["out/slice2"]) < BOUNDS["f_taesdv"]
    assert worst(memory[0], f["out/mem_after2/0"]) < BOUNDS["f_taesdv"]
    assert worst(vae.decode_next(latents)[0], torch.cat([first, second], 1)) < 1e-12
    assert worst(vae.decode(latents[0])[:1], first[0, :1]) < 1e-12  # a single picture is a stream's first
    once = vae.float().decode_next(f["in/latents"])[0]
    assert worst(once, torch.cat([first, second], 1)) < 2e-5


@pytest.mark.parametrize(("factor", "channels"), [(4, 4), (8, 8)])
def test_small_autoencoder(factor, channels):
    vae = SmallVAE(AutoencoderConfig(factor=factor, latent_channels=channels, width=8))
    x = torch.rand(2, 3, 3, 64, 48) * 2 - 1
    latents = vae.encode(x)
    assert latents.shape == (2, 3, channels, 64 // factor, 48 // factor) and vae.decode(latents).shape == x.shape
    before = vae.decode(latents)
    vae.normalise(x.flatten(0, 1))
    z = vae.encode(x)
    assert z.mean((0, 1, 3, 4)).abs().max() < 1e-4 and (z.std((0, 1, 3, 4)) - 1).abs().max() < 0.02
    assert worst(vae.decode(z), before) < 1e-5  # normalising the latents does not change the pictures


def test_published_autoencoders_through_diffusers():
    from diffusers import AutoencoderKL, AutoencoderTiny

    kl = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=["DownEncoderBlock2D"] * 4,
                       up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=4)  # fmt: skip
    tiny = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4)
    for vae in (KL(kl).eval(), TAESD(tiny).eval()):
        x = torch.rand(1, 2, 3, 32, 24) * 2 - 1
        with torch.no_grad():
            assert vae.encode(x).shape == (1, 2, 4, 4, 3)
            frames, memory = vae.decode_next(vae.encode(x))
        assert frames.shape == x.shape and memory is None
    with torch.no_grad():
        mean = kl.encode(x[0]).latent_dist.mean
        assert worst(KL(kl).eval().encode(x[0]), mean * 0.18215) < 1e-6
        assert worst(KL(kl).eval().decode(mean), kl.decode(mean / 0.18215).sample) < 1e-6


def test_the_encoder_of_taesdv_is_taesds():
    from diffusers import AutoencoderTiny

    ours, theirs = TAESDV(), AutoencoderTiny()
    names, tensors = ours.encoder.state_dict(), theirs.encoder.layers.state_dict().values()
    ours.encoder.load_state_dict(dict(zip(names, tensors, strict=True)))
    x = torch.rand(1, 3, 32, 24) * 2 - 1
    with torch.no_grad():
        assert worst(ours.encode(x), theirs.encode(x).latents) < 1e-5


def test_errors_name_got_and_expected():
    vae = TAESDV()
    with pytest.raises(ValueError, match=r"got shape \(1, 3, 30, 32\).*multiples of 8"):
        vae.encode(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match=r"expected \(…, 4, h, w\)"):
        vae.decode(torch.zeros(1, 8, 4, 4))
    with pytest.raises(FileNotFoundError, match="'nowhere' is not there"):
        build(AutoencoderConfig(kind="kl", path="nowhere"))
    with pytest.raises(ValueError, match="got 'vq'"):
        build(AutoencoderConfig(kind="vq"))
    with pytest.raises(ValueError, match="power of two"):
        SmallVAE(AutoencoderConfig(factor=6))
