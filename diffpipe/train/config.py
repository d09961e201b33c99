"""The train section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from diffpipe.config import Config
from diffpipe.config.kinds import Names
from diffpipe.train.parallel import Parallel
from diffpipe.train.runtime import Device, Precision
from diffpipe.train.tracker_kinds import KINDS


class TrainConfig(Config):
    """How long to train, and how to use the devices."""

    steps: int = Field(ge=1)
    """Optimizer steps in all, those before a resume included. With train.minutes it is the most that there can be."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes of training in all, after which the run ends, before train.steps. The learning rate decays to that end.
    Saving, sampling and scoring do not count. The time is looked at in log steps: see train.log_every. null: no
    limit."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches per step on each rank: the same global batch in less memory."""
    precision: Precision = "auto"
    """Precision of the networks' forward and backward pass; auto: bf16 where the device has it natively, else fp32.
    Parameters, optimizer state and averages are always fp32."""
    device: Device = "auto"
    """Device to train on; auto: CUDA where there is any, else the CPU."""
    tf32: bool = False
    """Let the training's float32 products use TF32 on NVIDIA GPUs: faster, with 10 mantissa bits instead of 23. false:
    they are IEEE float32, which is what train.precision=fp32 means. Gradient penalties, perceptual distances, flows,
    likelihoods, samples and scores are IEEE float32 in any case, where they are float32."""
    deterministic: bool = True
    """Compute with deterministic algorithms, as a resume with the same bits needs. false: faster on GPUs, where sums
    may then differ in their last bits from one run to the next."""
    parallel: Parallel = "auto"
    """ddp: a whole copy of the networks on each process. fsdp: parameters, gradients, optimizer state and averages are
    sharded over all processes. hsdp: they are sharded within groups of train.shard_size. auto: fsdp under
    launch/fsdp.yaml (or another accelerate config for FSDP), else ddp."""
    shard_size: int | None = Field(default=None, ge=1)
    """Processes that share one copy of the networks under hsdp; null: those of a node."""
    timeout: float = Field(default=300, gt=0, le=10**7)
    """Seconds that processes wait for one another before the job ends with an error."""
    activation_checkpointing: bool = False
    """Recompute the activations within the networks' blocks in the backward pass: the same numbers in less memory and
    more time. Updates with gradient penalties keep their activations."""
    compile: bool = False
    """Compile the networks' blocks with torch.compile: the first steps take minutes, later ones are faster. Updates
    with gradient penalties are not compiled."""
    log_every: int = Field(default=50, ge=1)
    """Steps between lines in metrics.jsonl. Only then does the host wait for the device."""
    non_finite: Literal["stop", "skip"] = "stop"
    """The response to a loss or gradient that is NaN or infinite on any rank. Its update changes no weight, and the
    next log step names its samples. stop: the run ends there. skip: it goes on."""
    max_skips: int = Field(default=10, ge=1)
    """Updates that a run with train.non_finite=skip may skip; one more ends it."""
    trackers: tuple[Annotated[str, Names("trackers", tuple(KINDS))], ...] = ("tensorboard",)
    """Where the values of metrics.jsonl, grids of samples and scores are sent, too: any of tensorboard, wandb, mlflow
    and trackio, or what plug-ins have; []: nowhere. The first needs the extra diffpipe[tensorboard], the other three
    diffpipe[trackers]."""
    record_samples: bool = False
    """Write the keys and positions of every step's samples to seen/ in the run directory."""

    def block_options(self, sharding: str | None) -> list[str]:
        """The options that work on the networks' blocks. sharding: `fsdp`, `hsdp`, or None for whole networks."""
        options = {
            "train.activation_checkpointing": self.activation_checkpointing,
            "train.compile": self.compile,
            f"train.parallel={sharding}": sharding is not None,
        }
        return [option for option, chosen in options.items() if chosen]
