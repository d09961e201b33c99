"""The likelihood of the probability flow: its order, its keys, its terms, and that of quantized pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.diffusion.denoiser import Denoise, denoiser
from diffpipe.diffusion.ode_likelihood import ODEScore, ODESettings, log_density, ode_likelihood, ode_settings
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.vlb import variational_lower_bound
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm import DDPM
from diffpipe.stages.ddpm_config import DDPMConfig
from tests.support.ground_truth import LINE, exact_denoiser, first_level, schedule_of

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("heun", 2)])
def test_it_converges_to_the_exact_density_at_the_solvers_order(solver: Any, order: int) -> None:
    # In one dimension every sign gives the exact divergence.
    schedule = schedule_of("flow")
    level = first_level(schedule)
    x = level.alpha * LINE.sample(16) + level.sigma * LINE.sample(16, seed=1)
    errors = []
    for steps in (20, 40):
        settings = ODESettings(solver=solver, steps=steps)
        density = log_density(exact_denoiser(LINE, "flow"), schedule, x, KeyedRNG(0, torch.arange(16)), settings)
        torch.testing.assert_close(density.divergence[0], density.divergence[1])
        error = density.prior + density.divergence[0] - LINE.log_density(x, level)
        errors.append(error.square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[1]) > order - 0.25, errors
    assert errors[1] < {"rk4": 3e-4, "heun": 0.05}[solver], errors


def tangled(x: Tensor, t: Tensor, level: NoiseLevel) -> Tensor:
    """A network whose pixels depend on each other."""
    return torch.sin(3 * x.roll(1, -1)) + 0.3 * x + 0.001 * t[:, None, None, None]


def images(n: int) -> Tensor:
    levels = torch.randint(0, 256, (n, 1, 2, 3), generator=torch.Generator().manual_seed(0))
    return levels / 127.5 - 1


def score(x0: Tensor, positions: Tensor, seed: int = 0, **settings: Any) -> ODEScore:
    denoise = denoiser(tangled, Parameterization("v"), clip=True)
    options = ODESettings(**({"steps": 6, "solver": "heun"} | settings))
    return ode_likelihood(denoise, schedule_of("cosine"), x0, KeyedRNG(seed, positions), options)


def test_a_sample_is_scored_alike_in_every_batch() -> None:
    x0, positions = images(6), torch.tensor([0, 1, 7, 2**40, 50, 3])
    whole = score(x0, positions)
    for rows in ([0, 1], [2, 3, 4], [5]):
        part = score(x0[rows], positions[rows])
        assert torch.equal(part.per_sample, whole.per_sample[rows])
        assert torch.equal(part.probe_variance, whole.probe_variance[rows])
    assert not torch.equal(score(x0, positions, seed=1).per_sample, whole.per_sample)


def test_the_probes_variance_is_that_of_repeated_scores() -> None:
    n = 400
    x0 = images(1).expand(n, 1, 2, 3)
    settings = ODESettings(steps=6, solver="heun", probes=3)
    denoise, schedule = denoiser(tangled, Parameterization("v"), clip=True), schedule_of("cosine")
    x_1 = 0.99 * x0.double()
    density = log_density(denoise, schedule, x_1, KeyedRNG(0, torch.arange(n)), settings)
    means, stated = density.divergence.mean(0), (density.divergence.var(0) / 3).mean().item()
    assert means.var().item() == pytest.approx(stated, rel=0.2)
    assert stated > 0.05**2
    assert density.prior.std() < 1e-12  # the path does not depend on the probes


def test_the_last_term_is_the_bounds_and_all_add_up() -> None:
    x0, rng = images(5), KeyedRNG(3, torch.arange(5))
    denoise, schedule = denoiser(tangled, Parameterization("v"), clip=True), schedule_of("cosine")
    ode = ode_likelihood(denoise, schedule, x0, rng, ODESettings(steps=2))
    bound = variational_lower_bound(denoise, schedule, x0, rng, variance="small", evaluations=2)
    torch.testing.assert_close(ode.terms["L_0"], bound.terms["L_0"], rtol=1e-3, atol=0)
    torch.testing.assert_close(ode.per_sample, sum(ode.terms.values(), torch.zeros(5)))
    assert (ode.unit, ode.kind, ode.per_sample.dtype) == ("bits/dim", "estimate", torch.float32)


def test_the_optimal_denoiser_of_quantized_pixels_reaches_their_entropy() -> None:
    edges = (torch.arange(257, dtype=torch.float64) - 0.5) / 127.5 - 1
    p = torch.special.ndtr((edges + 0.2) / 0.03).diff()
    p = p / p.sum()
    bits, likely = -p.log2(), p > 1e-15

    def network(x: Tensor, t: Tensor, level: NoiseLevel) -> Tensor:
        alpha, sigma = (torch.as_tensor(c).double().expand(len(x))[:, None] for c in (level.alpha, level.sigma))
        offsets = (x.double().flatten(1) - alpha * LEVELS[likely]) / sigma
        weight = torch.softmax(p[likely].log() - offsets.square() / 2, dim=1)
        return (weight @ LEVELS[likely])[:, None, None, None]

    n = 100
    levels = torch.searchsorted(p.cumsum(0), (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    denoise: Denoise = denoiser(network, Parameterization("x0"))
    ode = ode_likelihood(
        denoise,
        schedule_of("edm", sigma_min=1e-3),  # a fifth of a level's width: the decoder is sure
        LEVELS[levels].float().reshape(n, 1, 1, 1),
        KeyedRNG(0, torch.arange(n)),
        ODESettings(steps=50),
    )
    excess = ode.per_sample.double() - bits[levels]
    assert excess.mean().abs() < max(4 * excess.std().item() / math.sqrt(n), 1e-3), excess.mean()
    assert excess.std() < 0.03
    assert ode.probe_variance.max() < 1e-9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ode": True, "steps": 0}, "the ODE's steps are 0; give 1 or more"),
        ({"ode": True, "probes": 1}, "probes is 1; give 2 or more: their spread is the standard error of the trace"),
        ({"ode": False, "probes": 4}, "probes is for the likelihood of the probability flow; give ode too"),
        ({"ode": False, "solver": "heun"}, "solver is for the likelihood of the probability flow; give ode too"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ode_settings(**options)


def test_options_that_are_not_given_have_defaults() -> None:
    assert ode_settings(ode=True, steps=None, probes=4) == ODESettings("rk4", 50, 4)
    assert ode_settings(ode=False, steps=9, solver=None) is None


class LabelRecorder(nn.Module):
    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.labels, self.time = labels, t
        return 0.1 * x


@pytest.mark.parametrize(
    ("prediction", "schedule"),
    [("eps", "linear"), ("x0", "cosine"), ("v", "sigmoid"), ("edm", "edm"), ("flow", "flow")],
)
def test_the_ddpm_scores_images_of_every_objective_under_their_labels(prediction: str, schedule: str) -> None:
    network = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4}
    tree: dict[str, Any] = {"kind": "ddpm", "network": network, "prediction": prediction, "conditional": True}
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = Batch(pixels, torch.arange(3), torch.arange(3), ["0", "1", "2"])
    scores = []
    for guidance in (1.0, 3.0):  # it changes what is generated, not the model's likelihood
        stage = DDPMConfig.model_validate(
            tree | {"schedule": {"kind": schedule}, "sampler": {"guidance": guidance}}
        ).build(ImageShape(channels=1, resolution=square(8), classes=4))
        assert isinstance(stage, DDPM)
        net = LabelRecorder()
        scores.append(stage.ode_score({"denoiser": net}, batch, KeyedRNG(0, torch.arange(3)), ODESettings(steps=3)))
        assert net.labels is not None
        assert net.labels.tolist() == [0, 1, 2]
    assert torch.equal(scores[0].per_sample, scores[1].per_sample)
    assert scores[0].per_sample.isfinite().all()
