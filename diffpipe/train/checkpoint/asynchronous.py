"""Saving beside training: the step waits for a copy in memory, and a thread takes that to the disk and commits it."""

from __future__ import annotations

import heapq
import os
import sys
import threading
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffpipe.errors import RankError, UserError
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.state import RunState
from diffpipe.train.checkpoint.write import TensorShard, commit
from diffpipe.train.distributed import Communicator


class AsyncCheckpointer:
    """Saves checkpoints into `directory`, one at a time. All ranks call its methods together.

    As a context manager it waits, at the end of the block, for the save in flight; but not where this rank alone has
    failed, since the others' part of that save may never come.
    """

    def __init__(self, directory: Path, config: CheckpointConfig, comm: Communicator):
        """`comm` has a group of its own (Communicator.new_group): the thread talks while training does."""
        self.directory, self.config, self.comm = directory, config, comm
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._awaited = threading.Event()
        self._error: BaseException | None = None
        self._step: int | None = None

    @property
    def failed(self) -> bool:
        """Whether the save in flight has ended in an error on this rank, which `wait` will raise. No collective."""
        return self._error is not None

    def save(self, tensors: dict[str, Tensor], state: RunState) -> None:
        """Save `tensors`, plain (the same on all ranks) or DTensors, as they are now, and `state`.

        Waits for the save in flight, copies the tensors to host memory and returns; with `checkpoint.async=false`, when
        it is committed. A step that it has just saved is not saved again. Raises what `wait` raises.
        """
        self.wait()
        if state.step == self._step:
            return
        text = state.model_dump_json(indent=1)
        staged, copied = self._stage(tensors)
        arguments = (state.step, staged, text, copied)
        self._step = state.step
        self._awaited.clear()
        self._thread = threading.Thread(target=self._save, args=arguments, name="saver", daemon=True)
        self._thread.start()
        if not self.config.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when nothing is in flight and all that was saved is committed.

        Raises, once, the error of a save that failed: a UserError on all ranks where a disk refused, anything else,
        such as the RuntimeError of a group that has lost a process, on this one. What was committed before stays.
        """
        if self._thread is not None:
            self._awaited.set()
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            self._step = None
            raise error

    def __enter__(self) -> AsyncCheckpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif isinstance(error, UserError) and not isinstance(error, RankError):
            try:
                self.wait()
            except Exception as second:  # noqa: BLE001 (what ended the job is what is to be told)
                error.add_note(f"and the last save failed: {second}")

    def _stage(self, tensors: dict[str, Tensor]) -> tuple[dict[str, TensorShard], torch.cuda.Event | None]:
        """Copies, in kept host memory, of what this rank writes; and the event after which a GPU's are there.

        A GPU copies in the order of its stream, so that the next step changes nothing too early, and no one waits.
        """
        mine = _share({name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}, self.comm)
        staged, event = {}, None
        for i, (name, tensor) in enumerate(tensors.items()):
            if isinstance(tensor, DTensor):
                local, (copy, copies) = tensor.to_local(), _replica(tensor)
                if copy != i % copies or local.numel() == 0 < tensor.numel():
                    continue  # another's turn, or an uneven shard of nothing
                offsets = tuple(tensor.__create_chunk_list__()[0].offsets)
            else:
                local, offsets = tensor, (0,) * tensor.ndim
                if name not in mine:
                    continue
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                # Contiguous: safetensors knows no channels_last.
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
                self._buffers[name] = buffer
            staged[name] = TensorShard(buffer.copy_(local.detach(), non_blocking=True), offsets)
            if local.is_cuda and event is None:
                event = torch.cuda.Event()
        if event is not None:
            event.record()
        return staged, event

    def _save(self, step: int, shards: dict[str, TensorShard], state: str, copied: torch.cuda.Event | None) -> None:
        """The thread: writes and commits. Whatever goes wrong is kept for `wait`."""
        try:
            self._yield_to_training()
            if copied is not None:
                torch.cuda.set_device(copied.device)  # a new thread's would be the first GPU, another process's
                copied.synchronize()
            commit(self.directory, step, shards, state, self.config, self.comm)
        except BaseException as error:  # noqa: BLE001 (it is raised again by `wait`)
            self._error = error

    def _yield_to_training(self) -> None:
        """Let this thread compute only where training does not, unless that waits for it: before a job's end, say.

        Not the other way round: a thread may lower its priority, on Linux its own alone, and never raise it again. And
        not by more: at 19, on a machine that others use, too, what takes a second takes a minute.
        """
        if not self._awaited.wait(0.01) and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 14)


def _share(tensors: dict[str, Tensor], comm: Communicator) -> set[str]:
    """The names of those tensors, the same on all ranks, that this rank writes: about its share of the bytes."""
    loads = [(0, rank) for rank in range(comm.world)]
    mine = set()
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + tensors[name].nbytes, rank))
        if rank == comm.rank:
            mine.add(name)
    return mine


def _replica(tensor: DTensor) -> tuple[int, int]:
    """Which one this rank's is, of how many equal copies of its part of the tensor."""
    which, copies = 0, 1
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "this rank is in the mesh"
    for size, at, placement in zip(tensor.device_mesh.shape, coordinate, tensor.placements, strict=True):
        if placement.is_replicate():
            which, copies = which * size + at, copies * size
    return which, copies
