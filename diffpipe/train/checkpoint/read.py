"""Checkpoints that are committed whole and verified, or do not exist: what they are, which to take, how to read them.

A checkpoint is a directory `step-00001000` of safetensors shards (torch.distributed.checkpoint, written by all ranks),
`state.json`, and `manifest.json` with the size and sha256 of each file. Which is the newest is by the number in its
name: never by times or by what else lies there. Nothing in it is parsed before the manifest has vouched for it, and
nothing is unpickled: torch.distributed.checkpoint would unpickle a `.metadata` file (FileSystemReader) and entries that
are no tensors (DefaultLoadPlanner.load_bytes), and the reader of safetensors that is used here knows neither.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.train.checkpoint.format import (
    DAMAGED,
    MANIFEST,
    NAME,
    STATE,
    Entry,
    Manifest,
    committed,
    describe,
    manifest_sha256,
    step_of,
)
from diffpipe.train.checkpoint.state import FORMAT, RENAMED_PARTS, RunState, parse_state
from diffpipe.train.distributed import Communicator


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose every byte has been checked against its manifest."""

    path: Path
    state: RunState
    manifest_sha256: str
    format: int = FORMAT
    """The format that it was written in; `state` is of today's."""

    @property
    def step(self) -> int:
        return self.state.step

    def stored_name(self, tensor: str) -> str:
        """The name under which its files hold a tensor, `net.denoiser.stem.weight` say."""
        names = RENAMED_PARTS.get(self.format, {})
        return ".".join(names.get(part, part) if i in (1, 2, 3) else part for i, part in enumerate(tensor.split(".")))


class Damage(NamedTuple):
    """A checkpoint that is not whole, and what is wrong with it."""

    path: Path
    complaint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.complaint}"


def newest_valid(directory: Path, comm: Communicator) -> tuple[Checkpoint | None, list[Damage]]:
    """The newest checkpoint that its manifest vouches for, and what is wrong with each newer one. A collective.

    None where there is none at all. Raises UserError where there are some and all are damaged, those among them that
    were put aside before: to start afresh then would bury the loss under a new run.
    """
    damaged: list[Damage] = []
    # Rank 0's listing: on a filesystem that is slow to show what others wrote, ranks would walk different lists.
    for path in comm.gather(committed(directory))[0]:
        complaint = damage(path, comm)
        if complaint is None:
            return _open(path), damaged
        damaged.append(Damage(path, complaint))
    aside = sorted(directory.glob(f"{DAMAGED}*")) if directory.is_dir() else []
    complaints = [*map(str, damaged), *(f"{path}: put aside before" for path in comm.gather(aside)[0])]
    if complaints:
        raise UserError(
            f"no checkpoint in {directory} is whole ({'; '.join(complaints)}); restore one from a copy, "
            f"or move the directory away to start afresh"
        )
    return None, []


def open_checkpoint(path: Path, comm: Communicator) -> Checkpoint:
    """The checkpoint at `path`, verified. A collective. Raises UserError."""
    complaint = damage(path, comm)
    if complaint is not None:
        raise UserError(f"{path}: not a whole checkpoint: {complaint}; take another of the run's checkpoints")
    return _open(path)


def _open(path: Path) -> Checkpoint:
    digest = manifest_sha256(path)
    assert digest is not None, "it has just been read"
    try:
        written = Manifest.model_validate_json((path / MANIFEST).read_bytes()).format
        return Checkpoint(path, parse_state(json.loads((path / STATE).read_bytes()), written), digest, written)
    except (ValueError, KeyError, TypeError) as error:
        raise _forged(path / STATE, error) from error


def damage(path: Path, comm: Communicator) -> str | None:
    """What is wrong with the checkpoint at `path`, or None; the hashing is shared out over the ranks. A collective."""
    complaint, files = _inspect(path)
    # Ranks may see different files on a filesystem that is not shared; they must still decide together.
    complaint = next((c for c in comm.gather(complaint) if c is not None), None)
    if complaint is not None:
        return complaint
    mine = sorted(files)[comm.rank :: comm.world]
    complaints = (_difference(path / name, files[name]) for name in mine)
    complaint = next((c for c in complaints if c is not None), None)
    return next((c for c in comm.gather(complaint) if c is not None), None)


def _inspect(path: Path) -> tuple[str | None, dict[str, Entry]]:
    """What is wrong with the checkpoint at `path` at first sight, and its files by the manifest."""
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
        present = {p.name: p.stat().st_size for p in path.iterdir() if p.name != MANIFEST}
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})", {}
    except ValidationError:
        return f"{MANIFEST} is not what a save writes", {}
    if not NAME.fullmatch(path.name) or step_of(path) != manifest.step:
        return f"it says step {manifest.step}", {}
    return _first_difference(manifest.files, present), manifest.files


def _first_difference(expected: dict[str, Entry], present: dict[str, int]) -> str | None:
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in {MANIFEST}"
        if expected[name].size != present[name]:
            return f"{name} has {present[name]} bytes instead of {expected[name].size}"
    return None if STATE in expected else f"{MANIFEST} does not list {STATE}"


def _difference(path: Path, entry: Entry) -> str | None:
    try:
        altered = describe(path) != entry
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return f"{path.name} has been altered since it was saved (sha256 differs)" if altered else None


def load(checkpoint: Checkpoint, tensors: dict[str, Tensor], comm: Communicator) -> None:
    """Copy the checkpoint's tensors into `tensors`, plain or DTensors, whoever saved them however sharded.

    A collective; `Communicator()` reads alone. Each rank reads what it holds, straight into it. Raises UserError,
    before anything is changed, where the checkpoint lacks a tensor or has it in another shape.
    """
    reader = dcp.HuggingFaceStorageReader(str(checkpoint.path))
    try:
        saved = reader.read_metadata().state_dict_metadata
    except (SafetensorError, ValueError, KeyError) as error:
        raise _forged(checkpoint.path, error) from error
    tensors = {checkpoint.stored_name(name): tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        shape = tuple(saved[name].size) if name in saved else None  # pyright: ignore[reportAttributeAccessIssue]
        if shape != tuple(tensor.shape):
            there = "is missing" if shape is None else f"has shape {list(shape)}"
            raise UserError(
                f"{checkpoint.path} is a checkpoint of another model: {name} {there} there and has shape "
                f"{list(tensor.shape)} here; restore the stage section of the config, or train into another run.dir"
            )
    hush()
    dcp.load(tensors, storage_reader=reader, process_group=comm.group, no_dist=comm.world == 1)


def _forged(path: Path, error: Exception) -> UserError:
    """What the manifest vouches for and no save has written."""
    return UserError(
        f"{path}: {MANIFEST} vouches for it, but no save has written it ({error}); take another checkpoint"
    )


def hush() -> None:
    """One process without a process group is a way to train here, not an oversight for torch to warn of.

    The filter stays: to take it away again is not safe beside a thread.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
