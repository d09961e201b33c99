"""Checkpoints that are committed whole and verified, or do not exist.

A checkpoint is a directory `step-00001000` of safetensors shards (torch.distributed.checkpoint, written by all ranks),
`state.json`, and `manifest.json` with the size and sha256 of each file. It is written under a temporary name, synced to
the disk, hashed, and then renamed: the rename is the commit. Nothing in it is pickled, and nothing is parsed before the
manifest has vouched for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from diffpipe.config import Config
from diffpipe.contract import UserError
from diffpipe.train.runtime import Runtime

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT = 1


class CheckpointConfig(Config):
    """When to save and what to keep."""

    every: int = Field(default=1000, ge=0)
    """Steps between checkpoints; the last step is always saved; 0 saves the last step only."""
    keep_last: int = Field(default=2, ge=2)
    """How many to keep: at least two, since the newest may yet be lost with its disk block."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose every byte has been checked against its manifest."""

    path: Path
    state: dict[str, Any]
    manifest_sha256: str

    @property
    def step(self) -> int:
        return self.state["step"]


def save(directory: Path, tensors: dict[str, Tensor], state: dict[str, Any], runtime: Runtime, keep_last: int) -> Path:
    """Write and commit the checkpoint of `state["step"]`; then drop the oldest beyond `keep_last`. A collective.

    Raises UserError (on all ranks) where the disk refuses; what was committed before stays, and the debris goes.
    """
    final = directory / f"step-{state['step']:08d}"
    temp = directory / f".tmp-{final.name}"
    if runtime.main:
        shutil.rmtree(temp, ignore_errors=True)  # of a run that was killed while it saved this step
        temp.mkdir(parents=True)
    runtime.barrier()
    try:
        runtime.together(lambda: _write(temp, tensors))
        digests = _digest(sorted(temp.iterdir()), runtime)
        runtime.together(lambda: _commit(temp, final, digests, state) if runtime.main else None)
    except UserError:
        if runtime.main:
            shutil.rmtree(temp, ignore_errors=True)
        raise
    if runtime.main:
        for path in committed(directory)[keep_last:]:
            shutil.rmtree(path)
    return final


def committed(directory: Path) -> list[Path]:
    """The committed checkpoints under `directory`, newest (highest step) first. Damaged ones are among them."""
    if not directory.is_dir():
        return []
    steps = {int(p.name[5:]): p for p in directory.iterdir() if p.name.startswith("step-") and p.name[5:].isdecimal()}
    return [steps[step] for step in sorted(steps, reverse=True)]


def newest_valid(directory: Path, runtime: Runtime) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that its manifest vouches for, and what is wrong with each newer one. A collective.

    None where there is none at all. Raises UserError where there are some and all are damaged: to start afresh then
    would bury the loss under a new run.
    """
    complaints: list[str] = []
    for path in committed(directory):
        complaint = damage(path, runtime)
        if complaint is None:
            return _open(path), complaints
        complaints.append(f"{path}: {complaint}")
    if complaints:
        raise UserError(
            f"no checkpoint in {directory} is whole ({'; '.join(complaints)}); restore one from a copy, "
            f"or move the directory away to start afresh"
        )
    return None, []


def open_checkpoint(path: Path, runtime: Runtime) -> Checkpoint:
    """The checkpoint at `path`, verified. A collective. Raises UserError."""
    complaint = damage(path, runtime)
    if complaint is not None:
        raise UserError(f"{path}: not a whole checkpoint: {complaint}; take another of the run's checkpoints")
    return _open(path)


def manifest_sha256(path: Path) -> str | None:
    """The hash by which others name the checkpoint at `path`: its manifest's; None where that cannot be read."""
    try:
        return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _open(path: Path) -> Checkpoint:
    digest = manifest_sha256(path)
    assert digest is not None, "it has just been read"
    return Checkpoint(path, json.loads((path / STATE).read_text()), digest)


def damage(path: Path, runtime: Runtime) -> str | None:
    """What is wrong with the checkpoint at `path`, or None; the hashing is shared out over the ranks. A collective."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
        step = manifest["step"]
    except OSError as error:
        complaint, expected = f"{MANIFEST} cannot be read ({error.strerror})", {}
    except (ValueError, KeyError, TypeError, AttributeError):
        complaint, expected = f"{MANIFEST} is not what a save writes", {}
    else:
        present = {p.name: p.stat().st_size for p in path.iterdir() if p.name != MANIFEST}
        complaint = f"it says step {step}" if path.name != f"step-{step:08d}" else None
        complaint = complaint or _first_difference(expected, present)
    # Ranks may see different files on a filesystem that is not shared; they must still decide together.
    complaint = next((c for c in runtime.gather(complaint) if c is not None), None)
    if complaint is not None:
        return complaint
    for name, entry in _digest([path / name for name in sorted(expected)], runtime).items():
        if entry["sha256"] != expected[name][1]:
            return f"{name} has been altered since it was saved (sha256 differs)"
    return None


def load(checkpoint: Checkpoint, tensors: dict[str, Tensor], *, alone: bool = False) -> None:
    """Copy the checkpoint's tensors into `tensors`, sharded or not, whatever the world size that saved them.

    A collective, unless `alone`: then this process reads by itself. Raises UserError, before anything is changed, where
    the checkpoint lacks a tensor or has it in another shape.
    """
    reader = dcp.HuggingFaceStorageReader(str(checkpoint.path))
    saved = reader.read_metadata().state_dict_metadata
    for name, tensor in tensors.items():
        shape = tuple(saved[name].size) if name in saved else None  # pyright: ignore[reportAttributeAccessIssue]
        if shape != tuple(tensor.shape):
            there = "is missing" if shape is None else f"has shape {list(shape)}"
            raise UserError(
                f"{checkpoint.path} is a checkpoint of another model: {name} {there} there and has shape "
                f"{list(tensor.shape)} here; restore the stage section of the config, or train into another run.dir"
            )
    with _alone_or_not():
        dcp.load(tensors, storage_reader=reader, no_dist=alone)


@contextlib.contextmanager
def _alone_or_not() -> Iterator[None]:
    """One process without a process group is a way to train here, not an oversight to be warned of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _write(temp: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}  # safetensors knows no channels_last
    # One thread: with more, a writer that fails can go unnoticed. Replicated tensors are shared out over the ranks.
    writer = dcp.HuggingFaceStorageWriter(str(temp), save_distributed=True, thread_count=1)
    try:
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=False)
        with _alone_or_not():
            dcp.save(tensors, storage_writer=writer, planner=planner)
    except (OSError, dcp.CheckpointException) as error:
        raise UserError(f"{temp}: the checkpoint could not be written: {_root_cause(error)}; free the disk") from error


def _commit(temp: Path, final: Path, digests: dict[str, dict[str, Any]], state: dict[str, Any]) -> None:
    try:
        text = json.dumps(state, indent=1)
        _write_synced(temp / STATE, text)
        digests = digests | {STATE: {"size": len(text.encode()), "sha256": hashlib.sha256(text.encode()).hexdigest()}}
        manifest = {"format": FORMAT, "step": state["step"], "files": digests}
        _write_synced(temp / MANIFEST, json.dumps(manifest, indent=1))
        _sync_directory(temp)
        if final.exists():  # the same step trained again after this one had been found damaged
            shutil.rmtree(final)
        temp.rename(final)
        _sync_directory(final.parent)
        _write_synced(final.parent / ".latest", final.name)
        (final.parent / ".latest").replace(final.parent / "latest")
    except OSError as error:
        raise UserError(f"{final}: the checkpoint could not be committed: {error}; free the disk") from error


def _digest(paths: list[Path], runtime: Runtime) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file by name, the work shared out over the ranks. A collective."""
    mine = {}
    for path in paths[runtime.rank :: runtime.world]:
        with path.open("rb") as file:
            mine[path.name] = {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return {name: entry for part in runtime.gather(mine) for name, entry in sorted(part.items())}


def _first_difference(expected: dict[str, tuple[int, str]], present: dict[str, int]) -> str | None:
    for name in sorted(expected.keys() | present.keys()):
        if name not in present:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not in {MANIFEST}"
        if expected[name][0] != present[name]:
            return f"{name} has {present[name]} bytes instead of {expected[name][0]}"
    return None if STATE in expected else f"{MANIFEST} does not list {STATE}"


def _root_cause(error: BaseException) -> str:
    if isinstance(error, dcp.CheckpointException):
        return "; ".join(f"rank {rank}: {failure[0]}" for rank, failure in error.failures.items())
    return str(error)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
