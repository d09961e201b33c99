"""Classifier-free guidance (Ho & Salimans 2022), within an interval of noise levels (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.sampler_config import SamplerConfig
from diffpipe.errors import UserError

MAX_GUIDANCE = 1000.0  # papers stay below 20


class GuideConfig(Config):
    """The run that guides another one."""

    run: str
    """An earlier checkpoint of the run, or another run of the same data with a smaller network or a shorter training: a
    run directory, or one checkpoint in it."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the manifest.json of the guide's checkpoint; null: the newest one."""


class GuidedSamplerConfig(SamplerConfig):
    """How a trained stage generates and scores. It may change every time, and does not belong to the checkpoint."""

    renamed: ClassVar[dict[str, str]] = {"bound_steps": "vlb_steps"}

    guidance: float = Field(default=1.0, ge=0, le=MAX_GUIDANCE)
    """Classifier-free guidance (Ho & Salimans 2022): 1 samples P(X|Y), more exaggerates the label. Each step then costs
    two network evaluations."""
    guide: GuideConfig | None = None
    """Autoguidance (Karras et al. 2024b, arXiv:2406.02507): a worse version of the run guides it, by D_guide + guidance
    (D - D_guide) for the x_0 that both predict. It needs no labels. null: classifier-free guidance. A trained run's
    guide is opened only where you name it (--guide RUN)."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only where sigma/alpha lies between these two, such as [0.3, 5] (Kynkäänniemi et al. 2024). null: always.
    Outside, a step costs one evaluation."""
    vlb_steps: int | None = Field(default=None, ge=2)
    """Network evaluations per image for the variational bound on its likelihood. null: one at every timestep. Fewer
    give an unbiased estimate."""

    def guides(self, level: NoiseLevel) -> bool:
        """Whether guidance is used at this level, whose coefficients are numbers."""
        low, high = self.guidance_interval or (0.0, float("inf"))
        return self.guidance != 1 and low <= float(level.ratio) <= high

    @model_validator(mode="after")
    def _interval_ascends(self) -> GuidedSamplerConfig:
        if self.guidance_interval is not None and self.guidance_interval[0] >= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval {list(self.guidance_interval)} must ascend")
        return self


def check_guidance(sampler: GuidedSamplerConfig, *, conditional: bool, label_dropout: float) -> None:
    """Raises UserError where the network cannot be guided."""
    if sampler.guide is not None and sampler.guidance == 1:
        raise UserError(
            "stage.sampler.guide has no effect at guidance 1; set stage.sampler.guidance, such as 2 (--guidance 2), or "
            "leave the guide out (--guide none)"
        )
    if sampler.guide is None:
        check_label_guidance(sampler.guidance, conditional=conditional, label_dropout=label_dropout)


def check_label_guidance(guidance: float, *, conditional: bool, label_dropout: float) -> None:
    """Raises UserError where the labels cannot guide."""
    if guidance == 1:
        return
    if not conditional:
        raise UserError("stage.sampler.guidance needs labels to guide by; set stage.conditional=true and train with it")
    if label_dropout == 0:
        raise UserError(
            "stage.sampler.guidance needs a network that was trained without labels too; train with a "
            "stage.label_dropout above 0, such as 0.1"
        )


def check_interval(sampler: GuidedSamplerConfig, visited: Sequence[NoiseLevel]) -> None:
    """Raises UserError where guidance is asked for at none of the noise levels that the sampler visits."""
    if sampler.guidance == 1 or any(sampler.guides(level) for level in visited):
        return
    ratios = [float(level.ratio) for level in visited]
    raise UserError(
        f"stage.sampler.guidance_interval {list(sampler.guidance_interval or ())} holds none of the noise levels "
        f"sigma/alpha that are visited, {min(ratios):.3g} to {max(ratios):.3g}, so guidance would have no effect; give "
        f"an interval that holds some, such as [0.3, 5], or more steps"
    )


def predict(
    network: nn.Module,
    x: Float[Tensor, "b c h w"],
    t: Tensor,
    labels: Int[Tensor, " b"] | None,
    classes: int,
    guidance: float = 1.0,
) -> Float[Tensor, "b c2 h w"]:
    """The network's output, extrapolated from the one without label by the factor `guidance`.

    labels: None for P(X). classes: of a conditional network, whose label for none it is; else 0. Of a learned variance,
    the second half of the channels, the conditional one is taken.
    """
    if not classes:
        return network(x, t, None)
    empty = torch.full((len(x),), classes, device=x.device)
    if labels is None or guidance == 1:
        return network(x, t, empty if labels is None else labels)
    both = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, empty]))
    conditional, unconditional = both.float().chunk(2)
    c = x.shape[1]
    prediction = unconditional[:, :c] + guidance * (conditional[:, :c] - unconditional[:, :c])
    return torch.cat([prediction, conditional[:, c:]], dim=1)
