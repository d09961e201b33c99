"""The train section of a config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from diffpipe.config import Config
from diffpipe.train.parallel import Parallel
from diffpipe.train.runtime import Device, Precision


class TrainConfig(Config):
    """How long and on what a run trains."""

    steps: int = Field(ge=1)
    """Optimizer steps in all."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches a step on each rank: the same global batch in less memory."""
    precision: Precision = "auto"
    """What the networks compute in; auto is bf16 where the device has it natively, else fp32."""
    device: Device = "auto"
    parallel: Parallel = "auto"
    """ddp: a whole copy of the networks on each process. fsdp: parameters, gradients, optimizer state and averages are
    sharded over all processes; hsdp: within groups of `shard_size`. auto: fsdp where accelerate launch was told to
    shard, else ddp."""
    shard_size: int | None = Field(default=None, ge=1)
    """Processes that share a copy of the networks under hsdp; by default those of a node."""
    timeout: float = Field(default=300, gt=0)
    """Seconds that processes wait for one another before they give the job up."""
    activation_checkpointing: bool = False
    """Compute the activations within the networks' blocks anew in the backward pass: the same numbers from less memory
    in more time. Updates with gradient penalties keep theirs."""
    compile: bool = False
    """Compile the networks' blocks with torch.compile: the first steps take minutes, those after them less than before.
    Updates with gradient penalties run as they are."""
    log_every: int = Field(default=50, ge=1)
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do where a loss or a gradient is not finite on any rank. Its update changes no weight on any, and the
    samples are named at the next log step: there the run ends, or goes on if it is to skip."""
    max_skips: int = Field(default=10, ge=1)
    """How many updates a run may skip before it ends all the same."""
    record_samples: bool = False
    """Write the keys and positions of every step's samples to seen/."""
