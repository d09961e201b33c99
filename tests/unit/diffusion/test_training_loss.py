"""The loss of a batch: its pairs, its terms, what it logs, and that it never waits for the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffpipe.diffusion.denoiser import denoiser
from diffpipe.diffusion.objective import WeightingConfig
from diffpipe.diffusion.parameterization import Parameterization, x0_from_eps
from diffpipe.diffusion.sampler_config import SAMPLERS, SamplerConfig
from diffpipe.diffusion.samplers import sample
from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.diffusion.timesteps import TimestepsConfig, draw_level
from diffpipe.diffusion.training_loss import NoisedBatch, training_loss, within_ends
from diffpipe.diffusion.vlb import variational_lower_bound
from diffpipe.interfaces import Loss
from diffpipe.rng import KeyedRNG

SCHEDULE = DiscreteScheduleConfig().build()
EPS = Parameterization("eps")


def images(n: int, seed: int = 0) -> torch.Tensor:
    levels = torch.randint(0, 256, (n, 3, 4, 4), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


def noised(x0: torch.Tensor, rng: KeyedRNG) -> NoisedBatch:
    level = draw_level(SCHEDULE, TimestepsConfig(), "linear", rng)
    return NoisedBatch.of(x0, rng.normal("noise", x0.shape[1:]), level)


def loss_of(batch: NoisedBatch, output: torch.Tensor, log_variance: torch.Tensor | None = None, **kind: Any) -> Loss:
    return training_loss(EPS, SCHEDULE, WeightingConfig.model_validate(kind), batch, output, log_variance)


def test_the_pair_is_consistent_and_its_draws_are_the_named_ones():
    x0, rng = images(16), KeyedRNG(5, torch.arange(100, 116))
    pair = noised(x0, rng)
    assert torch.equal(pair.level.time, rng.integers("timestep", 1000))
    assert torch.equal(pair.eps, rng.normal("noise", (3, 4, 4)))
    early = pair.level.time < 900  # later, dividing by sqrt(alpha_bar) magnifies the rounding
    torch.testing.assert_close(x0_from_eps(pair.level, pair.x_t, pair.eps)[early], x0[early], atol=1e-4, rtol=0)


def test_the_pair_of_a_sample_does_not_depend_on_its_batch():
    x0, positions = images(12), torch.arange(12) + 2**33
    whole = noised(x0, KeyedRNG(0, positions))
    for part in ([0], [3, 4, 5], [11, 2]):
        alone = noised(x0[part], KeyedRNG(0, positions[part]))
        assert torch.equal(alone.x_t, whole.x_t[part])
        assert torch.equal(alone.eps, whole.eps[part])


def test_the_logged_losses_are_those_of_each_quarter():
    batch = noised(images(64), KeyedRNG(0, torch.arange(64)))
    loss = loss_of(batch, torch.zeros_like(batch.x_t))
    quarter = batch.level.time // 250
    for i in range(4):
        logged = loss.metrics[f"loss_q{i + 1}"]
        assert torch.equal(logged.isfinite(), quarter == i)
        assert torch.equal(logged[quarter == i], loss.per_sample[quarter == i])


def test_the_learned_weighting_is_least_at_the_log_of_the_mean_square():
    batch = noised(images(8), KeyedRNG(0, torch.arange(8)))
    output = torch.zeros_like(batch.x_t)
    mse = loss_of(batch, output).per_sample
    u = mse.log().requires_grad_()
    loss = loss_of(batch, output, u, kind="learned")
    torch.testing.assert_close(loss.per_sample, 1 + mse.log())
    (gradient,) = torch.autograd.grad(loss.per_sample.sum(), u)
    torch.testing.assert_close(gradient, torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(loss.metrics["mse"], mse)


def test_a_learned_variance_adds_its_term_of_the_bound():
    """Against the bound itself, over all timesteps of a short chain with the same noise."""
    schedule = DiscreteScheduleConfig(kind="cosine", steps=6).build()
    x0, rng = images(3), KeyedRNG(1, torch.arange(3))

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.cat([0.5 * x, torch.sin(3 * x)], dim=1)

    denoise = denoiser(lambda x, t, level: network(x.float(), t), EPS, learned_variance=True)
    score = variational_lower_bound(denoise, schedule, x0, rng, variance="small")
    for t in range(6):
        level = schedule.level(torch.full((3,), t))
        batch = NoisedBatch.of(x0, rng.normal("bound noise", x0.shape[1:], t), level)
        output = network(batch.x_t, level.time).requires_grad_()
        loss = training_loss(EPS, schedule, WeightingConfig(), batch, output)
        plain = training_loss(EPS, schedule, WeightingConfig(), batch, output[:, :3])
        term = score.terms["L_0"] if t == 0 else score.by_timestep[:, t - 1]
        torch.testing.assert_close(loss.per_sample - plain.per_sample, term * 6 / 1000, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(loss.metrics["vlb"], term * 6 / 1000, rtol=1e-4, atol=1e-7)
        (gradient,) = torch.autograd.grad(loss.metrics["vlb"].sum(), output)
        assert (gradient[:, :3] == 0).all()
        assert gradient[:, 3:].isfinite().all()
        assert (gradient[:, 3:] != 0).any()


def test_a_learned_variance_between_its_bounds_is_the_fixed_ones_at_both_ends():
    schedule = DiscreteScheduleConfig(kind="cosine", steps=6).build()
    x0, rng = images(3), KeyedRNG(1, torch.arange(3))
    for variance, share in (("small", -1.0), ("large", 1.0)):

        def network(x: torch.Tensor, share: float = share) -> torch.Tensor:
            return torch.cat([0.5 * x, torch.full_like(x, share)], dim=1).float()

        learned = denoiser(lambda x, t, level, f=network: f(x), EPS, learned_variance=True)
        fixed = denoiser(lambda x, t, level, f=network: f(x)[:, :3], EPS)
        one = variational_lower_bound(learned, schedule, x0, rng, variance="small")
        chosen: Any = variance
        other = variational_lower_bound(fixed, schedule, x0, rng, variance=chosen)
        torch.testing.assert_close(one.by_timestep, other.by_timestep, rtol=1e-5, atol=1e-7)
        assert math.isfinite(one.per_sample.sum().item())


class Reads(TorchDispatchMode):
    """Counts how often the host waited for a number on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_training_does_not_wait_for_the_device():
    rng, x0 = KeyedRNG(0, torch.arange(4)), images(4)
    with Reads() as reads:
        torch.ones(1).item()
        assert reads.count == 1
        for kind in ("simple", "min_snr", "p2", "edm"):
            pair = noised(x0, rng)
            loss_of(pair, torch.cat([pair.x_t, pair.x_t], dim=1), kind=kind)
    assert reads.count == 1


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_sampler_reads_the_schedule_once_and_then_never_waits_for_the_device(kind):
    config = SamplerConfig(kind=kind, steps=5, eta=0.5, churn=10)
    asked: list[int] = []

    with Reads() as reads:

        def network(x: torch.Tensor, t: torch.Tensor, level: object) -> torch.Tensor:
            asked.append(reads.count)
            return x

        sample(denoiser(network, EPS, clip=True), SCHEDULE, config, KeyedRNG(0, torch.arange(4)), (3, 4, 4))
    assert asked[0] == asked[-1] == reads.count


def test_a_prediction_beyond_a_black_or_white_pixel_is_no_error_and_elsewhere_it_is_the_whole():
    x0 = torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 0.5, -0.99, 0.5])
    prediction = torch.tensor([-1.2, -0.9, 1.3, 1.4, -1.4, 1.2, -1.1, 0.0], requires_grad=True)
    error = (within_ends(x0, prediction) - x0).square()
    kept = torch.tensor([False, True, True, False, True, True, True, True])
    torch.testing.assert_close(error, torch.where(kept, (prediction - x0).square(), 0.0))
    (gradient,) = torch.autograd.grad(error.sum(), prediction)
    torch.testing.assert_close(gradient, torch.where(kept, 2 * (prediction - x0), 0.0))


def test_the_mean_stays_the_best_prediction_where_the_ends_are_one_sided():
    """For pixels that are black, grey or white by chance, among all predictions from -2 to 2."""
    for shares in ((0.9, 0.1, 0.0), (0.2, 0.3, 0.5), (0.0, 0.0, 1.0), (1 / 3, 1 / 3, 1 / 3)):
        levels, weights = torch.tensor([-1.0, 0.2, 1.0]), torch.tensor(shares)
        candidates = torch.linspace(-2, 2, 401)
        errors = sum(
            weight * (within_ends(level.expand(401), candidates) - level).square()
            for level, weight in zip(levels, weights, strict=True)
        )
        assert isinstance(errors, torch.Tensor)
        best = candidates[errors.argmin()].clamp(-1, 1)
        torch.testing.assert_close(best, (levels * weights).sum(), atol=0.006, rtol=0)


@pytest.mark.parametrize("kind", ["simple", "min_snr"])
def test_the_loss_with_one_sided_ends_is_that_of_the_prediction_within_them(kind: str):
    batch = noised(images(8).round(), KeyedRNG(0, torch.arange(8)))  # black, grey and white
    x0, weighting = Parameterization("x0"), WeightingConfig.model_validate({"kind": kind})
    output = batch.x0 + 0.3 * batch.eps
    ends = training_loss(x0, SCHEDULE, weighting, batch, output, one_sided_ends=True)
    inside = training_loss(x0, SCHEDULE, weighting, batch, within_ends(batch.x0, output))
    assert torch.equal(ends.per_sample, inside.per_sample)
    assert (ends.per_sample < training_loss(x0, SCHEDULE, weighting, batch, output).per_sample).all()
