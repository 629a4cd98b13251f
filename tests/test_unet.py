"""The networks are the published ones: keys, values, and the properties streaming rests on."""

import micro
import pytest
import torch
from einops import rearrange
from goldens import BOUNDS, TINY, denoising_unet, filled, golden, keys, reference_unet, worst

from rainlab.config import StreamConfig, UNetConfig
from rainlab.method import unet as module
from rainlab.method.unet import Condition, MotionModule, ResnetBlock, SpatialTransformer, UNet, attend, temporal_mask


@pytest.mark.parametrize(
    ("name", "config"),
    [("reference_unet", UNetConfig(out=False)), ("denoising_unet", UNetConfig(motion=True, guidance_dim=512))],
)
def test_keys_are_the_published_ones_at_full_size(name, config):
    with torch.device("meta"):
        unet = UNet(config)
    published = keys("rain_keys")[name]
    assert {k: list(v.shape) for k, v in unet.state_dict().items()} == published["keys"]
    assert sum(p.numel() for p in unet.parameters()) == published["n_params"]
    motion = sum(p.numel() for n, p in unet.named_parameters() if ".motion_modules." in n)
    assert motion == published.get("n_params_motion", 0)


def test_reference_bank():
    a = golden("a_reference")
    bank = reference_unet().bank(a["in/ref_latents"], a["in/clip"])
    assert list(bank) == "d00 d01 d10 d11 d20 d21 m u10 u11 u12 u20 u21 u22 u30 u31 u32".split()
    for name, states in bank.items():
        assert worst(states, a[f"bank/{name}"]) < BOUNDS["a_reference"], name


def denoise(**changes):
    b, a = golden("b_denoise"), golden("a_reference")
    inputs = {
        "latents": b["in/sample"],
        "timesteps": b["in/timesteps"],
        "context": b["in/clip"],
        "pose": b["in/pose_fea"],
        "guidance": b["in/w_emb"],
        "reference": {k.removeprefix("bank/"): v for k, v in a.items() if k.startswith("bank/")},
    }
    return denoising_unet()(**(inputs | changes))


def test_denoising_network():
    b = golden("b_denoise")
    assert worst(denoise(), b["out/v"]) < BOUNDS["b_denoise"]
    assert worst(denoise(pose=None), b["out/v_nopose"]) < BOUNDS["b_denoise"]


def test_checkpointing_makes_every_layer_twice_and_changes_no_gradient(monkeypatch):
    calls, real = [], module.checkpoint
    monkeypatch.setattr(module, "checkpoint", lambda *args, **options: calls.append(1) or real(*args, **options))
    unet = micro.model().denoising_unet.requires_grad_(True)
    inputs = torch.randn(1, 4, 4, 8, 6), torch.full((1, 4), 9), torch.randn(1, 1, 16)

    def gradients():
        unet.zero_grad()
        unet(*inputs).square().sum().backward()
        return {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}

    plain = gradients()
    assert plain and not calls
    unet.checkpointing = True
    again = gradients()
    assert len(calls) == 2 * 2 + 2 * 3 and plain.keys() == again.keys()  # two levels down and up
    assert all(worst(plain[name], again[name]) < 1e-5 * (1 + plain[name].abs().max()) for name in plain)


def test_checkpointing_of_a_reference_network_changes_neither_bank_nor_gradients():
    model = micro.model().requires_grad_(True)
    reference, unet = model.reference_unet, model.denoising_unet
    latents, times, context = torch.randn(1, 4, 4, 8, 6), torch.full((1, 4), 9), torch.randn(1, 1, 16)

    def made(checkpointing):
        reference.checkpointing = unet.checkpointing = checkpointing
        model.zero_grad()
        bank = reference.bank(latents[:, 0], context)
        first = {name: states.detach().clone() for name, states in bank.items()}
        unet(latents, times, context, reference=bank).square().sum().backward()
        assert all(torch.equal(bank[name], first[name]) for name in bank)  # no second pass wrote into it
        return first | {name: p.grad.clone() for name, p in reference.named_parameters() if p.grad is not None}

    plain, again = made(False), made(True)
    assert plain.keys() == again.keys() and len(plain) > 50
    assert all(worst(plain[name], again[name]) < 1e-5 * (1 + plain[name].abs().max()) for name in plain)


def test_a_dropped_reference_is_no_reference():
    b = golden("b_denoise")
    names = {"latents": "sample", "timesteps": "timesteps", "context": "clip", "pose": "pose_fea", "guidance": "w_emb"}
    two = {key: torch.cat([b[f"in/{name}"]] * 2) for key, name in names.items()}
    bank = {k.removeprefix("bank/"): torch.cat([v, v]) for k, v in golden("a_reference").items() if k[:5] == "bank/"}
    v = denoise(**two, reference=bank, reference_keep=torch.tensor([True, False]))
    assert worst(v[:1], b["out/v"]) < BOUNDS["b_denoise"]
    assert worst(v[1:], denoise(reference=None)) < BOUNDS["b_denoise"]
    assert worst(v[:1], v[1:]) > 1e-2


def test_causal_mask_reaches_temporal_attention():
    """A later frame must not change an earlier one, and does without the mask."""
    b = golden("b_denoise")
    changed = b["in/sample"].clone()
    changed[:, 10:] += 1.0
    causal = torch.ones(16, 16, dtype=torch.bool).tril()
    assert worst(denoise(temporal_mask=causal)[:, :10], denoise(latents=changed, temporal_mask=causal)[:, :10]) < 1e-6
    assert worst(denoise()[:, :10], denoise(latents=changed)[:, :10]) > 1e-3
    additive = torch.zeros(16, 16).masked_fill(~causal, float("-inf"))
    assert worst(denoise(temporal_mask=causal), denoise(temporal_mask=additive)) < 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_temporal_masks(causal):
    """Frame i sees frame j unless j is later (causal) or at another noise level (no cross-level attention)."""
    for cross_level in (False, True):
        mask = temporal_mask(StreamConfig(8, 4, causal=causal, cross_level=cross_level), 6)
        sees = [[(not causal or j <= i) and (cross_level or i // 2 == j // 2) for j in range(6)] for i in range(6)]
        assert mask is None if all(map(all, sees)) else mask.tolist() == sees


def test_every_frame_has_its_own_time_step():
    b = golden("b_denoise")
    unet = denoising_unet()
    alone = UNet(UNetConfig(**{**vars(unet.cfg), "motion": False}))
    alone.load_state_dict({k: v for k, v in unet.state_dict().items() if ".motion_modules." not in k})
    inputs = {"context": b["in/clip"], "guidance": b["in/w_emb"]}
    with torch.no_grad():
        together = alone(b["in/sample"], b["in/timesteps"], **inputs)
        for i in (0, 7, 15):
            single = alone(b["in/sample"][:, i : i + 1], b["in/timesteps"][:, i : i + 1], **inputs)
            assert worst(together[:, i : i + 1], single) < 1e-5


def test_motion_module():
    h = golden("h_blocks")
    module = filled(MotionModule(64, TINY), "mm64")

    def run(x):
        return module(x[0], Condition(None, None, x.shape[1]))[None]

    assert worst(run(h["mm/in"]), h["mm/out_f32"]) < BOUNDS["h_blocks"]
    assert worst(run(h["mm/in"][:, :16]), h["mm/out_f16_first16"]) < BOUNDS["h_blocks"]
    # the position is the slot in the window, not the number of the frame
    assert worst(run(h["mm/in"][:, 12:16]), h["mm/out_f4_frames12to15"]) < BOUNDS["h_blocks"]
    assert worst(run(h["mm/in"][:, :16] * 1e-3), h["small/mm_out_f16"]) < BOUNDS["h_blocks"]  # where a wrong eps shows


def test_resnet_block():
    h = golden("h_blocks")
    block = filled(ResnetBlock(32, 64, 128, 8), "res")
    emb = rearrange(h["res/temb"], "1 c f -> f c")
    assert worst(block(h["res/in"][0], emb)[None], h["res/out_perframe"]) < BOUNDS["h_blocks"]
    assert worst(block(h["res/in"][0] * 1e-3, emb)[None], h["small/res_out"]) < BOUNDS["h_blocks"]


@pytest.mark.parametrize(
    ("output", "scale", "reference"),
    [("tr/out_with_ref", 1, True), ("tr/out_no_ref", 1, False), ("small/tr_out_with_ref", 1e-3, True)],
)
def test_spatial_transformer(output, scale, reference):
    h = golden("h_blocks")
    block = filled(SpatialTransformer("d00", 64, TINY), "tr")
    cond = Condition(None, h["tr/clip"].expand(4, -1, -1), 4, {"d00": h["tr/ref"]} if reference else None)
    assert worst(block(h["tr/in"][0] * scale, cond)[None], h[output]) < BOUNDS["h_blocks"]


def test_one_context_token_is_attention_over_one_token():
    """The shortcut for a single key equals attending to the same token twice."""
    h = golden("h_blocks")
    attention = filled(SpatialTransformer("d00", 64, TINY), "tr").transformer_blocks[0].attn2
    x, token = torch.randn(2, 6, 64), h["tr/clip"].expand(2, -1, -1)
    assert worst(attention(x, token), attention(x, token.expand(-1, 2, -1))) < 1e-6


def test_odd_sizes_and_other_depths():
    for channels, size in (((32, 64), (7, 5)), ((32, 64, 64), (13, 10))):
        unet = UNet(UNetConfig(channels, 16, norm_groups=8, heads=4, motion=True, latent_channels=8))
        out = unet(torch.randn(1, 3, 8, *size), torch.full((1, 3), 9), torch.randn(1, 1, 16))
        assert out.shape == (1, 3, 8, *size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(1, 16, 3, 16, 24)}, "latents: got"),
        ({"timesteps": torch.zeros(1, 4, dtype=torch.long)}, r"timesteps: got shape \(1, 4\), expected \(1, 16\)"),
        ({"pose": torch.zeros(1, 16, 8, 16, 24)}, "pose: got shape"),
        ({"guidance": torch.zeros(1, 5)}, r"guidance: got shape \(1, 5\), expected \(1, 512\)"),
        ({"temporal_mask": torch.ones(4, 4, dtype=torch.bool)}, "temporal_mask: got shape"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        denoise(**change)


def test_too_long_windows_and_wrong_use_are_refused():
    b = golden("b_denoise")
    with pytest.raises(ValueError, match="got 48 frames"):
        denoising_unet()(b["in/sample"].repeat(1, 3, 1, 1, 1), torch.zeros(1, 48, dtype=torch.long), b["in/clip"])
    with pytest.raises(ValueError, match="reference network"):
        reference_unet()(b["in/sample"], b["in/timesteps"], b["in/clip"])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_attention(masked):
    """On a processor it goes another way than in fp32."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, n, 16, generator=generator) for n in (12, 20, 20))
    mask = torch.rand(3, 1, 1, 20, generator=generator) > 0.3 if masked else None
    ours = attend(*(x.bfloat16() for x in (q, k, v)), mask)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert ours.dtype == torch.bfloat16 and (ours.float() - expected).abs().max() < 0.02
