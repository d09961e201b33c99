"""The config in a checkpoint, in the form of the current version."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from diffpipe.config import override, rename_keys, validate
from diffpipe.experiment.config import Experiment
from diffpipe.nn.unet import UNetConfig
from diffpipe.stages.gan_losses import AdversarialLossConfig
from diffpipe.train.checkpoint import Checkpoint

_UNET_OF_FORMAT_2 = {"norm_eps": 1e-5, "frequency_shift": 0, "cos_first": False, "downsample_padding": "both"}
"""Keys of the UNet that format 2 lacks, and what its networks compute with."""


def stored_config(checkpoint: Checkpoint, overrides: Sequence[str] = ()) -> Experiment:
    """The run's config as it was trained, with `key=value` overrides. Raises UserError.

    The config alone is valid, so an error names the override and not the checkpoint.
    """
    tree = deepcopy(checkpoint.state.experiment)
    if checkpoint.format <= 1:
        tree = _from_format_1(tree)
    if checkpoint.format <= 2:
        tree = _from_format_2(tree)
    for word in overrides:
        override(Experiment, tree, word)
    return validate(Experiment, tree, None if overrides else str(checkpoint.path))


def with_stored_network(experiment: Experiment, checkpoint: Checkpoint) -> Experiment:
    """The experiment to resume, in which a UNet goes on computing what the checkpoint's weights were trained for.

    The default of some keys has changed since format 2. Where the experiment does not name such a key, it takes the
    checkpoint's value, which need not be today's default.
    """
    ours, stored = getattr(experiment.stage, "network", None), getattr(stored_config(checkpoint).stage, "network", None)
    if not isinstance(ours, UNetConfig) or not isinstance(stored, UNetConfig):
        return experiment
    unnamed = _UNET_OF_FORMAT_2.keys() - ours.model_fields_set
    network = ours.model_copy(update={key: getattr(stored, key) for key in unnamed})
    return experiment.model_copy(update={"stage": experiment.stage.model_copy(update={"network": network})})


def with_stored_correction(experiment: Experiment, checkpoint: Checkpoint) -> Experiment:
    """The experiment to resume, whose lazy penalties are corrected as they were before, unless it says how itself."""
    stage, stored = experiment.stage, stored_config(checkpoint).stage
    if not isinstance(stage, AdversarialLossConfig) or not isinstance(stored, AdversarialLossConfig):
        return experiment
    if "penalty_correction" in stage.model_fields_set:
        return experiment
    stage = stage.model_copy(update={"penalty_correction": stored.penalty_correction})
    return experiment.model_copy(update={"stage": stage})


def _from_format_1(tree: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had other names for some keys, and a word where `data.allow_changes` is a boolean."""
    tree = rename_keys(Experiment, tree)
    tree["data"]["allow_changes"] = tree["data"]["allow_changes"] == "adopt"
    factors = tree["optimizer"]["lr_factors"]
    if "unet" in factors:
        factors["denoiser"] = factors.pop("unet")
    return tree


def _from_format_2(tree: dict[str, Any]) -> dict[str, Any]:
    """Format 2 lacks keys whose defaults are others today: they have the values that its runs were trained with."""
    tree["data"]["order_version"] = 1
    stage = tree["stage"]
    if stage["kind"] in ("ddpm", "adversarial") and stage["network"].get("kind", "unet") == "unet":
        stage["network"] = _UNET_OF_FORMAT_2 | stage["network"]
    for schedule in (stage.get("schedule", {}), stage.get("levels", {})):
        for key in schedule.keys() & {"beta_start", "beta_end"}:  # they were not scaled by the number of timesteps
            schedule[key] *= schedule["steps"] / 1000
    if stage["kind"] in ("gan", "adversarial") and stage.get("penalty_every", 1) > 1:
        stage["penalty_correction"] = False
    return tree
