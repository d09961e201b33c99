"""Autoguidance: the extrapolation in x_0 between runs with other targets and noise levels, and what cannot guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diffpipe.dependency import TrainedStage
from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoguidance import matching_level, unopened_guide
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.stages.guidance import GuideConfig

UNET = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}
SHAPE = ImageShape(channels=1, resolution=square(8))
GUIDED = {"guidance": 3.0, "guide": {"run": "x"}, "clip": False, "steps": 6}
PROCESSES = {
    "eps": {},
    "v, cosine, 500 timesteps": {"prediction": "v", "schedule": {"kind": "cosine", "steps": 500}},
    "edm": {"prediction": "edm"},
    "flow": {"prediction": "flow"},
    "x0, zero terminal SNR": {"prediction": "x0", "schedule": {"kind": "linear", "zero_terminal_snr": True}},
}


def config(**changes: Any) -> DDPMConfig:
    return DDPMConfig.model_validate({"kind": "ddpm", "network": UNET, **changes})


class GaussianNetwork(nn.Module):
    """The exact network for data N(mean, std^2), whatever it is asked to predict: it finds the level by its time."""

    def __init__(self, stage: Any, mean: float, std: float):
        super().__init__()
        self.stage, self.mean, self.std = stage, mean, std

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        level = self._level(t[0].item())
        parameterization = self.stage.parameterization
        x = x / parameterization.input_scale(level)
        gain = level.alpha * self.std**2 / (level.alpha**2 * self.std**2 + level.sigma**2)
        x0 = self.mean + gain * (x - level.alpha * self.mean)
        return parameterization.target(level, x0, (x - level.alpha * x0) / level.sigma)

    def _level(self, time: float) -> NoiseLevel:
        schedule = self.stage.config.schedule
        if schedule.kind == "edm":
            sigma = torch.tensor(4 * time).exp().item()
            return NoiseLevel(1.0, sigma, time)
        if schedule.kind == "flow":
            return NoiseLevel(1 - time / 1000, time / 1000, time)
        table = self.stage.schedule.on("cpu")
        below, logs = int(time), table._log_ratios
        if time == below:
            return NoiseLevel(*(column.item() for column in table.level(torch.tensor([below]))))
        return table.at_ratio((logs[below] + (time - below) * (logs[below + 1] - logs[below])).exp().item())


def gaussian(mean: float, std: float, **changes: Any) -> TrainedStage:
    stage = config(**changes).build(SHAPE)
    return TrainedStage(
        Path("guide"), stage.config, SHAPE, stage, {"denoiser": GaussianNetwork(stage, mean, std)}, None
    )


@pytest.mark.parametrize("of_guide", PROCESSES)
@pytest.mark.parametrize("of_main", ["eps", "edm", "flow"])
def test_guidance_is_the_extrapolation_in_x_0_whatever_the_two_predict(of_main: str, of_guide: str) -> None:
    # Both denoisers are known: data of mean 0.2 and std 0.3, and the guide's of mean 0 and std 0.5.
    guide = gaussian(0.0, 0.5, **PROCESSES[of_guide])
    main = config(**PROCESSES[of_main], sampler=GUIDED).build(SHAPE, {"guide": guide})
    nets: dict[str, nn.Module] = {"denoiser": GaussianNetwork(main, 0.2, 0.3)}
    schedule, x = main.schedule.on("cpu"), torch.linspace(-2, 2, 64).reshape(1, 1, 8, 8)
    for level in schedule.levels(6)[1:]:
        x_t = x * (level.alpha**2 + level.sigma**2) ** 0.5
        ratio2 = float(level.ratio) ** 2

        def optimum(mean: float, std: float, y: torch.Tensor, r2: float = ratio2) -> torch.Tensor:
            return mean + std**2 / (std**2 + r2) * (y - mean)

        ours, theirs = optimum(0.2, 0.3, x_t / level.alpha), optimum(0.0, 0.5, x_t / level.alpha)
        found = main.denoise(nets, None)(x_t, level).x0
        torch.testing.assert_close(found, theirs + 3 * (ours - theirs), rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(main.denoise(nets, None, guide=False)(x_t, level).x0, ours, rtol=1e-3, atol=1e-3)


def test_a_run_that_guides_itself_samples_as_without_and_a_guidance_of_0_is_the_guide() -> None:
    plain = config(sampler={"steps": 4, "clip": False}).build(SHAPE)
    better, worse = (GaussianNetwork(plain, *of) for of in ((0.2, 0.3), (0.0, 0.5)))
    rng = KeyedRNG(1, torch.arange(3))

    def images(guidance: float, guide: nn.Module) -> torch.Tensor:
        trained = TrainedStage(Path("guide"), plain.config, SHAPE, plain, {"denoiser": guide}, None)
        sampler = {"steps": 4, "clip": False, "guidance": guidance, "guide": {"run": "x"}}
        return config(sampler=sampler).build(SHAPE, {"guide": trained}).generate({"denoiser": better}, rng, None)

    assert (images(2.0, better).int() - plain.generate({"denoiser": better}, rng, None).int()).abs().max() <= 1
    assert torch.equal(images(0.0, worse), plain.generate({"denoiser": worse}, rng, None))
    assert not torch.equal(images(2.0, worse), images(0.0, worse))


def test_the_evaluations_of_the_guide_count_and_only_within_the_interval() -> None:
    guide = gaussian(0.0, 0.5)
    stage = config(sampler={**GUIDED, "kind": "ddim"}).build(SHAPE, {"guide": guide})
    assert stage.evaluations() == 12
    assert list(stage.generating) == ["denoiser", "guide.denoiser"]
    assert list(stage.borrowed_networks()) == ["guide.denoiser"]
    sampler = {**GUIDED, "kind": "ddim", "guidance_interval": [0.3, 5]}
    levels = stage.schedule.on("cpu").levels(6)
    within = sum(0.3 <= level.ratio <= 5 for level in levels)
    assert 0 < within < 6
    assert config(sampler=sampler).build(SHAPE, {"guide": guide}).evaluations() == 6 + within


@pytest.mark.parametrize(
    "schedule", [DiscreteScheduleConfig(), EDMScheduleConfig(kind="edm"), FlowScheduleConfig(kind="flow")]
)
def test_pure_noise_is_the_guides_own_start(schedule: Any) -> None:
    built = schedule.build()
    level = matching_level(built, NoiseLevel(0.0, 1.0, 1000.0))
    assert level == built.levels(1)[0]
    assert matching_level(built, NoiseLevel(1.0, 2.0, 0.1)).ratio == pytest.approx(2.0)


def test_a_run_of_other_images_or_of_another_kind_cannot_guide() -> None:
    other = config().build(ImageShape(1, square(16)))
    trained = TrainedStage(Path("guide"), other.config, ImageShape(1, square(16)), other, {}, None)
    with pytest.raises(UserError, match=r"^stage\.sampler\.guide\.run: guide was trained on 1 × 16 × 16 in 0 classes"):
        config(sampler=GUIDED).build(SHAPE, {"guide": trained})
    labelled = ImageShape(1, square(8), 4)
    other = config(conditional=True).build(labelled)
    trained = TrainedStage(Path("guide"), other.config, labelled, other, {}, None)
    with pytest.raises(UserError, match=r"in 4 classes, and this run on 1 × 8 × 8 in 0; give an earlier checkpoint"):
        config(sampler=GUIDED).build(SHAPE, {"guide": trained})


def test_a_guide_that_nobody_named_is_not_opened_and_the_images_are_refused() -> None:
    stage = config(sampler=GUIDED).build(SHAPE)
    with pytest.raises(UserError, match=r"only the run's own config names; .*--guide x\), or none \(--guide none"):
        stage.generate({"denoiser": GaussianNetwork(stage, 0, 1)}, KeyedRNG(0, torch.arange(1)), None)
    assert "--guide runs/x" in str(unopened_guide(GuideConfig(run="runs/x")))


def test_a_guide_without_guidance_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.sampler\.guide has no effect at guidance 1; .*--guidance 2"):
        config(sampler={"guide": {"run": "x"}}).build(SHAPE)
