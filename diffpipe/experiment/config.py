"""The whole config of a run: the components' own configs, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from diffpipe.config import Config
from diffpipe.data.config import DataConfig
from diffpipe.stages.adversarial import AdversarialConfig
from diffpipe.stages.autoencoder import AutoencoderConfig
from diffpipe.stages.ddpm import DDPMConfig
from diffpipe.stages.flow import FlowConfig
from diffpipe.stages.gan import GANConfig
from diffpipe.stages.vae import VAEConfig
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.optimizer import OptimizerConfig


class RunConfig(Config):
    """Where a run lives."""

    renamed: ClassVar[dict[str, str]] = {"adopt": "allow_changes"}

    dir: str
    """The run directory; the same directory again means: resume."""
    allow_changes: tuple[str, ...] = ()
    """Keys of this config, such as optimizer.lr, that a resume may change. Any other change of what the run is refuses
    it, and that of its model always does."""

    @property
    def path(self) -> Path:
        return Path(self.dir)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def interrupted(self) -> Path:
        """There after a job was asked to stop and had saved, until the next one goes on."""
        return self.path / ".interrupted"


class SampleConfig(Config):
    """Grids of samples during training, always of the same sample indices, so that they can be compared."""

    every: int = Field(default=0, ge=0)
    """Steps between grids; 0 draws none."""
    n: int = Field(default=64, ge=1)


class EvalConfig(Config):
    """Scores against `data.test` during training."""

    every: int = Field(default=0, ge=0)
    """Steps between scores; 0 computes none."""
    n: int = Field(default=1000, ge=2)
    metrics: tuple[str, ...] = ("fd_efficientnet_lite0", "kid_efficientnet_lite0")
    reconstruction: int = Field(default=0, ge=0)
    """Images that are compared with their reconstructions after the last step, for the checkpoint to say what an
    autoencoder loses (a Fréchet distance, some seconds for 1000): of data.test where there is one. 0 is none."""


class ValidateConfig(Config):
    """The stage's own losses, of the averaged networks, on images of `data.test`: always the same, with the same noise.

    They go into metrics.jsonl: validation_loss, and validation_… for what else the stage measures.
    """

    every: int = Field(default=0, ge=0)
    """Steps between them, and after the last one; 0 computes none."""
    n: int = Field(default=1000, ge=1)


class Experiment(Config):
    """One experiment: `configs/<dataset>/<what>.yaml` holds it, and `config.yaml` in the run directory."""

    model_config = ConfigDict(serialize_by_alias=True)

    run: RunConfig
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    stage: Annotated[
        AdversarialConfig | AutoencoderConfig | DDPMConfig | FlowConfig | GANConfig | VAEConfig,
        Field(discriminator="kind"),
    ]
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EMAConfig = EMAConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    sample: SampleConfig = SampleConfig()
    validation: ValidateConfig = Field(default=ValidateConfig(), alias="validate")
    """`validate`, a name that pydantic has for itself."""
    eval: EvalConfig = EvalConfig()
