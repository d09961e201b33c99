"""What a stage needs in training alone: the feature network of its perceptual loss."""

from __future__ import annotations

from diffpipe.cli.experiment import Experiment
from diffpipe.cli.runs import build_stage
from diffpipe.cli.teacher import build_taught
from diffpipe.config import validate
from diffpipe.contract import ImageShape, Stage, UserError
from diffpipe.metrics.perceptual import build_feature_maps
from diffpipe.stages.adversarial import AdversarialConfig
from diffpipe.stages.vae import VAEConfig
from diffpipe.train.checkpoint import Checkpoint
from diffpipe.train.runtime import Runtime


def build_for_training(
    experiment: Experiment, shape: ImageShape, runtime: Runtime, trained: Checkpoint | None
) -> tuple[Experiment, Stage]:
    """As `build_stage`, with the feature network handed to the stage and its hash pinned in the experiment.

    A collective. Raises UserError.
    """
    stage = experiment.stage
    if isinstance(stage, AdversarialConfig) and stage.teacher is not None:
        return build_taught(experiment, shape, runtime, trained)
    if not isinstance(stage, VAEConfig) or stage.perceptual is None:
        return build_stage(experiment, shape, runtime, trained)
    wanted, name = stage.perceptual, stage.perceptual.features

    def build() -> tuple[str, Stage]:
        try:
            network, sha256 = build_feature_maps(name, shape.resolution, device=runtime.device)
        except UserError as error:
            raise UserError(f"stage.perceptual.features: {error}") from error
        if wanted.sha256 not in (None, sha256):
            raise UserError(
                f"stage.perceptual.sha256 is {wanted.sha256}, and {name} has {sha256}; bring that network back, or "
                f"leave the hash out to begin with this one"
            )
        return sha256, stage.build(shape, network)

    sha256, built = runtime.together(build)
    tree = experiment.model_dump(mode="json")
    tree["stage"]["perceptual"]["sha256"] = sha256
    return validate(Experiment, tree, source=experiment.run.dir), built
