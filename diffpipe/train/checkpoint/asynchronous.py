"""Saving beside training: the step waits for a copy in memory only, and a thread writes and commits the copy.

The same thread then removes old checkpoints, which nobody waits for: that may take long on a slow disk.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from diffpipe.errors import RankError, UserError
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.retention import prune
from diffpipe.train.checkpoint.state import RunState
from diffpipe.train.checkpoint.write import TensorShard, commit
from diffpipe.train.distributed import Communicator

SAVE_TIMEOUT = timedelta(hours=1)
"""How long the ranks wait for one another within a save. A disk may be slow for a while; a step never is so long."""
_HEARTBEAT = 1.0  # seconds


class Destination(NamedTuple):
    """A directory that saves are committed to, one subdirectory per step.

    prefix: of the names of the tensors that it gets; empty: all of them. prune: removes old saves after a new one.
    """

    directory: Path
    prune: Callable[[Path], None]
    prefix: str = ""


class AsyncCheckpointer:
    """Saves checkpoints into `directory`, one at a time. All ranks call its methods together.

    As a context manager it waits for the save in flight at the end of the block; not where this rank alone has failed,
    since the other ranks' part of that save may never come.
    """

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        comm: Communicator,
        warn: Callable[[str], object] = warnings.warn,
        peers: Communicator | None = None,
    ):
        """comm: with a group of its own (`Communicator.new_group`), for the thread, and a long timeout.

        warn: called with a sentence where an old checkpoint cannot be removed. peers: a group with a short timeout, by
        which a rank that waits for a save learns whether the others are alive; None: it does not learn it.
        """
        self.config, self.comm, self._warn, self._peers = config, comm, warn, peers
        self.checkpoints = Destination(directory, lambda folder: prune(folder, config))
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._awaited, self._done = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._saved: dict[Path, int] = {}

    @property
    def failed(self) -> bool:
        """Whether the save in flight has failed on this rank: `wait` will raise the error. Not a collective."""
        return self._error is not None

    def save(
        self, tensors: dict[str, Tensor], state: RunState, destinations: Sequence[Destination] | None = None
    ) -> None:
        """Save `state`, and `tensors` as they are now: plain ones, which are the same on all ranks, and DTensors.

        destinations: the directories to commit to, in this order; None: the checkpoints alone.

        Waits for the save in flight, copies the tensors to host memory and returns; with `checkpoint.async=false` it
        returns when the checkpoint is committed. The step that was saved last is not saved again. Raises as `wait`.
        """
        self.wait()
        destinations = [self.checkpoints] if destinations is None else destinations
        due = [one for one in destinations if self._saved.get(one.directory) != state.step]
        if not due:
            return
        text = state.text()
        kept = tuple(one.prefix for one in due)
        staged, copied = self._stage({name: tensor for name, tensor in tensors.items() if name.startswith(kept)})
        arguments = (due, state.step, staged, text, copied, self._thread)
        self._saved |= {one.directory: state.step for one in due}
        self._awaited.clear()
        self._done.clear()
        self._thread = threading.Thread(target=self._save, args=arguments, name="checkpointer", daemon=True)
        self._thread.start()
        if not self.config.asynchronous:
            self.wait()

    def wait(self) -> None:
        """Return when the save in flight, if any, is committed.

        Raises the error of a failed save, once: a UserError on all ranks where a disk refused; any other error, such as
        the RuntimeError of a group that has lost a process, on this rank. Earlier checkpoints stay.
        """
        if self._thread is not None:
            self._awaited.set()
            self._wait_with_peers() if self._peers is not None else self._done.wait()
        error, self._error = self._error, None
        if error is not None:
            self._saved.clear()
            raise error

    def _wait_with_peers(self) -> None:
        """Return when the save in flight is over on all ranks, or has failed on this one alone.

        A dead rank is noticed in the time of a step, and a slow disk is given the time of a save. Raises RuntimeError
        where a rank no longer answers.
        """
        assert self._peers is not None
        while True:
            done = self._done.wait(_HEARTBEAT)
            if self._error is not None and not isinstance(self._error, UserError):
                return
            if self._peers.sum(torch.tensor(int(done))).item() == self._peers.world:
                return

    def __enter__(self) -> AsyncCheckpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.wait()
            if self._thread is not None:
                self._thread.join()  # it removes old checkpoints
        elif isinstance(error, UserError) and not isinstance(error, RankError):
            try:
                self.wait()
            except Exception as second:  # noqa: BLE001 (the first error is reported)
                error.add_note(f"and the last save failed: {second}")

    def _stage(self, tensors: dict[str, Tensor]) -> tuple[dict[str, TensorShard], torch.cuda.Event | None]:
        """Copies in host memory of what this rank writes, and the event after which copies from a GPU are complete.

        A GPU copies in the order of its stream: the next step cannot change a tensor too early, and nothing waits. The
        memory is kept for the next save.
        """
        names = _share({name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}, self.comm)
        staged, event = {}, None
        for i, (name, tensor) in enumerate(tensors.items()):
            if isinstance(tensor, DTensor):
                local, (replica, replicas) = tensor.to_local(), _replica(tensor)
                if replica != i % replicas or local.numel() == 0 < tensor.numel():
                    continue  # another replica writes it, or the shard is empty
                offsets = tuple(tensor.__create_chunk_list__()[0].offsets)
            else:
                local, offsets = tensor, (0,) * tensor.ndim
                if name not in names:
                    continue
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
                # Contiguous: safetensors has no channels_last.
                buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
                self._buffers[name] = buffer
            staged[name] = TensorShard(buffer.copy_(local.detach(), non_blocking=True), offsets)
            if local.is_cuda and event is None:
                event = torch.cuda.Event()
        if event is not None:
            event.record()
        return staged, event

    def _save(
        self,
        destinations: Sequence[Destination],
        step: int,
        shards: dict[str, TensorShard],
        state: str,
        copied: torch.cuda.Event | None,
        before: threading.Thread | None,
    ) -> None:
        """Write and commit, in the thread, then remove old checkpoints. An error of the save is kept for `wait`.

        before: the thread of the save before, which may still be removing.
        """
        try:
            if before is not None:
                before.join()
            self._yield_to_training()
            if copied is not None:
                torch.cuda.set_device(copied.device)  # a new thread has the first GPU, which is another process's
                copied.synchronize()
            for directory, _, prefix in destinations:
                kept = {name: shard for name, shard in shards.items() if name.startswith(prefix)}
                commit(directory, step, kept, state, self.comm)
        except BaseException as error:  # noqa: BLE001 (`wait` raises it)
            self._error = error
            return
        finally:
            self._done.set()
        for directory, prune_old, _ in destinations if self.comm.main else ():
            try:
                prune_old(directory)
            except OSError as error:
                self._warn(f"{error.filename}: {error.strerror}: an old checkpoint cannot be removed; look at the disk")

    def _yield_to_training(self) -> None:
        """Lower this thread's priority, unless training waits for it already, as at the end of a job.

        A thread on Linux may lower its own priority but never raise it again. A still lower priority, 19, takes a
        minute for a second's work on a machine that others use, too.
        """
        if not self._awaited.wait(0.01) and sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 14)


def _share(tensors: dict[str, Tensor], comm: Communicator) -> set[str]:
    """The tensors, of those that are the same on all ranks, that this rank writes: an equal share of the bytes."""
    loads = [(0, rank) for rank in range(comm.world)]
    names = set()
    for name in sorted(tensors, key=lambda name: (-tensors[name].nbytes, name)):
        load, rank = loads[0]
        heapq.heapreplace(loads, (load + tensors[name].nbytes, rank))
        if rank == comm.rank:
            names.add(name)
    return names


def _replica(tensor: DTensor) -> tuple[int, int]:
    """The index of this rank's replica of its shard, and the number of replicas."""
    index, replicas = 0, 1
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None, "this rank is in the mesh"
    for size, at, placement in zip(tensor.device_mesh.shape, coordinate, tensor.placements, strict=True):
        if placement.is_replicate():
            index, replicas = index * size + at, replicas * size
    return index, replicas
