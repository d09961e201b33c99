"""The variational bound: its terms against independent float64 derivations, and whole against an exact entropy."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from diffpipe.diffusion import vlb
from diffpipe.diffusion.denoiser import Denoise, denoiser
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import Gaussian
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig
from diffpipe.diffusion.vlb import (
    VLBScore,
    decoder_term,
    gaussian_kl,
    prior_term,
    timestep_strata,
)
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape, Scores
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm_config import DDPMConfig

Variance = Literal["small", "large"]
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def images(n: int, shape: tuple[int, ...] = (1, 2, 3), seed: int = 0) -> Tensor:
    levels = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(seed))
    return levels / 127.5 - 1


def variational_lower_bound(
    eps_model: Any, schedule: DiscreteSchedule, x0: Tensor, rng: KeyedRNG, *, clip: bool, **options: Any
) -> VLBScore:
    """The bound of a network that predicts eps and computes in float32."""

    def network(x: Tensor, t: Tensor, level: Any) -> Tensor:
        return eps_model(x.float(), t)

    denoise: Denoise = denoiser(network, Parameterization("eps"), clip=clip)
    return vlb.variational_lower_bound(denoise, schedule, x0, rng, **options)


class Denoiser:
    """A fixed function of each pixel and t, which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert x_t.dtype == torch.float32
        self.asked.append((x_t, t))
        return 0.7 * x_t + 0.2 * torch.sin(3 * x_t + t[:, None, None, None])


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_every_term_equals_its_definition(variance: Variance, clip: bool) -> None:
    # By products of Gaussian densities and quadrature, from the betas alone.
    T, x0, denoiser = 12, images(3), Denoiser()
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(steps=T, beta_start=1e-6 * T, beta_end=3e-4 * T))
    score = variational_lower_bound(denoiser, schedule, x0, KeyedRNG(5, torch.arange(3)), clip=clip, variance=variance)
    beta = torch.linspace(0.001, 0.3, T, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    x0 = x0.double()
    bits = 1 / (math.log(2) * 6)

    last = Normal(alpha_bar[-1].sqrt() * x0, (1 - alpha_bar[-1]).sqrt())
    prior = kl_divergence(last, Normal(torch.zeros_like(x0), 1.0)).sum((1, 2, 3)) * bits
    torch.testing.assert_close(score.terms["L_T"].double(), prior, rtol=1e-5, atol=1e-9)

    assert [t.tolist() for _, t in denoiser.asked] == [[t] * 3 for t in range(T)]
    predicted = []
    for t, (x_t, at) in enumerate(denoiser.asked):
        eps = Denoiser()(x_t, at).double()
        guess = (x_t.double() - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()
        predicted.append(guess.clamp(-1, 1) if clip else guess)

    def step_back(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """N(x_{t-1}; sqrt(alpha_bar_{t-1}) x, 1 - alpha_bar_{t-1}) times N(x_t; sqrt(alpha_t) x_{t-1}, beta_t)."""
        precision = 1 / (1 - alpha_bar[t - 1]) + (1 - beta[t]) / beta[t]
        weighted = alpha_bar[t - 1].sqrt() * x / (1 - alpha_bar[t - 1])
        weighted = weighted + (1 - beta[t]).sqrt() * denoiser.asked[t][0].double() / beta[t]
        return weighted / precision, 1 / precision

    for t in range(1, T):
        mean, var = step_back(x0, t)
        guess, var_p = step_back(predicted[t], t)
        var_p = beta[t] if variance == "large" else var_p
        kl = kl_divergence(Normal(mean, var.sqrt()), Normal(guess, var_p.sqrt())).sum((1, 2, 3)) * bits
        torch.testing.assert_close(score.by_timestep[:, t - 1].double(), kl, rtol=1e-5, atol=1e-9)

    std = float(step_back(x0, 1)[1].sqrt())
    for i in range(3):
        nats = 0.0
        for x, mean in zip(x0[i].flatten().tolist(), predicted[0][i].flatten().tolist(), strict=True):
            assert -0.999 < x < 0.999
            mass, _ = quad(norm.pdf, x - 1 / 255, x + 1 / 255, (mean, std), epsabs=0, epsrel=1e-10)
            nats -= math.log(mass)
        assert score.terms["L_0"][i].item() == pytest.approx(nats * bits, rel=1e-5)

    torch.testing.assert_close(score.terms["L_t"], score.by_timestep.sum(1))
    torch.testing.assert_close(score.per_sample, sum(score.terms.values(), torch.zeros(3)))
    assert (score.unit, score.kind) == ("bits/dim", "bound")


def test_gaussian_kl_against_torch() -> None:
    q, p = (
        Gaussian(torch.randn(4, 2, 3, generator=g, dtype=torch.float64), torch.rand(4, generator=g).double() + 0.1)
        for g in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    )
    wide = [Normal(each.mean, each.variance.sqrt()[:, None, None]) for each in (q, p)]
    torch.testing.assert_close(gaussian_kl(q, p), kl_divergence(*wide).sum((1, 2)))
    assert gaussian_kl(q, q).abs().max() == 0


@pytest.mark.parametrize("std", [1e-4, 0.005, 0.05, 3.0])
def test_the_decoders_bins_sum_to_one(std: float) -> None:
    x = LEVELS.float()[:, None]
    for mean in (-1.5, -1.0, -0.3, 0.001, 0.999, 40.0):
        log_prob = -decoder_term(x, Gaussian(torch.full((256, 1), mean), torch.full((256,), std**2)))
        assert torch.logsumexp(log_prob, 0).item() == pytest.approx(0, abs=1e-9)
        assert log_prob.isfinite().all()


def test_the_decoder_keeps_its_precision_far_from_the_mean() -> None:
    # 30 standard deviations out: the differences of cumulative probabilities are 0 in floats, their logarithms are not.
    x, mean, std = LEVELS[[200, 100]].float()[:, None], LEVELS[[170, 130]][:, None], 2 / 255
    nats = decoder_term(x, Gaussian(mean, torch.full((2,), std**2, dtype=torch.float64)))
    near, far = float(norm.logsf(29.5)), float(norm.logsf(30.5))
    tail = near + math.log1p(-math.exp(far - near))
    torch.testing.assert_close(nats, torch.full((2,), -tail, dtype=torch.float64), rtol=1e-6, atol=0)


def test_no_signal_left_at_the_end_costs_nothing() -> None:
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind="cosine", steps=1000))
    last = schedule.level(torch.tensor([999]))
    assert prior_term(last, 1.0, images(4)).max() < 1e-6


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_optimal_denoiser_of_a_gaussian_reaches_its_entropy_from_above(variance: Variance) -> None:
    # Pixels of a Gaussian cut into 256 levels. Their entropy is a sum, and so is the denoiser: E[x_0 | x_t].
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1
    p = torch.special.ndtr((edges + 0.2) / 0.03).diff()
    p = p / p.sum()
    entropy = -torch.special.xlogy(p, p).sum().item() / math.log(2)
    likely = p > 1e-15

    def gap(T: int, n: int = 500) -> tuple[float, float]:
        """The mean excess over -log2 p(x_0) in bits, and its standard error, with x_0 at p's quantiles."""
        levels = torch.searchsorted(p.cumsum(0), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        log_snr = torch.linspace(16, -9, T, dtype=torch.float64)  # even steps, from far below a level's width
        log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), nn.functional.logsigmoid(log_snr)])
        schedule = DiscreteSchedule(-log_alpha_bar.diff().expm1(), log_alpha_bar)

        def eps_model(x_t: Tensor, t: Tensor) -> Tensor:
            signal, noise = schedule.alpha_bar(t).sqrt()[:, None], schedule.one_minus_alpha_bar(t).sqrt()[:, None]
            x = x_t.flatten(1).double()
            weight = torch.softmax(p[likely].log() - ((x - signal * LEVELS[likely]) / noise).square() / 2, dim=1)
            return ((x - signal * (weight @ LEVELS[likely])[:, None]) / noise).reshape(x_t.shape)

        x0 = LEVELS[levels].float().reshape(n, 1, 1, 1)
        score = variational_lower_bound(
            eps_model, schedule, x0, KeyedRNG(0, torch.arange(n)), clip=True, variance=variance
        )
        assert score.per_sample.mean().item() > entropy
        excess = score.per_sample.double() + p[levels].log2()
        return excess.mean().item(), excess.std().item() / math.sqrt(n)

    (coarse, _), (middle, error), (fine, _) = gap(32), gap(96), gap(288)
    assert middle > 3 * error
    assert coarse > 2.5 * middle > 2.5**2 * fine > 0  # three times the steps, a third of the excess
    assert fine < 0.1 * entropy


def test_some_timesteps_estimate_the_sum_over_all_without_bias() -> None:
    T, n = 40, 4000
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(steps=T, beta_start=1e-6 * T, beta_end=3e-4 * T))
    x0 = images(1, (1, 2, 2)).expand(n, 1, 2, 2)

    def score(evaluations: int | None) -> VLBScore:
        rng, denoiser = KeyedRNG(3, torch.arange(n)), Denoiser()
        got = variational_lower_bound(denoiser, schedule, x0, rng, clip=True, variance="small", evaluations=evaluations)
        assert len(denoiser.asked) == (evaluations or T)
        return got

    full, some = score(None), score(5)
    assert [len(s) for s in some.strata] == [1, 4, 9, 25]
    for j, stratum in enumerate(some.strata):
        expected = full.by_timestep[:, stratum.start - 1 : stratum.stop - 1].double().sum(1)
        estimate = some.by_timestep[:, j].double()
        error = (estimate.var() + expected.var()).sqrt() / math.sqrt(n)
        assert abs(estimate.mean() - expected.mean()) < 4 * error
        assert error < 0.05 * expected.mean()
    assert torch.equal(some.terms["L_0"], full.terms["L_0"])
    assert torch.equal(some.terms["L_T"], full.terms["L_T"])


@pytest.mark.parametrize("evaluations", [None, 4])
def test_a_sample_is_scored_alike_in_every_batch(evaluations: int | None) -> None:
    schedule, x0 = DiscreteSchedule.build(DiscreteScheduleConfig(steps=15)), images(6)
    options: dict[str, Any] = {"clip": True, "variance": "large", "evaluations": evaluations}
    positions = torch.tensor([0, 1, 7, 2**40, 50, 3])
    whole = variational_lower_bound(Denoiser(), schedule, x0, KeyedRNG(1, positions), **options)
    for rows in ([0, 1], [2, 3, 4], [5]):
        part = variational_lower_bound(Denoiser(), schedule, x0[rows], KeyedRNG(1, positions[rows]), **options)
        assert torch.equal(part.per_sample, whole.per_sample[rows])
        assert torch.equal(part.by_timestep, whole.by_timestep[rows])
    other = variational_lower_bound(Denoiser(), schedule, x0, KeyedRNG(2, positions), **options)
    assert not torch.equal(other.per_sample, whole.per_sample)


@pytest.mark.parametrize(("T", "evaluations"), [(1000, None), (1000, 1000), (1000, 60), (1000, 2), (17, 6), (2, None)])
def test_strata_cut_the_timesteps_into_runs_that_lengthen_with_t(T: int, evaluations: int | None) -> None:
    strata = timestep_strata(T, evaluations)
    assert [t for stratum in strata for t in stratum] == list(range(1, T))
    assert len(strata) == (evaluations or T) - 1
    if evaluations not in (None, T, 2):
        assert len(strata[0]) == 1
        assert len(strata[-1]) == pytest.approx(strata[-1].start * (T ** (1 / len(strata)) - 1), abs=2)


UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
SHAPE = ImageShape(channels=1, resolution=square(8), classes=4)


class LabelRecorder(nn.Module):
    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.labels = labels
        return torch.zeros_like(x)


def ddpm(conditional: bool = False, **sampler: Any) -> Scores:
    tree = {"kind": "ddpm", "network": UNET, "schedule": {"steps": 20}, "sampler": {"steps": 5, **sampler}}
    stage = DDPMConfig.model_validate(tree | {"conditional": conditional}).build(SHAPE)
    assert isinstance(stage, Scores)
    return stage


def batch(n: int = 6, labelled: bool = True) -> Batch:
    pixels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(pixels, torch.arange(n) % 4 if labelled else None, torch.arange(n), [str(i) for i in range(n)])


def test_the_ddpm_scores_uint8_images_under_their_labels_or_the_empty_one() -> None:
    net = LabelRecorder()
    for conditional, labelled, expected in (
        (True, True, [0, 1, 2, 3, 0, 1]),
        (True, False, [4] * 6),
        (False, True, None),
    ):
        # Guidance changes what is generated, not the model's likelihood.
        stage = ddpm(conditional, guidance=3.0 if conditional else 1.0)
        score = stage.score({"denoiser": net}, batch(labelled=labelled), KeyedRNG(0, torch.arange(6)))
        labels = net.labels
        assert (labels is None and expected is None) or (labels is not None and labels.tolist() == expected)
        assert set(score.terms) == {"L_T", "L_t", "L_0"}
        assert score.per_sample.dtype == torch.float32
    x0 = batch().images.float() / 127.5 - 1
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(steps=20))
    expected = variational_lower_bound(
        lambda x, t: torch.zeros_like(x), schedule, x0, KeyedRNG(0, torch.arange(6)), clip=True, variance="small"
    )
    assert torch.equal(score.per_sample, expected.per_sample)


def test_the_samplers_settings_shape_the_bound() -> None:
    def mean(**sampler: Any) -> tuple[float, int]:
        score = ddpm(**sampler).score({"denoiser": LabelRecorder()}, batch(), KeyedRNG(0, torch.arange(6)))
        assert isinstance(score, VLBScore)
        return score.per_sample.mean().item(), len(score.strata)

    plain = mean()
    assert plain[1] == 19
    assert mean(variance="large")[0] != plain[0]
    assert mean(clip=False)[0] != plain[0]
    assert mean(vlb_steps=7)[1] == 6


def test_more_steps_than_there_are_timesteps_are_refused() -> None:
    with pytest.raises(UserError, match="bound's steps are 21, but the schedule has 20: ask for 2 to 20"):
        ddpm(vlb_steps=21)
