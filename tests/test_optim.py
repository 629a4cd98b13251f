"""Muon: singular values near one, torch's own Muon on plain matrices, and who trains what."""

from dataclasses import replace

import micro
import pytest
import torch
from torch import nn

from rainlab.config import StageConfig
from rainlab.training import loop, optim
from rainlab.training.parameters import trainable

CFG = StageConfig(optimizer="muon", learning_rate=1e-3, matrix_rate=0.02, momentum=0.95, weight_decay=0.1)


@pytest.fixture(autouse=True, params=[False, True], ids=["fp32", "bf16"])
def precision(request, monkeypatch):
    """Both ways of computing, whatever the processor prefers."""
    monkeypatch.setattr(optim, "native_bf16", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (64, 16)])
def test_singular_values_become_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    result = optim.orthogonalise(matrices)
    assert result.shape == matrices.shape and result.dtype == torch.float32
    assert ((s := torch.linalg.svdvals(result)) > 0.6).all() and (s < 1.3).all()
    u, _, v = torch.linalg.svd(matrices[1], full_matrices=False)
    along = (u.T @ result[1] @ v.T).abs()
    assert (along - along.diagonal().diag()).max() < 0.1


@pytest.mark.parametrize("shape", [(24, 160), (160, 24), (24, 32)])
def test_collected_factors_do_what_the_iteration_does(shape, monkeypatch):
    """Also where singular values lie apart by five orders of magnitude."""
    monkeypatch.setattr(optim, "native_bf16", lambda device: False)
    short, long = min(shape), max(shape)
    u, v = torch.linalg.qr(torch.randn(short, short)).Q, torch.linalg.qr(torch.randn(long, short)).Q
    wide = u @ torch.logspace(0, -5, short).diag() @ v.T
    matrix = torch.stack([wide, torch.randn(short, long)])
    matrix = matrix if shape[0] < shape[1] else matrix.mT
    x = matrix.double() / matrix.double().norm(dim=(1, 2), keepdim=True)
    a, b, c = optim.NEWTON_SCHULZ
    for _ in range(optim.ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    assert (optim.orthogonalise(matrix) - x).abs().max() < 2e-3 * x.abs().max()


def test_zero_gradients_give_no_update():
    for shape in ((16, 16), (16, 64)):
        assert optim.orthogonalise(torch.zeros(1, *shape)).abs().max() == 0


def steps(optimizer, parameters, count=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_matrices_move_as_with_the_reference_implementation():
    start = [torch.randn(32, 24), torch.randn(24, 32), torch.randn(24, 32)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    steps(optim.Muon(ours, [], 1e-3, 0.02, 0.95, 0.1), ours)
    steps(torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1), theirs)
    for mine, other, begin in zip(ours, theirs, start, strict=True):  # theirs computes in bf16
        assert (mine - other).norm() < 0.03 * (other - begin).norm()


def test_convolutions_are_matrices_with_one_row_per_output():
    weight = torch.randn(32, 16, 3, 3)
    conv, matrix = nn.Parameter(weight.clone()), nn.Parameter(weight.flatten(1).clone())
    steps(optim.Muon([conv], [], 1e-3, 0.02, 0.95, 0.1), [conv])
    steps(optim.Muon([matrix], [], 1e-3, 0.02, 0.95, 0.1), [matrix])
    assert torch.equal(conv.flatten(1), matrix)


def test_the_rest_moves_as_with_adamw():
    start = [torch.randn(7), torch.randn(3, 4)]
    ours, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    steps(optim.Muon([], ours, 1e-3, 0.02, 0.95, 0.1), ours)
    steps(torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.1, fused=True), theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_who_trains_what():
    model = micro.model()
    names = {name for name, p in model.named_parameters() if optim.is_matrix(name, p)}
    assert "denoising_unet.mid_block.resnets.0.conv1.weight" in names
    assert "reference_unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight" in names
    assert not any(name.endswith((".bias", "norm1.weight")) for name in names)
    assert not any(part in name for name in names for part in ("conv_in", "conv_out", "time_emb", "cond_proj"))
    state = loop.start(model, [n for n, _ in model.named_parameters()], CFG)
    sizes = [len(group["params"]) for group in state.optimizer.param_groups]
    assert sizes == [len(names), len(state.parameters) - len(names)]


def test_both_rates_follow_the_schedule():
    model = micro.model()
    cfg = replace(CFG, steps=1, batch=2, warmup=4)
    state = loop.start(model, trainable(model, "stage1"), cfg)
    loss = lambda batch, draw: sum(p.square().sum() for p in state.parameters.values())  # noqa: E731
    next(iter(loop.train(loss, state, micro.training_set(micro.micro()), cfg, 3, False)))
    assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx([0.02 / 4, 1e-3 / 4])


def test_unknown_optimisers_are_named():
    with pytest.raises(ValueError, match="optimizer: got 'sgd', expected adamw, adamw8bit or muon"):
        optim.build({}, replace(CFG, optimizer="sgd"))
