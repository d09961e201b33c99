"""Verify a checkpoint, find the newest valid one, and load its tensors.

torch.distributed.checkpoint unpickles a `.metadata` file (FileSystemReader) and entries that are not tensors
(DefaultLoadPlanner.load_bytes). Its reader of safetensors, which is used here, does neither.
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
from diffpipe.files import read_regular
from diffpipe.train.checkpoint.format import (
    DAMAGED,
    MANIFEST,
    NAME,
    STATE,
    FileEntry,
    Manifest,
    committed,
    describe,
    manifest_sha256,
    step_of,
)
from diffpipe.train.checkpoint.state import FORMAT, MISSING_NETWORKS, RENAMED_PARTS, RunState, parse_state
from diffpipe.train.distributed import Communicator


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte has been checked against its manifest."""

    path: Path
    state: RunState
    manifest_sha256: str
    format: int = FORMAT
    """The format that it was written in. `state` has been migrated to the current one."""

    @property
    def step(self) -> int:
        return self.state.step

    def stored_name(self, tensor: str) -> str:
        """The name under which its files hold a tensor, `net.denoiser.stem.weight` say."""
        names = RENAMED_PARTS.get(self.format, {})
        return ".".join(names.get(part, part) if i in (1, 2, 3) else part for i, part in enumerate(tensor.split(".")))


class Damage(NamedTuple):
    """A checkpoint that differs from its manifest, and how."""

    path: Path
    complaint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.complaint}"


def newest_valid(directory: Path, comm: Communicator) -> tuple[Checkpoint | None, list[Damage]]:
    """The newest valid checkpoint, and what is wrong with each newer one. A collective.

    None where there is no checkpoint at all. Raises UserError where there are checkpoints, quarantined ones included,
    and none is valid: starting from scratch would hide the loss.
    """
    damaged: list[Damage] = []
    # Rank 0's list: on a shared file system, ranks may for a while see different ones.
    for path in comm.gather(committed(directory))[0]:
        complaint = damage(path, comm)
        if complaint is None:
            return _open(path), damaged
        damaged.append(Damage(path, complaint))
    quarantined = sorted(directory.glob(f"{DAMAGED}*")) if directory.is_dir() else []
    complaints = [*map(str, damaged), *(f"{path}: found damaged before" for path in comm.gather(quarantined)[0])]
    if complaints:
        raise UserError(
            f"no checkpoint in {directory} is whole ({'; '.join(complaints)}); restore one from a copy, "
            f"or move the directory away to start from scratch"
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
        manifest = Manifest.model_validate_json(read_regular(path / MANIFEST, follow_links=True))
        state = parse_state(json.loads(read_regular(path / STATE, follow_links=True)), manifest.format)
        if state.step != manifest.step:
            raise ValueError(f"it is of step {state.step}, and {MANIFEST} of step {manifest.step}")
        return Checkpoint(path, state, digest, manifest.format)
    except (ValueError, KeyError, TypeError) as error:
        raise _forged(path / STATE, error) from error


def damage(path: Path, comm: Communicator) -> str | None:
    """The first difference of the checkpoint at `path` from its manifest, or None. Ranks share it out: a collective."""
    complaint, files = comm.raise_on_all_ranks(lambda: _inspect(path))
    # Ranks may see different files where the file system is not shared; they must still decide together.
    complaint = next((c for c in comm.gather(complaint) if c is not None), None)
    if complaint is not None:
        return complaint
    names = sorted(files)[comm.rank :: comm.world]
    complaints = (_difference(path / name, files[name]) for name in names)
    complaint = next((c for c in complaints if c is not None), None)
    return next((c for c in comm.gather(complaint) if c is not None), None)


def _inspect(path: Path) -> tuple[str | None, dict[str, FileEntry]]:
    """The first difference that shows before any hashing, or None, and the files that the manifest lists."""
    try:
        text = read_regular(path / MANIFEST, follow_links=True)
        _require_known_format(path, text)
        manifest = Manifest.model_validate_json(text)
        present = {p.name: p.stat().st_size for p in path.iterdir() if p.name != MANIFEST}
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})", {}
    except ValidationError:
        return f"{MANIFEST} is not what a save writes", {}
    if not NAME.fullmatch(path.name) or step_of(path) != manifest.step:
        return f"its {MANIFEST} is of step {manifest.step}", {}
    return _first_difference(manifest.files, present), manifest.files


def _require_known_format(path: Path, manifest: bytes) -> None:
    """Raise UserError where a newer version wrote the checkpoint: it is not damaged."""
    try:
        written = json.loads(manifest)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # not a manifest at all
    if type(written) is int and written > FORMAT:
        raise UserError(
            f"{path} was written by a newer version of diffpipe (format {written}; this version reads up to {FORMAT}); "
            f"update diffpipe, or take another checkpoint"
        )


def _first_difference(expected: dict[str, FileEntry], present: dict[str, int]) -> str | None:
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in {MANIFEST}"
        if expected[name].size != present[name]:
            return f"{name} has {present[name]} bytes instead of {expected[name].size}"
    return None if STATE in expected else f"{MANIFEST} does not list {STATE}"


def _difference(path: Path, entry: FileEntry) -> str | None:
    try:
        altered = describe(path) != entry
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return f"{path.name} has been altered since it was saved (sha256 differs)" if altered else None


def load(checkpoint: Checkpoint, tensors: dict[str, Tensor], comm: Communicator) -> None:
    """Copy the checkpoint's tensors into `tensors`, plain ones or DTensors, however they were sharded when saved.

    Each rank reads only what it holds. A collective; with `Communicator()` one process reads alone. Raises UserError,
    before anything is changed, where the checkpoint lacks a tensor or has it in another shape.
    """
    reader = dcp.HuggingFaceStorageReader(str(checkpoint.path))
    try:
        saved = reader.read_metadata().state_dict_metadata
    except (SafetensorError, ValueError, KeyError) as error:
        raise _forged(checkpoint.path, error) from error
    missing = MISSING_NETWORKS.get(checkpoint.format, set())
    tensors = {name: tensor for name, tensor in tensors.items() if missing.isdisjoint(name.split(".")[1:2])}
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
    return UserError(
        f"{path}: its hash is right, but it is not what diffpipe writes ({error}); take another checkpoint"
    )


def hush() -> None:
    """Suppress torch's warning that there is no process group: a single process needs none.

    The filter stays in place: removing it is not safe beside a thread.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
