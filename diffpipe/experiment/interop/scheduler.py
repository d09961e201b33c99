"""The scheduler of a diffusers folder and our schedule, prediction and sampler, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from diffpipe.config import Config, validate
from diffpipe.diffusion.schedule import DiscreteSchedule, DiscreteScheduleConfig
from diffpipe.errors import UserError
from diffpipe.nn.levels import Positive
from diffpipe.plural import plural
from diffpipe.stages.ddpm_config import DDPMConfig

Scheduler = Literal["DDPMScheduler", "DDIMScheduler"]
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_KINDS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_SPACINGS = ("trailing", "leading", "linspace")
_SAME_BETAS = 1e-5  # relative; theirs are float32
_NO_MAXIMUM = 1e6  # of dynamic thresholding: ours has none


class SchedulerConfig(Config):
    """The keys of a scheduler_config.json, with what they mean where they are left out (diffusers 0.42)."""

    num_train_timesteps: Positive = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    variance_type: Literal[
        "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"
    ] = "fixed_small"
    clip_sample: bool = True
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    clip_sample_range: float = 1.0
    sample_max_value: float = 1.0
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    predict_epsilon: bool = True
    """Before version 0.10, in the place of prediction_type."""
    tensor_format: str = "pt"
    """Before version 0.4."""


def to_scheduler(stage: DDPMConfig, *, learned_variance: bool) -> tuple[Scheduler, dict[str, Any]]:
    """The scheduler's class and its config. Raises UserError where diffusers has none for the stage.

    learned_variance: whether the pipeline gives it the learned variance. Otherwise such a stage has a DDIMScheduler,
    which needs none.
    """
    schedule, sampler = stage.schedule, stage.sampler
    if not isinstance(schedule, DiscreteScheduleConfig):
        raise UserError(
            f"stage.schedule.kind is {schedule.kind}, and the diffusers pipelines for this network have schedules "
            f"with timesteps alone; export --to safetensors"
        )
    ancestral = sampler.kind == "ancestral" and learned_variance >= stage.learned_variance
    name: Scheduler = "DDPMScheduler" if ancestral else "DDIMScheduler"
    config = {
        "num_train_timesteps": schedule.steps,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[stage.prediction],
        "clip_sample": sampler.clip,
        "timestep_spacing": sampler.spacing if sampler.spacing in _SPACINGS else "trailing",
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        **_betas(schedule),
    }
    if sampler.dynamic_threshold is not None:
        config["thresholding"], config["dynamic_thresholding_ratio"] = True, sampler.dynamic_threshold
        config["sample_max_value"] = _NO_MAXIMUM
    if name == "DDIMScheduler":
        config["set_alpha_to_one"] = True
    else:
        fixed = "fixed_large" if sampler.variance == "large" else "fixed_small"
        config["variance_type"] = "learned_range" if stage.learned_variance else fixed
    unused = {"predict_epsilon", "tensor_format", "variance_type", "set_alpha_to_one"} - config.keys()
    return name, SchedulerConfig(**config).model_dump(mode="json", exclude=unused)


def _betas(schedule: DiscreteScheduleConfig) -> dict[str, Any]:
    kinds = {ours: theirs for theirs, ours in _KINDS.items()}
    if schedule.kind not in kinds:  # a table, to which the rescaling is applied, too
        table = DiscreteSchedule.build(schedule.model_copy(update={"zero_terminal_snr": False})).betas
        return {"trained_betas": tuple(table.tolist())}
    start, end = (float(f"{beta:.12g}") for beta in schedule.betas)  # without the last bits of its scaling
    ends = {} if schedule.kind == "cosine" else {"beta_start": start, "beta_end": end}
    return {"beta_schedule": kinds[schedule.kind], **ends}


def from_scheduler(name: Scheduler, tree: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Keys of our stage section, and sentences on what its sampler does otherwise.

    Raises UserError, which begins with `where`, for a scheduler that no section of ours is equal to.
    """
    known = SchedulerConfig.model_fields
    named = {key: value for key, value in tree.items() if not key.startswith("_")}
    named = {key: value for key, value in named.items() if value is not None or key in known}
    config = validate(SchedulerConfig, named, where)
    prediction = config.prediction_type if config.predict_epsilon else "sample"
    learned = config.variance_type in ("learned", "learned_range")
    if config.variance_type == "learned":
        raise UserError(f"{where}: variance_type is learned; diffpipe knows learned_range (Nichol & Dhariwal 2021)")
    sampler: dict[str, Any] = {
        "kind": "ancestral" if name == "DDPMScheduler" else "ddim",
        "steps": min(config.num_train_timesteps, 1000 if name == "DDPMScheduler" else 50),  # as their pipelines
        "spacing": config.timestep_spacing,
        "clip": config.clip_sample or config.thresholding,
        "variance": "large" if config.variance_type.startswith("fixed_large") else "small",
    }
    if config.thresholding and config.sample_max_value > 1:
        sampler["dynamic_threshold"] = config.dynamic_thresholding_ratio
    section = {
        "prediction": PREDICTIONS[prediction],
        "schedule": _schedule(config, where),
        "learned_variance": learned,
        "sampler": sampler,
    }
    return section, [f"{where}: {what}" for what in _ignored(config)]


def _schedule(config: SchedulerConfig, where: str) -> dict[str, Any]:
    snr = {"zero_terminal_snr": True} if config.rescale_betas_zero_snr else {}
    if config.trained_betas is not None:
        return {**_of_table(config.trained_betas, where), **snr}
    kind, T = _KINDS[config.beta_schedule], config.num_train_timesteps  # noqa: N806
    ends = {} if kind == "cosine" else _ends(config.beta_start, config.beta_end, T)
    return {"kind": kind, "steps": T, **ends, **snr}


def _ends(first: float, last: float, T: int) -> dict[str, float]:  # noqa: N803 - the field's name for it
    """Our keys for the first and the last of T betas: as they are with 1000 timesteps."""
    return {"beta_start": first * T / 1000, "beta_end": last * T / 1000}


def _of_table(betas: tuple[float, ...], where: str) -> dict[str, Any]:
    """The schedule that has these betas. Raises UserError where there is none."""
    if len(betas) < 2:
        raise UserError(f"{where}: trained_betas has {plural(len(betas), 'beta')}, and a schedule has 2 or more")
    table = torch.tensor(betas, dtype=torch.float64)
    for kind in ("sigmoid", "cosine", "linear", "scaled_linear"):
        ends = _ends(betas[0], betas[-1], len(betas)) if "linear" in kind else {}
        tree = {"kind": kind, "steps": len(betas), **ends}
        try:
            ours = DiscreteSchedule.build(DiscreteScheduleConfig.model_validate(tree)).betas
        except ValueError:
            continue
        if torch.allclose(ours, table, rtol=_SAME_BETAS, atol=1e-9):
            return tree
    raise UserError(f"{where}: trained_betas are of none of the schedules that diffpipe has (stage.schedule.kind)")


def _ignored(config: SchedulerConfig) -> list[str]:
    """Sentences on the differences between this config and our samplers."""
    clips = config.clip_sample and not config.thresholding and config.clip_sample_range != 1
    return [
        sentence
        for applies, sentence in (
            (config.steps_offset != 0, f"steps_offset {config.steps_offset} is left out: sampling visits no offset"),
            (not config.set_alpha_to_one, "set_alpha_to_one=false is left out: the last step leads to x_0"),
            (clips, f"clip_sample_range {config.clip_sample_range} is left out: x_0 is clipped to [-1, 1]"),
        )
        if applies
    ]
