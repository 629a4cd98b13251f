"""What trains at each stage, by name; classifier-free guidance drops token and bank together."""

import micro
import pytest
import torch
from goldens import keys, worst

from rainlab.config import make_preset
from rainlab.method.context import ClipContext, SmallContext, build_context
from rainlab.method.embeddings import guidance_embedding
from rainlab.method.guider import PoseGuider
from rainlab.method.rain import RAIN, guided_v, start_guidance, to_signed, to_uint8
from rainlab.method.unet import UNet
from rainlab.method.vae import TAESDV
from rainlab.training.parameters import dead_parameters, trainable


def paper_size(motion, guidance) -> RAIN:
    cfg = make_preset("paper").model
    with torch.device("meta"):
        return RAIN(UNet(cfg.unet(4, out=False)), UNet(cfg.unet(4, motion=motion, guidance=guidance)), PoseGuider(),
                    torch.nn.Linear(1, 1), TAESDV())  # fmt: skip


def size(model, names) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if n in set(names))


def test_parameters_trained_at_each_stage_at_full_size():
    published = keys("rain_keys")
    image = paper_size(motion=False, guidance=False)
    names = trainable(image, "stage1")
    dead = {f"reference_unet.{n}" for n in dead_parameters(image.reference_unet)}
    assert len(dead) == 20 and all(n.startswith("reference_unet.up_blocks.3.attentions.2.") for n in dead)
    everything = {n for n, _ in image.named_parameters() if n.split(".")[0] not in ("autoencoder", "context_encoder")}
    assert set(names) == everything - dead
    video = paper_size(motion=True, guidance=False)
    motion = trainable(video, "stage2")
    assert all(".motion_modules." in n for n in motion)
    assert size(video, motion) == published["denoising_unet"]["n_params_motion"]
    student = paper_size(motion=True, guidance=True)
    assert size(student, trainable(student, "distill3d")) == published["denoising_unet"]["n_params"]
    assert all(n.startswith("denoising_unet.") for n in trainable(student, "distill3d"))
    flat = trainable(paper_size(motion=False, guidance=True), "distill2d")
    assert "denoising_unet.time_embedding.cond_proj.weight" in flat and not [n for n in flat if "motion" in n]


def test_dead_parameters_are_dead_and_no_others():
    model = micro.model()
    model.reference_unet.requires_grad_(True)
    bank, _ = model.look(torch.rand(1, 3, 32, 24))
    sum(states.square().sum() for states in bank.values()).backward()
    without = {n for n, p in model.reference_unet.named_parameters() if p.grad is None}
    names = [n for n, _ in model.reference_unet.named_parameters()]
    # with one token the softmax of the cross-attention is 1: its queries and keys have no influence either
    unused = {n for n in names if any(part in n for part in (".attn2.to_q.", ".attn2.to_k.", ".norm2."))}
    unused = {n for n in unused if ".transformer_blocks." in n}
    assert without == set(dead_parameters(model.reference_unet)) | unused


def test_stages_have_to_exist():
    with pytest.raises(ValueError, match="got 'stage3'"):
        trainable(micro.model(), "stage3")


def test_guidance_is_two_predictions():
    model = micro.model(guidance=False)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 4, 8, 6, generator=generator)
    pose = torch.randn(2, 4, 32, 8, 6, generator=generator)
    t = torch.tensor([[100, 300, 600, 999]] * 2)
    bank, context = model.look(torch.rand(2, 3, 32, 24, generator=generator))
    unet = model.denoising_unet
    v = unet(latents, t, context, pose, None, bank)
    null = unet(latents, t, torch.zeros_like(context), pose)
    strength = torch.tensor([1.0, 3.0])
    guided = guided_v(unet, latents, t, context, pose, bank, strength)
    assert worst(guided, null + strength[:, None, None, None, None] * (v - null)) < 1e-4
    assert worst(guided[:1], v[:1]) < 1e-5  # ω = 1 is no guidance
    assert worst(guided[1:], v[1:]) > 1e-3


def test_pictures_survive_the_round_trip():
    x = torch.from_numpy(micro.pictures(2, 3))
    assert torch.equal(to_uint8(to_signed(x)), x)


def test_clip_context_sees_what_clip_was_trained_on():
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
                              projection_dim=16, patch_size=32)  # fmt: skip
    clip = CLIPVisionModelWithProjection(config).eval()
    picture = torch.from_numpy(micro.pictures(1, size=(224, 224)))
    with torch.no_grad():
        token = ClipContext(clip)(to_signed(picture))
        theirs = clip(**CLIPImageProcessor()(images=picture[0].numpy(), return_tensors="pt")).image_embeds
    assert token.shape == (1, 1, 16) and worst(token[:, 0], theirs) < 1e-4


def test_context_of_a_configuration():
    assert isinstance(build_context(micro.micro().model), SmallContext)
    with pytest.raises(FileNotFoundError, match="image_encoder"):
        build_context(make_preset("paper").model)


def test_the_omega_dial_starts_smooth():
    """Along ω = 1 … 4 the projection moves on without turning back: its first values leave out what aliases."""
    unet = micro.model(guidance=True).denoising_unet
    start_guidance(unet, 2.0)
    weight = unet.time_embedding.cond_proj.weight
    columns = weight[:, weight.any(0)]
    assert columns.std().item() == pytest.approx(2 / columns.shape[1] ** 0.5, rel=0.3)
    omega = torch.linspace(1, 4, 31)
    with torch.no_grad():
        shift = unet.time_embedding.cond_proj(guidance_embedding(omega, unet.cfg.guidance_dim))
    away = (shift - shift[0]).norm(dim=1)
    assert (away.diff() > 0).all() and away[-1] > 0.5 * shift.norm(dim=1).mean()
    start_guidance(unet, 0.0)
    assert not weight.any()
