"""The samplers: step by step against diffusers, and against closed forms."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers import scheduling_ddpm
from pydantic import ValidationError

from diffpipe.diffusion.denoiser import Denoise, Denoised, denoiser
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.sampler_config import SamplerConfig
from diffpipe.diffusion.samplers import ancestral, ddim, sample
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig
from diffpipe.errors import UserError
from diffpipe.rng import KeyedRNG

NAMES: dict[str, Any] = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
SHAPE = (2, 3, 4, 4)
CHAINS = [
    (250, 250, "trailing"),
    (1000, 50, "trailing"),
    (1000, 20, "leading"),
    (1000, 1, "trailing"),
]  # T, steps, spacing


def network(x_t: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """Something that answers as a network does: it finds most of the noise where there is much, and is not linear."""
    time = torch.as_tensor(t).reshape(-1, 1, 1, 1).to(x_t.dtype) / 1000
    return (time + 0.01).sqrt().clamp(max=1) * x_t + 0.1 * torch.sin(3 * x_t + 5 * time)


@functools.cache
def gaussian(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def predicts_eps(network: Any, *, clip: bool = False) -> Denoise:
    """The denoiser of a network that predicts eps."""
    return denoiser(lambda x, t, level: network(x, t), Parameterization("eps"), clip=clip)


def trajectory(
    sampler: Any, schedule: DiscreteSchedule, config: SamplerConfig, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Every x_t that the network saw, then x_0."""
    seen = []

    def eps_model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (SHAPE[0],)
        seen.append(x_t)
        return network(x_t, t)

    denoise = predicts_eps(eps_model, clip=config.clip)
    x0 = sampler(denoise, schedule, gaussian(99, dtype), config, lambda i: gaussian(i, dtype))
    return [*seen, x0]


def in_double(theirs: Any, schedule: DiscreteSchedule) -> Any:
    """diffusers' scheduler with its formulas as they are and its tables in float64."""
    theirs.alphas_cumprod = torch.cumprod(1 - schedule.betas, 0)
    theirs.one = theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return theirs


def their_trajectory(theirs: Any, steps: int, dtype: torch.dtype, **kwargs: Any) -> list[torch.Tensor]:
    """Every x_t from x_T to x_0, with the noise that `trajectory` has where the scheduler takes it as an argument."""
    theirs.set_timesteps(steps)
    xs = [gaussian(99, dtype)]
    for i, t in enumerate(theirs.timesteps.tolist()):
        noise = {"variance_noise": gaussian(i, dtype)} if isinstance(theirs, DDIMScheduler) else {}
        step: Any = theirs.step(network(xs[-1], t), t, xs[-1], **noise, **kwargs)
        xs.append(step.prev_sample)
    return xs


def assert_trajectories_agree(
    sampler: Any, schedule: DiscreteSchedule, config: SamplerConfig, theirs: list[torch.Tensor]
) -> None:
    """In float64 to 1e-9; in float32 to 1e-5, or without clipping to what rounding eps leaves of the first x_0."""
    first = torch.tensor(schedule.timesteps(config.steps, config.spacing)[:1])
    magnified = 0 if config.clip else 3e-7 / schedule.alpha_bar(first).sqrt().item()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5 + magnified)):
        ours = torch.stack(trajectory(sampler, schedule, config, dtype))
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), torch.stack(theirs), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("variance", "total", "steps", "spacing"),
    [
        *(("small", *chain) for chain in CHAINS),
        ("small", 1000, 1000, "trailing"),
        ("large", 1000, 50, "trailing"),
        ("large", 1000, 20, "leading"),
    ],
)
@pytest.mark.parametrize("clip", [True, False])
def test_ancestral_trajectories_agree_with_diffusers(kind, total, steps, spacing, clip, variance, monkeypatch):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind, steps=total))
    config = SamplerConfig(kind="ancestral", steps=steps, spacing=spacing, clip=clip, variance=variance)
    drawn = []

    def injected(shape: Any, **kwargs: Any) -> torch.Tensor:
        # diffusers adds beta's noise to the finished image too, unless the last timestep is 0.
        drawn.append(gaussian(len(drawn), torch.float64) * (len(drawn) < steps - 1))
        return drawn[-1]

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", injected)
    variance_type: Any = f"fixed_{variance}"
    theirs = DDPMScheduler(
        num_train_timesteps=total,
        beta_schedule=NAMES[kind],
        timestep_spacing=spacing,
        clip_sample=clip,
        variance_type=variance_type,
    )
    theirs = their_trajectory(in_double(theirs, schedule), steps, torch.float64)
    assert_trajectories_agree(ancestral, schedule, config, theirs)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("total", "steps", "spacing"), CHAINS)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_trajectories_agree_with_diffusers(kind, total, steps, spacing, clip, eta):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind, steps=total))
    config = SamplerConfig(steps=steps, spacing=spacing, clip=clip, eta=eta)
    theirs = DDIMScheduler(
        num_train_timesteps=total,
        beta_schedule=NAMES[kind],
        timestep_spacing=spacing,
        clip_sample=clip,
        set_alpha_to_one=True,
        steps_offset=0,
    )
    # Where x_0 is clipped we use the eps that goes with it, as use_clipped_model_output does.
    theirs = their_trajectory(in_double(theirs, schedule), steps, torch.float64, eta=eta, use_clipped_model_output=True)
    assert_trajectories_agree(ddim, schedule, config, theirs)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("steps", "spacing"), [(50, "trailing"), (20, "leading")])
def test_trajectories_agree_with_diffusers_as_it_comes(kind, steps, spacing, monkeypatch):
    """In float32, tables and all, where the steps are wide enough for its tables."""
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))
    noise = iter([gaussian(i, torch.float32) for i in range(steps)])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda shape, **kwargs: next(noise))
    theirs = their_trajectory(DDPMScheduler(beta_schedule=NAMES[kind], timestep_spacing=spacing), steps, torch.float32)
    config = SamplerConfig(kind="ancestral", steps=steps, spacing=spacing)
    torch.testing.assert_close(trajectory(ancestral, schedule, config, torch.float32), theirs, atol=1e-5, rtol=0)
    for eta in (0.0, 0.5, 1.0):
        theirs = DDIMScheduler(beta_schedule=NAMES[kind], timestep_spacing=spacing)
        theirs = their_trajectory(theirs, steps, torch.float32, eta=eta, use_clipped_model_output=True)
        config = SamplerConfig(steps=steps, spacing=spacing, eta=eta)
        torch.testing.assert_close(trajectory(ddim, schedule, config, torch.float32), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("steps", "spacing"), [(300, "trailing"), (30, "trailing"), (25, "linspace")])
def test_ddim_with_eta_1_is_the_ancestral_sampler(kind, steps, spacing):
    """Song et al. 2021, section 4.1, also where x_0 is clipped and the steps do not divide the schedule."""
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))
    config = SamplerConfig(steps=steps, spacing=spacing, eta=1)
    ours = trajectory(ddim, schedule, config, torch.float64)
    torch.testing.assert_close(ours, trajectory(ancestral, schedule, config, torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7, 200])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_ddim_with_the_exact_eps_of_one_point_returns_it(kind, steps, spacing):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))
    point = gaussian(0, torch.float64)
    config = SamplerConfig(steps=steps, spacing=spacing, clip=False)
    start = gaussian(1, torch.float64)
    x0 = ddim(lambda x_t, level: Denoised(point), schedule, start, config, no_noise)
    torch.testing.assert_close(x0, point, atol=1e-8, rtol=0)


def no_noise(i: int) -> torch.Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def gaussian_denoiser(schedule: DiscreteSchedule, mean: float, std: float) -> Any:
    """E[eps | x_t] where x_0 ~ N(mean, std^2)."""

    def eps_model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        signal, noise = schedule.alpha_bar(t[:1]).float(), schedule.one_minus_alpha_bar(t[:1]).float()
        return noise.sqrt() * (x_t - signal.sqrt() * mean) / (signal * std**2 + noise)

    return predicts_eps(eps_model)


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [
        ("linear", {"kind": "ancestral", "steps": 1000}),
        ("cosine", {"kind": "ancestral", "steps": 1000}),
        ("linear", {"kind": "ancestral", "steps": 250, "variance": "large"}),
        ("linear", {"kind": "ddim", "steps": 250}),
    ],
)
def test_with_the_optimal_denoiser_of_a_gaussian_samples_have_its_mean_and_std(kind, sampler):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(kind=kind))
    config = SamplerConfig.model_validate({**sampler, "clip": False})
    mean, std, n = 0.4, 0.3, 8_000
    rng = KeyedRNG(0, torch.arange(n // 80))
    samples = sample(gaussian_denoiser(schedule, mean, std), schedule, config, rng, (80,))
    assert samples.mean().item() == pytest.approx(mean, abs=4 * std / n**0.5 + 2e-3)
    assert samples.std().item() == pytest.approx(std, rel=4 / (2 * n) ** 0.5 + 1e-2)
    kurtosis = ((samples - mean) / std).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=4 * (96 / n) ** 0.5 + 0.1)


@pytest.mark.parametrize("sampler", [{"kind": "ancestral"}, {"kind": "ddim"}, {"kind": "ddim", "eta": 1}])
def test_a_sample_depends_on_its_seed_and_index_alone(sampler):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig())
    config = SamplerConfig.model_validate({**sampler, "steps": 5})

    def images(seed: int, indices: list[int]) -> torch.Tensor:
        return sample(predicts_eps(network), schedule, config, KeyedRNG(seed, torch.tensor(indices)), SHAPE[1:])

    together = images(0, [0, 1, 2, 3])
    assert together.dtype == torch.float32
    assert torch.equal(images(0, [2]), together[2:3])
    assert torch.equal(images(0, [3, 1]), together[[3, 1]])
    assert (images(1, [0, 1, 2, 3]) != together).any(dim=(1, 2, 3)).all()


def test_each_reverse_step_has_noise_of_its_own_and_the_last_has_none():
    schedule, asked = DiscreteSchedule.build(DiscreteScheduleConfig()), []

    def noise(i: int) -> torch.Tensor:
        asked.append(i)
        return torch.zeros(SHAPE)

    for sampler in (ancestral, ddim):
        sampler(predicts_eps(network), schedule, torch.zeros(SHAPE), SamplerConfig(steps=4, eta=1), noise)
    assert asked == [0, 1, 2] * 2


@pytest.mark.parametrize("kind", ["ancestral", "ddim"])
def test_clipped_samples_are_in_range_and_keep_no_graph(kind):
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig())
    weight = torch.ones((), requires_grad=True)
    config = SamplerConfig(kind=kind, steps=10)
    denoise = predicts_eps(lambda x_t, t: -5 * weight * x_t, clip=True)
    x0 = sample(denoise, schedule, config, KeyedRNG(0, torch.arange(3)), (8,))
    assert x0.abs().max() <= 1
    assert not x0.requires_grad


def test_a_half_precision_network_is_sampled_in_float32():
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig())
    for kind in ("ancestral", "ddim"):
        config = SamplerConfig(kind=kind, steps=3)
        denoise = predicts_eps(lambda x_t, t: x_t.bfloat16())
        x0 = sample(denoise, schedule, config, KeyedRNG(0, torch.arange(3)), (8,))
        assert x0.dtype == torch.float32


def test_more_steps_than_the_schedule_has_is_a_user_error():
    schedule = DiscreteSchedule.build(DiscreteScheduleConfig(steps=10))
    with pytest.raises(UserError, match="steps are 11"):
        sample(predicts_eps(network), schedule, SamplerConfig(steps=11), KeyedRNG(0, torch.arange(1)), (1,))


@pytest.mark.parametrize("bad", [{"kind": "leap"}, {"steps": 0}, {"eta": 1.5}, {"spacing": "even"}, {"guidance": 2}])
def test_a_sampler_that_makes_no_sense_is_refused(bad):
    with pytest.raises(ValidationError):
        SamplerConfig.model_validate(bad)
