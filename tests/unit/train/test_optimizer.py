"""The optimizer against torch's own AdamW, its schedule in closed form, and non-finite gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from diffpipe.train.optimizer import Optimizer, OptimizerConfig


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 3))


def net(p: nn.Parameter) -> dict[str, nn.Module]:
    return {"net": nn.ParameterList([p])}


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    constant = OptimizerConfig(lr=2.0, warmup=4)
    assert [constant.lr_at(i, 100) for i in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = OptimizerConfig(lr=2.0, warmup=4, decay="cosine")
    assert cosine.lr_at(1, 104) == 1.0
    assert cosine.lr_at(54, 104) == pytest.approx(1.0)
    assert cosine.lr_at(29, 104) == pytest.approx(1 + math.cos(math.pi / 4))


def test_the_learning_rate_falls_with_the_inverse_root_of_the_step_as_in_edm2() -> None:
    """Their learning_rate_schedule, with images for steps: ref_lr / sqrt(max(n / ref, 1)), times the warm-up."""
    config = OptimizerConfig(lr=0.01, warmup=4, decay="inverse_sqrt", decay_after=16)
    assert [config.lr_at(step, 100) for step in (3, 16)] == [0.01, 0.01]
    assert config.lr_at(64, 100) == config.lr_at(64, 10**6) == pytest.approx(0.005)


def test_it_is_torchs_adamw_after_torchs_clipping() -> None:
    config = OptimizerConfig(lr=0.1, weight_decay=0.2, clip=0.5)
    actual, expected_parameter = parameter(), parameter()
    optimizer = Optimizer(config, net(actual), scaled=False)
    reference = torch.optim.AdamW([expected_parameter], lr=0.1, betas=config.betas, eps=config.eps, weight_decay=0.2)
    for i in range(5):
        optimizer.backward((actual * (i + 1)).square().sum())
        norm = optimizer.step(0.1)
        (expected_parameter * (i + 1)).square().sum().backward()
        expected = nn.utils.clip_grad_norm_([expected_parameter], 0.5)
        reference.step()
        reference.zero_grad()
        torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(actual, expected_parameter)


def test_a_factor_multiplies_the_learning_rate_of_its_network() -> None:
    slow, fast, reference = parameter(), parameter(), parameter()
    config = OptimizerConfig(lr=0.1, clip=1e9, lr_factors={"fast": 3})
    networks = {"slow": nn.ParameterList([slow]), "fast": nn.ParameterList([fast])}
    optimizer = Optimizer(config, networks, scaled=False)
    adamw = torch.optim.AdamW([reference], lr=0.3, betas=config.betas, eps=config.eps, weight_decay=0)
    for _ in range(3):
        optimizer.backward(slow.square().sum() + fast.square().sum())
        optimizer.step(0.1)
        reference.square().sum().backward()
        adamw.step()
        adamw.zero_grad()
    torch.testing.assert_close(fast, reference)
    assert not torch.allclose(slow, reference)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nonfinite_gradient_changes_nothing(bad: float) -> None:
    p = parameter()
    optimizer = Optimizer(OptimizerConfig(), net(p), scaled=False)
    optimizer.backward(p.square().sum())
    optimizer.step(0.1)
    before = [p.detach().clone(), *(t.clone() for t in optimizer.state({p: "p"}).values())]
    optimizer.backward((p * bad).sum())
    assert not torch.isfinite(optimizer.step(0.1))
    after = [p.detach(), *optimizer.state({p: "p"}).values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_restored_optimizer_continues_bit_for_bit(scaled: bool) -> None:
    def steps(p: nn.Parameter, optimizer: Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.backward(p.sin().sum())
            optimizer.step(0.1)

    uninterrupted, p = parameter(), parameter()
    steps(uninterrupted, Optimizer(OptimizerConfig(), net(uninterrupted), scaled=scaled), 6)
    first = Optimizer(OptimizerConfig(), net(p), scaled=scaled)
    steps(p, first, 3)
    saved = {name: t.clone() for name, t in first.state({p: "p"}).items()}
    assert saved.keys() == {"p.step", "p.exp_avg", "p.exp_avg_sq"} | ({"scale", "growth_tracker"} if scaled else set())
    second = Optimizer(OptimizerConfig(), net(p), scaled=scaled)
    for name, tensor in second.state({p: "p"}).items():
        assert torch.count_nonzero(tensor) == 0 or name == "scale"
        tensor.copy_(saved[name])
    steps(p, second, 3)
    assert torch.equal(p, uninterrupted)


def test_fp16_skips_an_overflow_and_halves_its_scale() -> None:
    p = parameter()
    optimizer = Optimizer(OptimizerConfig(), net(p), scaled=True)
    before, scale = p.detach().clone(), optimizer.state({p: "p"})["scale"].clone()
    optimizer.backward((p * 3e38).sum())
    optimizer.step(0.1)
    assert torch.equal(p.detach(), before)
    assert optimizer.state({p: "p"})["scale"] == scale / 2


@pytest.mark.parametrize(
    ("every", "lr", "beta2"),  # training_loop.py of StyleGAN2-ADA at lr 0.002 and betas 0 and 0.99
    [(16, 0.002 * 16 / 17, 0.99 ** (16 / 17)), (4, 0.0016, 0.99**0.8)],
)
def test_lazy_updates_correct_the_learning_rate_and_the_betas(every: int, lr: float, beta2: float) -> None:
    config = OptimizerConfig(lr=0.002, betas=(0.0, 0.99))
    optimizer = Optimizer(config, net(parameter()), scaled=False, updates_per_step=1 + 1 / every)
    optimizer.step(0.002)
    (group,) = optimizer.adamw.param_groups
    assert group["lr"] == pytest.approx(lr)
    assert group["betas"] == (0.0, pytest.approx(beta2))


def test_a_period_of_lazy_updates_goes_as_far_and_forgets_as_much_as_one_without() -> None:
    """k + 1 corrected updates are k plain ones: of a constant gradient, by distance and by what is kept."""
    every = 4
    config = OptimizerConfig(lr=0.1, betas=(0.9, 0.99), eps=1e-16, clip=1e9)
    plain, lazy = parameter(), parameter()
    plainly = Optimizer(config, net(plain), scaled=False)
    lazily = Optimizer(config, net(lazy), scaled=False, updates_per_step=1 + 1 / every)
    for p, optimizer, updates in ((plain, plainly, every), (lazy, lazily, every + 1)):
        for _ in range(updates):
            optimizer.backward((3 * p).sum())
            optimizer.step(0.1)
    torch.testing.assert_close(lazy, plain)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(lazily.adamw.state[lazy][name], plainly.adamw.state[plain][name])


def test_weight_decay_on_matrices_leaves_out_biases_norms_and_embeddings() -> None:
    layers = {"conv": nn.Conv2d(1, 2, 3), "linear": nn.Linear(3, 2), "norm": nn.GroupNorm(1, 2)}
    net = nn.ModuleDict({**layers, "embedding": nn.Embedding(4, 2)})
    net.register_parameter("gain", nn.Parameter(torch.ones(3)))
    names = {name for name, _ in net.named_parameters()}
    for config, decayed in (
        (OptimizerConfig(weight_decay=0.5, weight_decay_on="matrices"), {"conv.weight", "linear.weight"}),
        (OptimizerConfig(weight_decay=0.5), names),
    ):
        for p in net.parameters():
            nn.init.ones_(p)
        optimizer = Optimizer(config, {"net": net}, scaled=False)
        optimizer.backward(0 * sum((p.sum() for p in net.parameters()), torch.zeros(())))
        optimizer.step(0.1)
        shrunk = {name for name, p in net.named_parameters() if torch.allclose(p, torch.tensor(0.95))}
        kept = {name for name, p in net.named_parameters() if torch.equal(p, torch.ones_like(p))}
        assert (shrunk, kept) == (decayed, names - decayed)


def test_groups_of_weight_decay_have_the_learning_rates_of_their_networks() -> None:
    config = OptimizerConfig(weight_decay=0.1, weight_decay_on="matrices", lr_factors={"fast": 3.0})
    optimizer = Optimizer(config, {"slow": nn.Linear(2, 2), "fast": nn.Linear(2, 2)}, scaled=False)
    optimizer.backward(sum((p.square().sum() for p in optimizer.parameters), torch.zeros(())))
    optimizer.step(0.1)
    groups = [(group["lr"], group["weight_decay"]) for group in optimizer.adamw.param_groups]
    expected = [(0.1, 0.1), (0.1, 0.0), (0.3, 0.1), (0.3, 0.0)]
    assert all(group == pytest.approx(pair) for group, pair in zip(groups, expected, strict=True))
