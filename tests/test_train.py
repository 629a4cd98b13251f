"""One loop for every stage: resumed equals uninterrupted bit for bit, accumulated and distributed equal whole."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import micro
import numpy as np
import pytest
import torch
from goldens import worst
from safetensors.torch import load_file

from rainlab import runs
from rainlab.config import StageConfig
from rainlab.data.dataset import Draw
from rainlab.training import loop, losses
from rainlab.training.parameters import trainable

CONFIG = micro.micro()
LOOP = replace(CONFIG.stage1, optimizer="adamw")


def begin(cfg=LOOP, stage="stage1", seed=0):
    torch.manual_seed(seed)
    model = micro.RAIN.build(CONFIG, motion=stage == "stage2", guidance=False)
    times = losses.staircase_times if stage == "stage2" else losses.uniform_times
    loss = losses.denoising_loss(model, CONFIG, times)
    return model, loss, loop.start(model, trainable(model, stage), cfg)


def run_all(cfg, seed=0):
    _, loss, state = begin(cfg, seed=seed)
    for _ in loop.train(loss, state, micro.training_set(CONFIG), cfg, 3, False):
        pass
    return state


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k].detach(), b[k].detach()) for k in a)


MUON = replace(LOOP, optimizer="muon", learning_rate=1e-3, bf16=True)


EIGHT = replace(LOOP, optimizer="adamw8bit")
SLOTS = {
    "adamw": {"exp_avg", "exp_avg_sq", "step"},
    "muon": {"exp_avg", "exp_avg_sq", "step", "momentum"},
    "adamw8bit": {"state1", "state2", "step", "qmap1", "qmap2", "absmax1", "absmax2"},
}


@pytest.mark.parametrize(
    "cfg", [LOOP, MUON, replace(LOOP, ema=0.0), EIGHT], ids=["adamw", "muon", "no average", "adamw8bit"]
)
def test_a_killed_run_resumes_bit_for_bit(cfg):
    if cfg.optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes", reason='needs the extra memory: pip install -e ".[memory]"')
    whole = run_all(cfg)
    run = runs.open_run("resume", {"optimizer": cfg.optimizer, "ema": cfg.ema}, 1)
    data = micro.training_set(CONFIG)

    def kill(state):
        if state.step == 3:  # saved at 2: step 3 is lost and must be made again
            raise KeyboardInterrupt

    _, loss, state = begin(cfg)
    with pytest.raises(KeyboardInterrupt):
        loop.fit(run, loss, state, data, cfg, 3, False, each=kill)
    _, loss, state = begin(cfg, seed=1)  # whatever the fresh weights are, the checkpoint replaces them
    steps = []
    history = loop.fit(run, loss, state, data, cfg, 3, False, each=lambda s: steps.append(s.step))
    assert steps == [3, 4] and [row["step"] for row in history] == [1, 2, 3, 4]
    assert same(state.parameters, whole.parameters) and same(state.ema, whole.ema)
    moments = [[s.optimizer.state[p] for p in s.parameters.values() if p in s.optimizer.state] for s in (state, whole)]
    assert len(moments[0]) > 100
    assert {slot for one in moments[0] for slot in one} == SLOTS[cfg.optimizer]
    equal = lambda a, b: torch.equal(torch.as_tensor(a), torch.as_tensor(b))  # noqa: E731
    assert all(equal(a[k], b[k]) for a, b in zip(*moments, strict=True) for k in a.keys() | b.keys())
    assert same(whole.parameters, whole.ema) == (cfg.ema == 0)
    weights = load_file(run.path / "weights.safetensors")
    assert same(weights, whole.ema)
    assert not (run.path / "state.safetensors").exists()
    again = loop.fit(run, loss, state, data, cfg, 3, False, each=lambda s: pytest.fail("finished work was done again"))
    assert again == history


def numbers(*values):
    """A module whose parameters are these, for losses that are worked out by hand."""
    module = torch.nn.Module()
    module.w = torch.nn.Parameter(torch.tensor(values))
    return module


def test_rows_of_the_history_hold_the_mean_loss_since_the_row_before():
    """Also where a killed run resumes between two rows."""
    cfg = StageConfig(steps=205, batch=1, save_every=99)
    run, data, made = runs.open_run("rows", {}, 1), micro.training_set(CONFIG), {}

    def fit(stop):
        def note(state):
            made[state.step] = state.loss
            if state.step == stop:
                raise KeyboardInterrupt

        module = numbers(1.0)
        loss = lambda batch, draw: (module.w * draw.uniform()).sum()  # noqa: E731
        return loop.fit(run, loss, loop.start(module, ["w"], cfg), data, cfg, 1, False, each=note)

    with pytest.raises(KeyboardInterrupt):
        fit(stop=100)
    history = fit(stop=None)
    assert [row["step"] for row in history] == [*range(2, 205, 2), 205]
    expected = [(made[step] + made[step - 1]) / 2 for step in range(2, 205, 2)]
    assert [row["loss"] for row in history] == pytest.approx([*expected, made[205]], rel=1e-6)


def test_optimiser_steps_are_adamw_by_hand():
    """Clipped gradient of the whole batch, rate of the warm-up, decoupled weight decay (Loshchilov and Hutter), moving
    average; in float64."""
    cfg = StageConfig(steps=2, batch=4, accumulate=2, learning_rate=0.1, warmup=4, weight_decay=0.5, ema=0.9)
    module, factors = numbers(3.0, -2.0), iter([2.0, 4.0, 1.0, 2.0])  # of the batch's halves
    loss = lambda batch, draw: next(factors) * module.w.square().sum() / 2  # noqa: E731
    state = loop.start(module, ["w"], cfg)
    ema = w = np.array([3.0, -2.0])
    m = v = np.zeros(2)
    for n, now in enumerate(loop.train(loss, state, micro.training_set(CONFIG), cfg, 3, False), 1):
        factor = (3.0, 1.5)[n - 1]
        gradient = factor * w
        norm = np.linalg.norm(gradient)
        assert (now.loss, now.grad_norm) == pytest.approx((factor * (w**2).sum() / 2, norm), rel=1e-5)
        gradient, rate = gradient / max(1, norm), 0.1 * n / 4
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w * (1 - rate * 0.5) - rate * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
        ema = 0.9 * ema + 0.1 * w
        np.testing.assert_allclose(module.w.detach(), w, rtol=1e-5)
        np.testing.assert_allclose(now.ema["w"], ema, rtol=1e-5)
    assert n == 2


def gradients(cfg):
    _, loss, state = begin(cfg)
    data = micro.training_set(CONFIG)
    grads = {}
    hook = state.optimizer.register_step_pre_hook(
        lambda *_: grads.update({n: p.grad.clone() for n, p in state.parameters.items() if p.grad is not None})
    )
    next(iter(loop.train(loss, state, data, cfg, 3, False)))
    hook.remove()
    return grads


def test_accumulation_gives_the_whole_batch():
    loop = replace(LOOP, batch=4, clip_norm=1e9)
    whole, parts = gradients(loop), gradients(replace(loop, accumulate=2))
    assert whole.keys() == parts.keys()
    assert max(worst(whole[n], parts[n]) for n in whole) < 1e-5


WORKER = """
import sys, torch
sys.path.insert(0, sys.argv[1])
import test_train as t
from dataclasses import replace
import torch.distributed as dist
torch.set_num_threads(1)
t.loop.join_processes()
grads = t.gradients(replace(t.LOOP, batch=4, clip_norm=1e9))
if dist.get_rank() == 0:
    from safetensors.torch import save_file
    save_file(grads, sys.argv[2])
dist.destroy_process_group()
"""


def test_two_processes_give_the_gradients_of_one(tmp_path):
    """torchrun with gloo on the CPU: the same global batch, shared out."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    out = tmp_path / "gradients.safetensors"
    here = str(Path(__file__).parent)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0",
               "--standalone", str(script), here, str(out)]  # fmt: skip
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, timeout=300)
    together, alone = load_file(out), gradients(replace(LOOP, batch=4, clip_norm=1e9))
    assert together.keys() == alone.keys()
    assert max(worst(together[n], alone[n]) for n in alone) < 1e-5


def test_uneven_shares_are_refused():
    with pytest.raises(ValueError, match="batch: got 2, expected a multiple of 1 processes × 3"):
        run_all(replace(LOOP, accumulate=3))


def test_a_diverging_run_stops():
    _, _, state = begin()
    bad = lambda batch, draw: sum(p.sum() for p in state.parameters.values()) * float("inf")  # noqa: E731
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        next(iter(loop.train(bad, state, micro.training_set(CONFIG), LOOP, 3, False)))


def test_learning_rate():
    cfg = StageConfig(steps=100, learning_rate=1.0, warmup=10, decay=0.5)
    rates = [loop.learning_rate(cfg, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5, abs=0.01) and rates[-1] < 0.01
    assert loop.learning_rate(replace(cfg, decay=0.0), 99) == 1.0
    assert loop.learning_rate(cfg, 40, begun=40) == pytest.approx(0.1) and loop.learning_rate(cfg, 49, begun=40) == 1.0


def test_stage_two_trains_motion_modules_only_and_starts_where_stage_one_ended():
    flat, loss_flat, _ = begin()
    model, loss, state = begin(stage="stage2")
    model.load_state_dict(flat.state_dict(), strict=False)
    before = {n: p.clone() for n, p in model.named_parameters()}
    data = micro.training_set(CONFIG)
    batch = data.batch(0, 0, range(2), 2, 8, True)
    per_sample = [losses.sample_losses(m, CONFIG, losses.staircase_times) for m in (flat, model)]
    with torch.no_grad():
        assert worst(*(p(batch, Draw(0, 0, range(2))) for p in per_sample)) < 1e-6
    for _ in loop.train(loss, state, data, replace(LOOP, steps=2), 8, True):
        pass
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".motion_modules." in n for n in changed)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_one_step_in_the_papers_geometry(stage):
    """Four levels, 8 heads, f = 8, 16 frames, checkpointing, as preset paper has them; narrower."""
    from rainlab.config import make_preset
    from rainlab.method.context import SmallContext
    from rainlab.method.guider import PoseGuider
    from rainlab.method.rain import RAIN
    from rainlab.method.unet import UNet
    from rainlab.method.vae import TAESDV

    paper = make_preset("paper", {"model.channels": (32, 32, 64, 64), "model.cross_attention_dim": 16})
    cfg, motion, frames = paper.model, stage == "stage2", 16 if stage == "stage2" else 1
    networks = UNet(cfg.unet(4, out=False)), UNet(cfg.unet(4, motion=motion)), PoseGuider(32), SmallContext(16)
    model = RAIN(*networks, TAESDV(8))
    model.denoising_unet.checkpointing = getattr(paper, stage).checkpointing
    batch = micro.Batch(
        torch.from_numpy(micro.pictures(1, size=(64, 64))),
        torch.randn(1, 4, 8, 8),
        torch.randn(1, frames, 4, 8, 8),
        torch.from_numpy(micro.pictures(1, frames, size=(64, 64))),
    )
    names = trainable(model, stage)
    state = loop.start(model, names, getattr(paper, stage))
    times = losses.staircase_times if motion else losses.uniform_times
    losses.denoising_loss(model, paper, times)(batch, Draw(0, 0, [0])).backward()
    with_gradient = {name for name, parameter in state.parameters.items() if parameter.grad is not None}
    assert model.denoising_unet.checkpointing and with_gradient
    assert all((".motion_modules." in name) == motion for name in with_gradient)
