"""Other ways to show the reference: each is trained and sampled by the same code, and sees what it should."""

import micro
import pytest
import torch

from rainlab.config import override
from rainlab.method import designs
from rainlab.method.rain import RAIN, guided_v, to_signed, to_unit
from rainlab.training import stages
from rainlab.training.parameters import trainable

CONFIG = micro.micro()


def model_of(design):
    torch.manual_seed(0)
    model = RAIN.build(override(CONFIG, {"model.design": design}), motion=False, guidance=False)
    for name, parameter in model.named_parameters():  # what begins at zero shows nothing
        if "zeros" in name or "reference_unet.conv_out" in name or name.startswith("pose_guider.conv_out"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False)


def inputs(seed=0):
    pictures = to_signed(torch.from_numpy(micro.pictures(2, seed=seed)))
    poses = to_unit(torch.from_numpy(micro.pictures(2, 3, seed=7)))
    latents = torch.randn(2, 3, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    return pictures, poses, latents, torch.full((2, 3), 500)


@pytest.mark.parametrize("design", designs.DESIGNS)
def test_the_answer_depends_on_what_a_design_shows(design):
    model = model_of(design)
    pictures, poses, latents, times = inputs()
    other = inputs(seed=3)[0]
    (bank, token), (bank2, token2) = model.look(pictures), model.look(other)
    pose, unet = model.pose_guider(poses), model.denoising_unet
    plain = unet(latents, times, token, pose, None, bank)
    assert plain.shape == latents.shape
    shown = {"token": (token2, bank), "bank": (token, bank2)}
    differs = {name: not torch.equal(unet(latents, times, t, pose, None, b), plain) for name, (t, b) in shown.items()}
    assert differs == {"token": design != "controlnet", "bank": design != "clip"}
    keep = torch.tensor([True, False])
    dropped = unet(latents, times, token, pose, None, bank, reference_keep=keep)
    torch.testing.assert_close(dropped[0], plain[0])
    other_bank = unet(latents, times, token, pose, None, bank2, reference_keep=keep)
    torch.testing.assert_close(other_bank[1], dropped[1])  # the second sample's reference is not seen
    torch.testing.assert_close(guided_v(unet, latents, times, token, pose, bank, 1.0), plain)


def test_a_control_net_begins_without_effect():
    torch.manual_seed(0)
    controlled = RAIN.build(override(CONFIG, {"model.design": "both"}), motion=False, guidance=False).denoising_unet
    plain = RAIN.build(CONFIG, motion=False, guidance=False).denoising_unet
    plain.load_state_dict(controlled.state_dict(), strict=False)
    _, _, latents, times = inputs()
    token, hint = torch.randn(2, 1, 16), {designs.HINT: torch.randn(2, 32, 8, 6)}
    with torch.no_grad():
        torch.testing.assert_close(controlled(latents, times, token, reference=hint), plain(latents, times, token))


@pytest.mark.parametrize("design", designs.DESIGNS)
def test_every_design_trains_all_it_has(design, tmp_path, monkeypatch):
    monkeypatch.setenv("RAINLAB_RUNS", str(tmp_path))
    preset = override(CONFIG, {"model.design": design, "stage1.steps": 3, "loss.condition_dropout": 0.3})
    micro.write_weights(CONFIG, only=("autoencoder",))
    training = stages.Training(preset, "stage1", CONFIG)
    before = {name: p.clone() for name, p in training.start().model.named_parameters()}
    stages.train_stage(preset, "stage1", inputs_from=CONFIG)
    model = stages.trained(preset, "stage1", inputs_from=CONFIG)
    after = dict(model.named_parameters())
    names = trainable(model, "stage1")
    moved = {name for name in names if not torch.equal(after[name], before[name])}
    assert {name.split(".")[0] for name in names} >= {"denoising_unet", "pose_guider"}
    assert ("reference_unet" in {name.split(".")[0] for name in names}) == (design != "clip")
    assert ("context_encoder" in {name.split(".")[0] for name in names}) == (design != "controlnet")
    idle = [name for name in set(names) - moved if "attn2.to_q" not in name and "attn2.to_k" not in name
            and "transformer_blocks.0.norm2" not in name]  # fmt: skip
    assert not idle, idle  # one token: queries and keys of cross-attention have no effect


def test_an_unknown_design_is_refused():
    with pytest.raises(ValueError, match="model.design: got 'lora', expected one of clip, controlnet, both, reference"):
        RAIN.build(override(CONFIG, {"model.design": "lora"}), motion=False, guidance=False)
