"""The stage of a run that trains, with what it needs in training alone."""

from __future__ import annotations

from diffpipe.experiment.config import Experiment
from diffpipe.experiment.feature_network import build_seeing
from diffpipe.experiment.run import Built, build_stage
from diffpipe.experiment.teacher import build_taught
from diffpipe.interfaces import ImageShape
from diffpipe.stages.adversarial import AdversarialConfig
from diffpipe.stages.vae import VAEConfig
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime


def build_for_training(
    experiment: Experiment, shape: ImageShape, runtime: Runtime, trained: Checkpoint | None
) -> Built:
    """As `build_stage`, with a teacher's weights or a feature network handed to the stage, and their hash pinned.

    A collective. Raises UserError.
    """
    stage = experiment.stage
    if isinstance(stage, AdversarialConfig) and stage.teacher is not None:
        return build_taught(experiment, shape, runtime, trained)
    if isinstance(stage, VAEConfig) and stage.perceptual is not None:
        return build_seeing(experiment, shape, runtime)
    return build_stage(experiment, shape, runtime, trained)
