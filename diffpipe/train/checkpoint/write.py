"""Write and commit a checkpoint: it is complete or absent, at whatever moment a process or a machine dies.

It is written under a temporary name, synced, hashed, and listed in its manifest. Renaming it commits it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY

from diffpipe.errors import UserError
from diffpipe.files import atomic_write, sync
from diffpipe.run_folder import LATEST, MANIFEST, STATE, TEMPORARY, step_name
from diffpipe.train.checkpoint.format import FileEntry, Manifest, describe
from diffpipe.train.checkpoint.retention import retire
from diffpipe.train.checkpoint.state import FORMAT
from diffpipe.train.distributed import Communicator


class TensorShard(NamedTuple):
    """One rank's part of a tensor: contiguous on the host, with its offset in each dimension."""

    values: Tensor
    offsets: tuple[int, ...]


def commit(
    directory: Path,
    step: int,
    shards: Mapping[str, TensorShard],
    state: str,
    comm: Communicator,
) -> None:
    """Write this rank's part of a checkpoint, and commit it with the other ranks.

    shards: this rank's parts, by the tensors' names. state: the text of `state.json`. A collective. Raises UserError on
    all ranks where the disk refuses; the partial checkpoint is removed then.
    """
    final = directory / step_name(step)
    temp = final.with_name(TEMPORARY + final.name)
    shard = temp / f"rank-{comm.rank:05d}.safetensors"
    try:
        comm.raise_on_all_ranks(lambda: _begin(temp) if comm.main else None)
        comm.raise_on_all_ranks(lambda: _write(shard, shards, comm))
        described = comm.gather(comm.raise_on_all_ranks(lambda: _describe(shard)))
        files = {name: entry for rank in described for name, entry in rank.items()}
        comm.raise_on_all_ranks(lambda: _commit(temp, final, step, files, state) if comm.main else None)
    except UserError:
        if comm.main:
            shutil.rmtree(temp, ignore_errors=True)
        raise


def _refused(path: Path, what: str) -> UserError:
    return UserError(f"{path}: the checkpoint {what}; free some space, or change the rights")


def _begin(temp: Path) -> None:
    try:
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{temp}: the checkpoint could not be written: {error}; free some space, or change the rights"
        ) from error


def _write(shard: Path, shards: Mapping[str, TensorShard], comm: Communicator) -> None:
    """Write a file in the layout of torch.distributed.checkpoint's HuggingFaceStorageWriter, for its reader.

    The writer itself plans in Python, which would hold up training for tens of milliseconds.
    """
    if not shards:
        return
    offsets = {name: {SAVED_OFFSETS_KEY: list(part.offsets)} for name, part in shards.items()}
    try:
        # One key of metadata only: safetensors writes several in random order.
        save_file(
            {name: part.values for name, part in shards.items()}, shard, {CUSTOM_METADATA_KEY: json.dumps(offsets)}
        )
        sync(shard)
    except (OSError, SafetensorError) as error:
        raise _refused(shard.parent, f"could not be written: rank {comm.rank}: {error}") from error


def _describe(shard: Path) -> dict[str, FileEntry]:
    try:
        return {shard.name: describe(shard)} if shard.exists() else {}
    except OSError as error:
        raise UserError(f"{shard}: cannot be read back ({error.strerror}); look at the disk") from error


def _commit(temp: Path, final: Path, step: int, files: dict[str, FileEntry], state: str) -> None:
    try:
        atomic_write(temp / STATE, state)
        manifest = Manifest(format=FORMAT, step=step, files=files | {STATE: describe(temp / STATE)})
        atomic_write(temp / MANIFEST, manifest.model_dump_json(indent=1))
        sync(temp)
        if final.exists():
            retire(final)  # the same step, saved again
        temp.rename(final)
        sync(final.parent)
    except OSError as error:
        raise UserError(
            f"{final}: the checkpoint could not be committed: {error}; free some space, or change the rights"
        ) from error
    latest = final.parent / LATEST
    try:
        atomic_write(latest, final.name)
    except (
        OSError
    ):  # the checkpoint is committed, and removing an old one makes room; no name is better than an old one
        with contextlib.suppress(OSError):
            latest.unlink(missing_ok=True)
