"""Muon against torch's own, the parameters that it gets, and updates that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from diffpipe.errors import UserError
from diffpipe.train.muon import hidden_matrices
from diffpipe.train.optimizer import Optimizer, OptimizerConfig


class Net(nn.Module):
    """A stem, a block with a matrix, a norm, a convolution and a matrix of one row, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.block = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Conv1d(10, 10, 1), nn.Linear(10, 1))
        self.head = nn.Linear(6, 3)

    def blocks(self) -> list[nn.Module]:
        return [self.block]


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def loss(net: Net, i: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(i)
    return sum(((p - torch.randn(p.shape, generator=generator)) ** 2).sum() for p in net.parameters())  # pyright: ignore


def test_it_gets_the_matrices_of_linear_layers_in_blocks_alone() -> None:
    one = net()
    assert [name for name, p in one.named_parameters() if any(p is q for q in hidden_matrices(one))] == [
        "block.0.weight"
    ]
    optimizer = Optimizer(OptimizerConfig(kind="muon"), {"net": one}, scaled=False)
    names = {p: name for name, p in one.named_parameters()}
    moments = {name: {"step", "exp_avg", "exp_avg_sq"} for name in names.values()} | {
        "block.0.weight": {"momentum_buffer"}
    }
    assert optimizer.state(names).keys() == {f"{name}.{key}" for name, keys in moments.items() for key in keys}


@pytest.mark.parametrize("factor", [None, 3.0])
def test_it_is_torchs_muon_and_the_rest_is_torchs_adamw(factor: float | None) -> None:
    settings = OptimizerConfig(
        kind="muon", lr=0.1, weight_decay=0.2, clip=1e9, muon_lr=0.3, lr_factors={"net": factor} if factor else {}
    )
    ours, theirs = net(), net()
    optimizer = Optimizer(settings, {"net": ours}, scaled=False)
    matrix, times = hidden_matrices(theirs)[0], factor or 1.0
    muon = torch.optim.Muon([matrix], lr=0.3 * times, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in theirs.parameters() if p is not matrix]
    adamw = torch.optim.AdamW(rest, lr=0.1 * times, betas=settings.betas, weight_decay=0.2)
    for i in range(4):
        optimizer.backward(loss(ours, i))
        optimizer.step(0.1)
        loss(theirs, i).backward()
        for reference in (muon, adamw):
            reference.step()
            reference.zero_grad()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize(("scaled", "bad"), [(False, math.nan), (False, math.inf), (True, 3e38)])
def test_a_nonfinite_gradient_changes_nothing_whichever_parameter_it_is_of(scaled: bool, bad: float) -> None:
    one = net()
    names = {p: name for name, p in one.named_parameters()}
    optimizer = Optimizer(OptimizerConfig(kind="muon"), {"net": one}, scaled=scaled)
    optimizer.backward(loss(one, 0) * 1e-3)
    optimizer.step(0.1)
    for which in (hidden_matrices(one)[0], one.head.weight):
        before = {key: t.clone() for key, t in optimizer.state(names).items() if "scale" not in key}
        before |= {name: p.detach().clone() for p, name in names.items()}
        optimizer.backward(loss(one, 1) * 1e-3 + (which * bad).sum())
        optimizer.step(0.1)
        after = optimizer.state(names) | {name: p.detach() for p, name in names.items()}
        assert all(torch.equal(t, after[key]) for key, t in before.items() if key != "growth_tracker")


def test_a_restored_optimizer_continues_bit_for_bit() -> None:
    def steps(one: Net, optimizer: Optimizer, first: int, last: int) -> None:
        for i in range(first, last):
            optimizer.backward(loss(one, i))
            optimizer.step(0.1)

    config, uninterrupted, resumed = OptimizerConfig(kind="muon"), net(), net()
    steps(uninterrupted, Optimizer(config, {"net": uninterrupted}, scaled=False), 0, 6)
    names = {p: name for name, p in resumed.named_parameters()}
    first = Optimizer(config, {"net": resumed}, scaled=False)
    steps(resumed, first, 0, 3)
    saved = {name: t.clone() for name, t in first.state(names).items()}
    second = Optimizer(config, {"net": resumed}, scaled=False)
    for name, tensor in second.state(names).items():
        assert torch.count_nonzero(tensor) == 0
        tensor.copy_(saved[name])
    steps(resumed, second, 3, 6)
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), uninterrupted.parameters(), strict=True))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        UserError, match="muon is for the weights of linear layers in a network's blocks, and there are"
    ):
        Optimizer(OptimizerConfig(kind="muon"), {"net": nn.Conv2d(1, 2, 3)}, scaled=False)
    with pytest.raises(ValidationError, match=r"muon_lr is for kind=muon, and the kind is adamw; leave it out"):
        OptimizerConfig(muon_lr=0.1)
