"""Muon against torch's own, the parameters that it gets, and updates that are not finite."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from diffpipe.errors import UserError
from diffpipe.train import muon
from diffpipe.train.muon import hidden_matrices
from diffpipe.train.optimizer import Optimizer, OptimizerConfig
from tests.support.thread_ranks import on_ranks


class Net(nn.Module):
    """A stem, a block with a matrix, a norm, a convolution and a matrix of one row, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.block = nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.Conv1d(10, 8, 3), nn.Linear(10, 1))
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


def names_of(net: Net, parameters: list[torch.Tensor]) -> list[str]:
    return [name for name, p in net.named_parameters() if any(p is q for q in parameters)]


def test_it_gets_the_matrices_of_linear_layers_in_blocks_alone() -> None:
    one = net()
    assert names_of(one, hidden_matrices(one)) == ["block.0.weight"]
    assert names_of(one, hidden_matrices(one, convolutions=True)) == ["block.0.weight", "block.2.weight"]
    optimizer = Optimizer(OptimizerConfig(kind="muon"), {"net": one}, scaled=False)
    names = {p: name for name, p in one.named_parameters()}
    moments = {name: {"step", "exp_avg", "exp_avg_sq"} for name in names.values()} | {
        "block.0.weight": {"momentum_buffer"}
    }
    assert optimizer.state(names).keys() == {f"{name}.{key}" for name, keys in moments.items() for key in keys}


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("factor", [None, 3.0])
def test_it_is_torchs_muon_and_the_rest_is_torchs_adamw(
    factor: float | None, convolutions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A convolution is torch's Muon of the flattened weight. torch's iteration is in bfloat16 on CPUs, too."""
    monkeypatch.setattr(muon, "orthogonalized", partial(muon.orthogonalized, dtype=torch.bfloat16))
    settings = OptimizerConfig(
        kind="muon",
        lr=0.1,
        weight_decay=0.2,
        clip=1e9,
        muon_lr=0.3,
        muon_convolutions=convolutions,
        lr_factors={"net": factor} if factor else {},
    )
    ours, theirs = net(), net()
    optimizer = Optimizer(settings, {"net": ours}, scaled=False)
    weights, times = hidden_matrices(theirs, convolutions=convolutions), factor or 1.0
    matrices = [nn.Parameter(weight.detach().flatten(1)) for weight in weights]  # in the weights' memory
    torchs = torch.optim.Muon(matrices, lr=0.3 * times, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in theirs.parameters() if not any(p is weight for weight in weights)]
    adamw = torch.optim.AdamW(rest, lr=0.1 * times, betas=settings.betas, weight_decay=0.2)
    for i in range(4):
        optimizer.backward(loss(ours, i))
        optimizer.step(0.1)
        theirs.zero_grad()
        loss(theirs, i).backward()
        for weight, matrix in zip(weights, matrices, strict=True):
            assert weight.grad is not None
            matrix.grad = weight.grad.flatten(1)
        torchs.step()
        adamw.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 8), (16, 40), (40, 16)])
def test_orthogonalized_matrices_are_near_those_of_their_singular_vectors(
    shape: tuple[int, int], dtype: torch.dtype | None
) -> None:
    random = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    u, _, vh = torch.linalg.svd(random, full_matrices=False)
    sizes = torch.logspace(-3, 3, 5)[:, None, None]
    matrices = sizes * (u * torch.linspace(0.05, 1, min(shape)) @ vh)
    singular = (u.mT @ muon.orthogonalized(matrices, dtype).float() @ vh.mT).diagonal(dim1=1, dim2=2)
    assert 0.6 < singular.min() < singular.max() < 1.3
    torch.testing.assert_close(
        muon.orthogonalized(matrices, dtype)[2], muon.orthogonalized(matrices[2:3], dtype)[0], rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("shape", [(8, 8), (16, 144), (144, 16)])
def test_in_float32_each_singular_value_goes_through_the_quintic(shape: tuple[int, int]) -> None:
    """Also the small ones, whose squares have few digits beside 1."""
    random = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vh = torch.linalg.svd(random, full_matrices=False)
    singular = torch.logspace(-5, 0, min(shape), dtype=torch.float64)
    matrices = u * singular @ vh
    expected = singular / singular.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    result = muon.orthogonalized(matrices.float()).double()
    torch.testing.assert_close(result, u * expected @ vh, rtol=0, atol=1e-3)


def test_large_matrices_are_orthogonalized_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[int] = []
    whole = muon.orthogonalized

    def counted(matrices: torch.Tensor) -> torch.Tensor:
        stacks.append(len(matrices))
        return whole(matrices)

    monkeypatch.setattr(muon, "orthogonalized", counted)
    weights = [nn.Parameter(torch.ones(4, 4)) for _ in range(5)]
    for p in weights:
        p.grad = torch.eye(4)
    for largest, expected in ((1 << 24, [5]), (32, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(muon, "_LARGEST_ROUND", largest)
        optimizer = muon.Muon([{"params": weights}], momentum=0.9, weight_decay=0.0)
        optimizer.found_inf = torch.zeros(())
        optimizer.step()
        assert stacks == expected
        stacks.clear()


SHAPES = [(8, 72), (8, 72), (16, 144), (16, 8), (8, 16), (3, 5), (16, 144), (8, 72)]


def matrices_of(shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("world", [1, 2, 3, 11])
def test_the_processes_share_the_matrices_evenly(world: int) -> None:
    shares = muon._shares(SHAPES, world)
    assert sorted(i for share in shares for i in share) == list(range(len(SHAPES)))
    cost = [sum(min(SHAPES[i]) * SHAPES[i][0] * SHAPES[i][1] for i in share) for share in shares]
    assert max(cost) - min(cost) <= 16 * 16 * 144  # of the costliest


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:1]])  # one matrix: the other processes have none
def test_every_process_gets_the_updates_of_all_matrices(shapes: list[tuple[int, int]], world: int) -> None:
    matrices = matrices_of(shapes)
    first, *others = on_ranks(world, lambda runtime: muon.shared_orthogonalized(matrices, runtime.comm))
    for update, matrix in zip(first, matrices, strict=True):
        torch.testing.assert_close(update, muon.orthogonalized(matrix[None])[0], rtol=0, atol=1e-5)
    for updates in others:
        assert all(torch.equal(update, same) for update, same in zip(updates, first, strict=True))


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
    convolution = nn.Conv2d(1, 2, 3)
    with pytest.raises(UserError, match=r"the weights of linear layers in .*, or optimizer.muon_convolutions=true"):
        Optimizer(OptimizerConfig(kind="muon"), {"net": convolution}, scaled=False)
    with pytest.raises(
        UserError, match=r"the weights of linear and convolution layers in .*; set optimizer.kind=adamw$"
    ):
        Optimizer(OptimizerConfig(kind="muon", muon_convolutions=True), {"net": convolution}, scaled=False)
    with pytest.raises(ValidationError, match=r"muon_convolutions is for kind=muon, and the kind is adamw"):
        OptimizerConfig(muon_convolutions=True)
    with pytest.raises(ValidationError, match=r"muon_lr is for kind=muon, and the kind is adamw; leave it out"):
        OptimizerConfig(muon_lr=0.1)
    with pytest.raises(ValidationError, match=r"muon_momentum is for kind=muon, and the kind is adamw; leave it out"):
        OptimizerConfig(muon_momentum=0.9)
