"""Processes, devices and precision: the only module that talks to accelerate.

The same command runs alone, under `accelerate launch` and under torchrun, on CPUs (gloo) and on GPUs (NCCL).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor, nn
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from diffpipe.errors import LostPeerError, RankError, UserError
from diffpipe.train.distributed import Communicator

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """One process of a job: who it is, where it computes, in which precision, and how it talks to the others.

    dtype: what autocast computes in; float32 means no autocast. Parameters, averages and optimizer state stay float32.
    timeout: how long a collective waits for a process before it gives the job up. launched_for_fsdp: whether accelerate
    launch was told to shard.
    """

    accelerator: Accelerator
    dtype: torch.dtype
    timeout: timedelta = timedelta(minutes=10)
    launched_for_fsdp: bool = False

    @classmethod
    def start(
        cls,
        precision: Precision = "auto",
        device: Device = "auto",
        log_dir: str | Path | None = None,
        timeout: float = 600,
    ) -> Runtime:
        """Join the job that the launcher described in the environment (or be one process alone).

        timeout: in seconds. log_dir: where trackers write.

        Raises UserError for a device that the machine does not have, or an FSDP that is not ours.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError("train.device is cuda, and torch sees no CUDA device here; set train.device=cpu or auto")
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        _be_deterministic()
        limit = timedelta(seconds=timeout)
        launched_for_fsdp = _launched_for_fsdp()
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # autocast is entered in `autocast` below: accelerate's patches the module's forward
            log_with="tensorboard" if log_dir else None,
            project_config=ProjectConfiguration(project_dir=str(log_dir), logging_dir=str(log_dir))
            if log_dir
            else None,
            kwargs_handlers=[InitProcessGroupKwargs(init_method="attempt://", timeout=limit)],
        )
        return cls(accelerator, _DTYPES[resolve_precision(precision, accelerator.device)], limit, launched_for_fsdp)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        device = self.accelerator.device
        # accelerate numbers the CPU (cpu:0), a name that torch.load does not know.
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last, but for bf16 on CPUs, where torch's GroupNorm costs more in it than the convolutions gain."""
        slow = self.device.type == "cpu" and self.dtype == torch.bfloat16
        return torch.contiguous_format if slow else torch.channels_last

    def place(self, module: M) -> M:
        """The module on this process's device, in its memory format."""
        return module.to(device=self.device, memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module under DistributedDataParallel where there is more than one process."""
        return self.accelerator.prepare_model(module)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def team(self) -> Communicator:
        """The job's processes, over the default group."""
        return Communicator(self.rank, self.world)

    def new_group(self) -> Communicator:
        """The same processes over a gloo group of their own, for a thread beside training. A collective."""
        group = dist.new_group(backend="gloo", timeout=self.timeout) if self.world > 1 else None
        return Communicator(self.rank, self.world, group)  # pyright: ignore[reportArgumentType] (all ranks are in it)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank. A collective: all ranks must call it."""
        return self.team.gather(value)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, on every rank. A collective."""
        return self.accelerator.reduce(value, reduction="sum") if self.world > 1 else value  # pyright: ignore[reportReturnType]

    def barrier(self) -> None:
        self.team.barrier()

    def raise_on_all_ranks(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank; where it raises a UserError on any, raise the first one's on all."""
        return self.team.raise_on_all_ranks(action)

    def start_tracking(self, config: Mapping[str, Any]) -> None:
        self.accelerator.init_trackers("tensorboard", config=dict(config))

    def track(self, values: Mapping[str, Any], step: int) -> None:
        self.accelerator.log(dict(values), step=step)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the trackers and leave the process group, unless this rank alone has failed.

        A UserError is raised on all ranks together. After anything else the others wait in a collective, and to leave
        in good order would mean to wait for them: the launcher ends them when it sees this process die.
        """
        if kind is None or (issubclass(kind, UserError) and not issubclass(kind, RankError)):
            self.accelerator.end_training()
            if dist.is_initialized():
                dist.destroy_process_group()


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """`auto` is bf16 where the device computes in it natively, else fp32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


# By these words in its message a failed collective is told from other errors: gloo's and NCCL's have no type in common.
_LOST = ("connection closed by peer", "connection reset by peer", "timed out waiting", "broken pipe", "socket timeout")
_LOST += ("nccl communicator was aborted", "watchdog", "remote process exited", "unhandled system error")


@contextmanager
def lost_peer_errors() -> Iterator[None]:
    """Around work with the other processes: raises LostPeerError where one of them is gone or stuck."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and any(words in str(error).lower() for words in _LOST):
            reason = str(error).strip().splitlines()[0][:200]
            raise LostPeerError(
                f"rank {dist.get_rank()} has lost another process of the job, which has died or hangs ({reason}); "
                f"nothing was saved; the same command goes on from the last checkpoint"
            ) from error
        raise


# What accelerate launch passes on and is not done here: its value where nobody asked for it, and what to ask instead.
_NOT_OURS = {
    "ACCELERATE_MIXED_PRECISION": ("no", "train.precision"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "train.compile=true"),
    "ACCELERATE_USE_DEEPSPEED": ("false", "train.parallel=fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "train.parallel=fsdp"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "train.parallel=hsdp"),
}
_NOT_OUR_FSDP = {
    "FSDP_VERSION": ("2", "--fsdp_version 2"),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "train.parallel=hsdp"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "the default"),
    "FSDP_OFFLOAD_PARAMS": ("false", "train.activation_checkpointing=true"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "train.activation_checkpointing=true"),
}


def _launched_for_fsdp() -> bool:
    """Whether accelerate launch was told to shard: we do it ourselves, for accelerate shards one network, and no CPU's.

    Raises UserError where it was told what we do not do.
    """
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    for name, (default, ours) in (_NOT_OURS | (_NOT_OUR_FSDP if fsdp else {})).items():
        value = os.environ.get(name, default)
        if value.lower() != default:
            raise UserError(
                f"accelerate launch was told something that diffpipe does not do ({name}={value}); leave it out, and "
                f"use {ours} instead"
            )
    return fsdp


def _attempt(_: str, timeout: timedelta, **__: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """torch's env://, apart from what was left in the launcher's store before it restarted the processes.

    The store outlives them, with the addresses at which they could be reached: who reads one waits for the dead.
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if shared else "0"
    yield dist.PrefixStore(f"attempt {attempt}", store), rank, world


register_rendezvous_handler("attempt", _attempt)


def _be_deterministic() -> None:
    """The same inputs give the same bits: an exact resume needs it, and it costs little where nothing is atomic."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = False
