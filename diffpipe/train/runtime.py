"""The device, the precision and the trackers of one process: the only module that imports accelerate.

The same command runs alone, under `accelerate launch` and under torchrun, on CPUs (gloo) and on GPUs (NCCL).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import nn

from diffpipe import plugins
from diffpipe.errors import RankError, UserError
from diffpipe.interfaces import Batch
from diffpipe.precision import float32_products, set_float32_products
from diffpipe.process import raise_file_limit
from diffpipe.train.distributed import Communicator
from diffpipe.train.launcher import launched_for_fsdp
from diffpipe.train.rendezvous import init_method
from diffpipe.train.trackers import Trackers, require_installed

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
M = TypeVar("M", bound=nn.Module)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """One process of a job: its device, its precision, its trackers, and the communicator to the other processes.

    dtype: what autocast computes in; float32 means no autocast. Parameters, averages and optimizer state stay float32.
    launched_for_fsdp: whether accelerate launch was started with FSDP.
    """

    accelerator: Accelerator
    dtype: torch.dtype
    comm: Communicator
    trackers: Trackers
    launched_for_fsdp: bool = False

    @classmethod
    def start(
        cls,
        precision: Precision = "auto",
        device: Device = "auto",
        log_dir: str | Path | None = None,
        timeout: float = 600,
        trackers: Sequence[str] = ("tensorboard",),
        deterministic: bool = True,
    ) -> Runtime:
        """Join the job that the launcher describes in the environment, or run as a single process.

        log_dir: where trackers write; None: nothing is tracked. timeout: the seconds that a collective waits for a
        process. trackers: names of accelerate's or of plug-ins'. deterministic: see `TrainConfig`.

        Raises UserError for a device that the machine does not have, for a tracker that is not installed, and for a
        launcher option without effect here.
        """
        if device not in get_args(Device):
            raise UserError(f"device {device!r} is unknown; give {', '.join(get_args(Device))}")
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "device is cuda, and torch sees no CUDA device here; give cpu or auto (for training, train.device)"
            )
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        raise_file_limit()
        _set_determinism(deterministic)
        limit = timedelta(seconds=timeout)
        services = {}
        if log_dir is not None:
            require_installed(trackers)
            services = {name: _tracker(name, log_dir) for name in trackers}
        fsdp = launched_for_fsdp()
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # its autocast patches the module's forward: `autocast` below instead
            project_config=ProjectConfiguration(project_dir=str(log_dir), logging_dir=str(log_dir))
            if log_dir
            else None,
            kwargs_handlers=[InitProcessGroupKwargs(init_method=init_method(), timeout=limit)],
        )
        set_float32_products(tf32=False)  # after accelerate, which allows TF32 under its --dynamo_backend
        dtype = _DTYPES[resolve_precision(precision, accelerator.device)]
        comm = Communicator(accelerator.process_index, accelerator.num_processes, timeout=limit)
        return cls(accelerator, dtype, comm, Trackers(accelerator, services), fsdp)

    @property
    def rank(self) -> int:
        return self.comm.rank

    @property
    def world(self) -> int:
        return self.comm.world

    @property
    def main(self) -> bool:
        return self.comm.main

    @property
    def device(self) -> torch.device:
        device = self.accelerator.device
        # accelerate numbers the CPU (cpu:0), a name that torch.load does not know.
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def memory_format(self) -> torch.memory_format:
        """channels_last; contiguous for bf16 on a CPU, where it costs GroupNorm more than convolutions gain."""
        slow = self.device.type == "cpu" and self.dtype == torch.bfloat16
        return torch.contiguous_format if slow else torch.channels_last

    def in_precision(self, precision: Precision) -> Runtime:
        """This runtime, with another precision."""
        return replace(self, dtype=_DTYPES[resolve_precision(precision, self.accelerator.device)])

    def place(self, module: M) -> M:
        """The module on this process's device, in its memory format."""
        return module.to(device=self.device, memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    def to_device(self, batch: Batch) -> Batch:
        """The batch on this process's device, its images in the memory format, without waiting for the copy."""
        move: dict[str, Any] = {"device": self.device, "non_blocking": True}
        labels = None if batch.labels is None else batch.labels.to(**move)
        valid = None if batch.valid is None else batch.valid.to(**move)
        images = batch.images.to(**move, memory_format=self.memory_format)
        return batch._replace(images=images, labels=labels, positions=batch.positions.to(**move), valid=valid)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module in DistributedDataParallel where there is more than one process."""
        return self.accelerator.prepare_model(module)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Around networks: autocast to `dtype`. Products that stay in float32 are IEEE float32, not TF32."""
        float32 = self.dtype == torch.float32
        with nullcontext() if float32 else torch.autocast(self.device.type, self.dtype), float32_products(tf32=False):
            yield

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the trackers and leave the process group, unless this rank alone has failed.

        A UserError is raised on all ranks together. After any other error the other ranks wait in a collective, and
        leaving the group would wait for them: the launcher ends them when this process dies.
        """
        if kind is None or (issubclass(kind, UserError) and not issubclass(kind, RankError)):
            self.trackers.finish()
            self.accelerator.end_training()
            if dist.is_initialized():
                dist.destroy_process_group()


def _tracker(name: str, log_dir: str | Path) -> Any:
    """The tracker as accelerate takes it: one of its own names, or a plug-in's tracker object."""
    tracker = plugins.find("trackers", name) or name
    return tracker(str(log_dir)) if callable(tracker) else tracker


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """`auto` is bf16 where the device computes in it natively, else fp32."""
    if precision not in get_args(Precision):
        raise UserError(f"precision {precision!r} is unknown; give {', '.join(get_args(Precision))}")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if torch.backends.cpu.get_cpu_capability() != "AVX512":  # of an older processor, or set by ATEN_CPU_CAPABILITY
        return "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def _set_determinism(deterministic: bool) -> None:
    """Whether the same inputs give the same bits, as an exact resume needs, or the fastest algorithms are taken."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cudnn.benchmark = not deterministic
