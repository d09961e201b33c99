"""The config in a checkpoint, in the form of the current version."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from diffpipe.config import override, rename_keys, validate
from diffpipe.experiment.config import Experiment
from diffpipe.train.checkpoint import Checkpoint


def stored_config(checkpoint: Checkpoint, overrides: Sequence[str] = ()) -> Experiment:
    """The run's config as it was trained, with `key=value` overrides. Raises UserError."""
    tree = deepcopy(checkpoint.state.experiment)
    if checkpoint.format <= 1:
        tree = _from_format_1(tree)
    if checkpoint.format <= 2:
        tree = _from_format_2(tree)
    for word in overrides:
        override(Experiment, tree, word)
    return validate(Experiment, tree, str(checkpoint.path))


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
    return tree
