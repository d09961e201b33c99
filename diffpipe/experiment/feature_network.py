"""Train a VAE by how its reconstructions look to a feature network."""

from __future__ import annotations

from diffpipe.config import validate
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import Built
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.metrics.perceptual import build_feature_maps
from diffpipe.stages.vae import VAEConfig
from diffpipe.train.runtime import Runtime


def build_seeing(experiment: Experiment, shape: ImageShape, runtime: Runtime) -> Built:
    """As `build_stage`, with the feature network handed to the stage and its hash pinned in the experiment.

    A collective. Raises UserError.
    """
    stage = experiment.stage
    assert isinstance(stage, VAEConfig)
    assert stage.perceptual is not None
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

    sha256, built = runtime.comm.raise_on_all_ranks(build)
    tree = experiment.model_dump(mode="json")
    tree["stage"]["perceptual"]["sha256"] = sha256
    return Built(validate(Experiment, tree, source=experiment.run.dir), built)
