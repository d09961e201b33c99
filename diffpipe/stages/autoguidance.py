"""Autoguidance: a diffusion guided by a worse version of itself (Karras et al. 2024b, arXiv:2406.02507)."""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from diffpipe.dependency import TrainedStage
from diffpipe.diffusion.denoiser import Denoise, Denoised
from diffpipe.diffusion.process import NoiseLevel
from diffpipe.diffusion.schedule import Schedule
from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.stages.guidance import GuideConfig


def autoguided(main: Denoise, stage: Any, guide: TrainedStage, labels: Int[Tensor, " b"] | None) -> Denoise:
    """D_guide + w (D_main - D_guide), for the x_0 that both predict (Karras et al. 2024b, eq. 3).

    stage: the DDPM whose denoiser `main` is, before x_0 is clipped. The guide may have another target and other noise
    levels. For latents it has the same codec and data, and so the same scale of them up to the error of measuring it.
    """
    sampler, theirs = stage.config.sampler, guide.stage
    worse = theirs.unbounded(guide.nets, labels, guide=False)  # pyright: ignore - `guide_problem` asks for a DDPM
    same_levels = stage.config.schedule == guide.config.schedule
    schedule = theirs.schedule.on("cpu")  # pyright: ignore

    def denoise(x: Float[Tensor, " b *shape"], level: NoiseLevel) -> Denoised:
        denoised = main(x, level)
        if not sampler.guides(level):
            return denoised
        at = level if same_levels else matching_level(schedule, level)
        x0 = worse(at.sigma / level.sigma * x, at).x0
        return Denoised(x0 + sampler.guidance * (denoised.x0 - x0), denoised.variance_share)

    return denoise


def matching_level(schedule: Schedule, level: NoiseLevel) -> NoiseLevel:
    """The level of `schedule` at the same sigma / alpha: there x_t is the same but for a factor.

    Pure noise is that which sampling starts from in `schedule`.
    """
    ratio = float(level.ratio)
    return schedule.levels(1)[0] if math.isinf(ratio) else schedule.at_ratio(ratio)


def guide_problem(guide: TrainedStage, stage: Any) -> str | None:
    """The reason why this run cannot guide a DDPM, or None."""
    if guide.config.kind != "ddpm":
        return f"{guide.path} is a run of stage.kind={guide.config.kind}; give one of stage.kind=ddpm"
    other: Any = guide.stage
    remedy = "give an earlier checkpoint of this run, or a smaller run of the same data"
    codecs = [getattr(config.codec, "sha256", None) for config in (stage.config, guide.config)]
    if codecs[0] != codecs[1]:
        names = ["pixels" if sha256 is None else f"latents of the VAE with sha256 {sha256}" for sha256 in codecs]
        return f"{guide.path} diffuses {names[1]}, and this run {names[0]}; {remedy}"
    (c, h, w), (c2, h2, w2) = stage.code_shape, other.code_shape
    if (stage.code_shape, stage.classes) != (other.code_shape, other.classes):
        return (
            f"{guide.path} was trained on {c2} × {h2} × {w2} in {plural(other.classes, 'class', 'classes')}, and this "
            f"run on {c} × {h} × {w} in {stage.classes}; {remedy}"
        )
    return None


def unopened_guide(guide: GuideConfig) -> UserError:
    """The error where a trained run's config names a guide, and the user does not."""
    return UserError(
        f"stage.sampler.guide.run is {guide.run}, which only the run's own config names; give the guide yourself "
        f"(--guide {guide.run}), or none (--guide none --guidance 1)"
    )
