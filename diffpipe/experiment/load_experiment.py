"""The config that a training starts with."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from diffpipe.config import load_config
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.files import user_path
from diffpipe.run_folder import CHECKPOINTS, CONFIG, committed


def load_experiment(config: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read a config and lay `key=value` words over it. Raises UserError.

    Also where it is the config of a run whose run.dir leads elsewhere: the run was moved or copied, or run.dir is
    relative to another directory. The training would leave this run as it is, and begin another one.
    """
    experiment = load_config(Experiment, config, overrides)
    path = user_path(config)
    run = path.parent
    if path.name != CONFIG or any(word.startswith("run.dir=") for word in overrides) or not _has_checkpoints(run):
        return experiment
    if os.path.realpath(experiment.run.path) != os.path.realpath(run):
        word = shlex.quote(f"run.dir={run}")
        raise UserError(
            f"{path}: the config of the run in {run}, and its run.dir={experiment.run.dir} leads elsewhere from "
            f"here; give {word} to continue this run, or another run.dir to train a new one"
        )
    return experiment


def _has_checkpoints(run: Path) -> bool:
    try:
        return bool(committed(run / CHECKPOINTS))
    except OSError:  # its resume says why it cannot be read
        return False
