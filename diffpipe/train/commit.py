"""How a checkpoint comes to be: whole, or not at all, at whatever moment a process or a machine dies.

It is written under a temporary name, synced, hashed, listed in its manifest, and then renamed, which commits it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from diffpipe.contract import UserError
from diffpipe.train.checkpoint import MANIFEST, STATE, CheckpointConfig, Entry, Manifest, describe, step_name
from diffpipe.train.retention import TEMPORARY, prune, retire
from diffpipe.train.team import Team


def commit(
    directory: Path, step: int, tensors: dict[str, Tensor], state: str, config: CheckpointConfig, team: Team
) -> None:
    """Write this rank's part of a checkpoint, commit it with the others, and remove what `config` keeps no longer.

    tensors: what this rank has to write, contiguous on the host; parts of tensors as CheckpointableTensors. state: the
    text of `state.json`. A collective. Raises UserError, on all ranks, where the disk refuses; the debris goes then.
    """
    final = directory / step_name(step)
    temp = final.with_name(TEMPORARY + final.name)
    shard = temp / f"rank-{team.rank:05d}.safetensors"
    try:
        team.together(lambda: _begin(temp) if team.main else None)
        team.together(lambda: _write(shard, tensors, team))
        parts = team.gather(team.together(lambda: _describe(shard)))
        files = {name: entry for part in parts for name, entry in part.items()}
        team.together(lambda: _commit(temp, final, step, files, state) if team.main else None)
    except UserError:
        if team.main:
            shutil.rmtree(temp, ignore_errors=True)
        raise
    team.together(lambda: _prune(directory, config) if team.main else None)


class _Writer(dcp.HuggingFaceStorageWriter):
    """Writes a rank's shard by safetensors' `save_file`, which lets the other threads run meanwhile.

    What it overrides assembles the file in memory first, twice, and training stands still for that long.
    """

    def __init__(self, shard: Path):
        super().__init__(str(shard.parent), save_distributed=True)
        self.shard = shard

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        chunks = {item.index.fqn: (item.tensor_data, planner.resolve_data(item)) for item in plan.items}
        assert len(chunks) == len(plan.items), "a rank has one chunk of a tensor"
        offsets = {name: {SAVED_OFFSETS_KEY: list(about.chunk.offsets)} for name, (about, _) in chunks.items() if about}
        tensors = {name: tensor for name, (_, tensor) in chunks.items() if isinstance(tensor, Tensor)}
        if tensors:
            try:
                # One key of metadata: safetensors writes several in an order drawn by chance.
                save_file(tensors, self.shard, {CUSTOM_METADATA_KEY: json.dumps(offsets)})
            except SafetensorError as error:  # it tells of the disk's errors so
                raise OSError(str(error)) from None
            _sync(self.shard)
        written: Future[list[WriteResult]] = Future()
        written.set_result([])
        return written


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


def _write(shard: Path, tensors: dict[str, Tensor], team: Team) -> None:
    # Replicas of a shard (hsdp) are shared out over the ranks that hold them.
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=False)
    alone = team.world == 1
    try:
        dcp.save(tensors, storage_writer=_Writer(shard), planner=planner, process_group=team.group, no_dist=alone)
    except dcp.CheckpointException as error:
        causes = "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
        raise UserError(
            f"{shard.parent}: the checkpoint could not be written: {causes}; free some space, or change the rights"
        ) from error


def _describe(shard: Path) -> dict[str, Entry]:
    try:
        return {shard.name: describe(shard)} if shard.exists() else {}
    except OSError as error:
        raise UserError(f"{shard}: cannot be read back ({error.strerror}); look at the disk") from error


def _commit(temp: Path, final: Path, step: int, files: dict[str, Entry], state: str) -> None:
    try:
        _write_synced(temp / STATE, state)
        manifest = Manifest(step=step, files=files | {STATE: describe(temp / STATE)})
        _write_synced(temp / MANIFEST, manifest.model_dump_json(indent=1))
        _sync(temp)
        if final.exists():
            retire(final)  # the same step, saved again
        temp.rename(final)
        _sync(final.parent)
        _write_synced(final.parent / ".latest", final.name)
        (final.parent / ".latest").replace(final.parent / "latest")
    except OSError as error:
        raise UserError(
            f"{final}: the checkpoint could not be committed: {error}; free some space, or change the rights"
        ) from error


def _prune(directory: Path, config: CheckpointConfig) -> None:
    try:
        prune(directory, config)
    except OSError as error:
        raise UserError(f"{directory}: an old checkpoint could not be removed: {error}; look at the disk") from error


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Have a file, or a directory's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
