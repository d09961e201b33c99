"""The whole config of a run, composed of its components' configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from diffpipe.config import Config
from diffpipe.config.kinds import Kinds, default_kind
from diffpipe.data.config import DataConfig
from diffpipe.data.remote.urls import is_remote
from diffpipe.files import user_path
from diffpipe.output import utf8
from diffpipe.stages.adversarial import AdversarialConfig
from diffpipe.stages.autoencoder import AutoencoderConfig
from diffpipe.stages.autoregressive import AutoregressiveConfig
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.stages.flow import FlowConfig
from diffpipe.stages.gan import GANConfig
from diffpipe.stages.vae import VAEConfig
from diffpipe.stages.vq import VQConfig
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig, PowerEMAConfig
from diffpipe.train.lora import LoRAConfig
from diffpipe.train.optimizer import OptimizerConfig


class RunConfig(Config):
    """Where a run lives."""

    renamed: ClassVar[dict[str, str]] = {"adopt": "allow_changes"}

    dir: str
    """The run directory, such as runs/photos. Training in a directory that holds checkpoints resumes from them."""
    init: str | None = None
    """The weights that a new run starts from: a run directory, one of its checkpoints, a diffusers folder, or a file of
    `diffpipe export`. The section init says which of them. A resume does not read them again."""
    project: str = Field(default="diffpipe", min_length=1)
    """The project of the run at its trackers (train.trackers); an experiment in MLflow's words."""
    name: str | None = Field(default=None, min_length=1)
    """The name of the run at its trackers; null: that of the run directory. A run that has begun keeps both."""
    allow_changes: tuple[str, ...] = ()
    """Keys or sections that a resume may change, such as [optimizer.lr]. A resume with any other change to the seed,
    the order of the data, the optimizer or the average is refused, and one of train.steps once the learning rate decays
    by it; a change to the model is always refused."""
    lock: bool = True
    """Lock the run directory against a second job. false: for file systems without locks, where you see to it yourself
    that only one job trains there at a time."""

    @field_validator("dir")
    @classmethod
    def _on_this_machine(cls, value: str) -> str:
        if is_remote(value):
            raise ValueError("it is a URL, and a run trains in a folder; give one on a disk of these machines")
        if utf8(value) != value:
            raise ValueError(
                f"its name is not UTF-8, and no checkpoint in it could be read: {utf8(value)}; give another"
            )
        return value

    @property
    def path(self) -> Path:
        return user_path(self.dir)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        """The snapshots of power-function averages (ema.kind=power)."""
        return self.path / "ema"

    @property
    def interrupted(self) -> Path:
        """A file that exists from the stop of a job by a signal, after its save, to the next job's start."""
        return self.path / ".interrupted"


class InitConfig(Config):
    """The weights that a new run takes from run.init. All else starts afresh: optimizer, average, place in the data."""

    weights: Literal["ema", "raw"] = "ema"
    """The averaged weights of a run or checkpoint, or the trained ones (raw)."""
    networks: tuple[str, ...] | None = None
    """Names of the networks to load, such as [denoiser]; null: all networks of the stage."""
    fresh: tuple[str, ...] = ()
    """Tensors or modules that are not loaded, such as [denoiser.label] for other classes."""
    strict: bool = True
    """Refuse weights that do not fit the networks. false: load those that fit; the others start fresh."""
    sha256: str | None = None
    """Hash of the checkpoint's manifest.json, or of the file of weights; null: whatever is there. A run stores it."""


class SampleConfig(Config):
    """Grids of samples during training, always of the same sample indices, so that they can be compared."""

    every: int = Field(default=0, ge=0)
    """Steps between grids of samples; 0: none."""
    n: int = Field(default=64, ge=1)
    """Images in a grid, of sample indices 0 to n - 1."""


class EvalConfig(Config):
    """Scores against `data.test` during training."""

    every: int = Field(default=0, ge=0)
    """Steps between scores; 0: none."""
    n: int = Field(default=1000, ge=2)
    """Generated images per score. Scores of different n cannot be compared."""
    metrics: tuple[str, ...] = ("fd_efficientnet_lite0", "kid_efficientnet_lite0")
    """Scores to compute. The default ones need no download; see `diffpipe eval --help` for all names."""
    reconstruction: int = Field(default=0, ge=0)
    """Images that are compared with their reconstructions after the last step, by a Fréchet distance (some seconds for
    1000). They are taken from data.test, else from data.train. The checkpoint holds the result. 0: none."""


class ValidateConfig(Config):
    """The stage's own losses, of the averaged networks, on images of `data.test`: always the same, with the same noise.

    They go into metrics.jsonl: validation_loss, and validation_… for what else the stage measures.
    """

    every: int = Field(default=0, ge=0)
    """Steps between validation losses, which are also computed after the last step; 0: none."""
    n: int = Field(default=1000, ge=1)
    """Images of data.test to average over."""


class Experiment(Config):
    """One experiment: `configs/<dataset>/<what>.yaml` holds it, and `config.yaml` in the run directory."""

    model_config = ConfigDict(serialize_by_alias=True)

    run: RunConfig
    """Where the run lives, and what a resume may change."""
    init: InitConfig = InitConfig()
    """Which weights a new run takes from run.init."""
    seed: int = Field(default=0, ge=0)
    """The one seed for everything: initial weights, order of the data, augmentation, timesteps, noise."""
    data: DataConfig
    """The shards, and how their samples become batches."""
    stage: Annotated[
        AdversarialConfig
        | AutoencoderConfig
        | AutoregressiveConfig
        | DDPMConfig
        | FlowConfig
        | GANConfig
        | VAEConfig
        | VQConfig,
        Field(discriminator="kind"),
        Kinds("stages"),
    ]
    """The model family: its networks, its loss, how it samples."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW or Muon, and its learning rate."""
    lora: LoRAConfig | None = None
    """Adapters that are trained in the place of the weights of run.init; null: none."""
    ema: Annotated[EMAConfig | PowerEMAConfig, Field(discriminator="kind"), default_kind("classical")] = EMAConfig()
    """The moving average of the weights, which samples and scores use."""
    train: TrainConfig
    """How long to train, and how to use the devices."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When to save, and what to keep."""
    sample: SampleConfig = SampleConfig()
    """Grids of samples during training."""
    # pydantic has `validate` for itself.
    validation: ValidateConfig = Field(default=ValidateConfig(), alias="validate")
    """Losses on held-out images during training."""
    eval: EvalConfig = EvalConfig()
    """Scores during training."""

    @model_validator(mode="after")
    def _init_and_lora_have_weights(self) -> Experiment:
        if self.run.init is None and self.init != InitConfig():
            raise ValueError("init says which weights a run takes from run.init, which is null; set run.init")
        if self.run.init is None and self.lora is not None:
            raise ValueError("lora trains adapters of the weights of run.init, which is null; set run.init")
        return self
