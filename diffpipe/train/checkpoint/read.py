"""Open a checkpoint that has been verified, and load its tensors.

torch.distributed.checkpoint unpickles a `.metadata` file (FileSystemReader) and entries that are not tensors
(DefaultLoadPlanner.load_bytes). Its reader of safetensors, which is used here, does neither.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from diffpipe.errors import UserError
from diffpipe.files import parse_json, read_regular
from diffpipe.plural import plural
from diffpipe.run_folder import MANIFEST, STATE
from diffpipe.train.checkpoint.format import MANIFEST_LIMIT, STATE_LIMIT, Manifest
from diffpipe.train.checkpoint.state import FORMAT, MISSING_NETWORKS, RENAMED_PARTS, RunState, parse_state
from diffpipe.train.checkpoint.stored_tensors import is_count, require_counts, require_stored
from diffpipe.train.checkpoint.verify import Damage, damage, newest_valid_path, read_patiently
from diffpipe.train.distributed import Communicator
from diffpipe.train.network_limits import limited_networks


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
        return _renamed(tensor, RENAMED_PARTS.get(self.format, {}))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that it holds, by today's names, without values. Raises UserError."""
        names = {old: new for new, old in RENAMED_PARTS.get(self.format, {}).items()}
        return {
            _renamed(name, names): torch.empty(about.size, dtype=about.properties.dtype, device="meta")
            for name, about in _metadata(self.path).items()
        }


def _renamed(tensor: str, names: Mapping[str, str]) -> str:
    """A tensor's name with the names of its network, and of parts in it, replaced."""
    return ".".join(names.get(part, part) if i in (1, 2, 3) else part for i, part in enumerate(tensor.split(".")))


def newest_valid(directory: Path, comm: Communicator) -> tuple[Checkpoint | None, list[Damage]]:
    """The newest valid checkpoint, and what is wrong with each newer one. A collective.

    None where there is no checkpoint at all. Raises UserError where there are checkpoints, quarantined ones included,
    and none is valid: starting from scratch would hide the loss. Also where one cannot be read just now.
    """
    path, damaged = newest_valid_path(directory, comm)
    return (None if path is None else comm.on_rank_zero(lambda: _open(path))), damaged


def open_checkpoint(path: Path, comm: Communicator) -> Checkpoint:
    """The checkpoint at `path`, verified. A collective. Raises UserError."""
    complaint = damage(path, comm)
    if complaint is not None:
        raise UserError(f"{path}: not a whole checkpoint: {complaint}; take another of the run's checkpoints")
    return comm.on_rank_zero(lambda: _open(path))


def _open(path: Path) -> Checkpoint:
    try:
        text = read_patiently(path, lambda: read_regular(path / MANIFEST, limit=MANIFEST_LIMIT))
        manifest = Manifest.model_validate_json(text)
        tree = parse_json(read_patiently(path, lambda: read_regular(path / STATE, limit=STATE_LIMIT)))
        state = parse_state(tree, manifest.format)
        if state.step != manifest.step:
            raise ValueError(f"it is of step {state.step}, and {MANIFEST} of step {manifest.step}")
        return Checkpoint(path, state, hashlib.sha256(text).hexdigest(), manifest.format)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise _forged(path / STATE, error) from error


def load(checkpoint: Checkpoint, tensors: dict[str, Tensor], comm: Communicator, *, updates: int = 1) -> None:
    """Copy the checkpoint's tensors into `tensors`, plain ones or DTensors, however they were sharded when saved.

    Each rank reads only what it holds. A collective; with `Communicator()` one process reads alone. updates: the most
    updates that an optimizer makes in a step. Raises UserError, before anything is changed, where the checkpoint lacks
    a tensor or a part of one, or has it in another shape or dtype, or where an optimizer's count of updates does not
    fit its step.
    """
    missing = MISSING_NETWORKS.get(checkpoint.format, set())
    tensors = {name: tensor for name, tensor in tensors.items() if missing.isdisjoint(name.split(".")[1:2])}
    tensors = {checkpoint.stored_name(name): tensor for name, tensor in tensors.items()}
    comm.raise_on_all_ranks(lambda: require_stored(checkpoint.path, _metadata(checkpoint.path), tensors))
    hush()
    counts = {name: torch.empty_like(tensor) for name, tensor in tensors.items() if is_count(name, tensor)}
    if counts:
        _read(checkpoint.path, counts, comm)
        require_counts(checkpoint.path, counts, updates * checkpoint.step)
    _read(checkpoint.path, tensors, comm)


def limited_to(checkpoint: Checkpoint) -> AbstractContextManager[None]:
    """In the block, networks are built from the checkpoint's config: of no more values than the checkpoint holds.

    A config can ask for a billion blocks, or a state for a billion classes. Raises UserError.
    """
    most = sum(math.prod(getattr(stored, "size", ())) for stored in _metadata(checkpoint.path).values())
    return limited_networks(
        f"{checkpoint.path} is a checkpoint of another model: the networks of its config, with "
        f"{plural(checkpoint.state.shape.classes, 'class', 'classes')}, have more than the {most} values that it "
        f"holds; take another checkpoint",
        values=most,
    )


def _metadata(path: Path) -> Mapping[str, Any]:
    """The tensors' metadata in the headers of the files."""
    try:
        return dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except OSError as error:
        raise UserError(f"{path}: cannot be read just now ({error.strerror}); run the same command again") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise _forged(path, error) from error


def _read(path: Path, tensors: dict[str, Tensor], comm: Communicator) -> None:
    reader = dcp.HuggingFaceStorageReader(str(path))
    try:
        dcp.load(tensors, storage_reader=reader, process_group=comm.group, no_dist=comm.world == 1)
    except (CheckpointException, SafetensorError, OSError) as error:
        causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
        raise UserError(
            f"{path}: cannot be read just now ({causes[0] if causes else error}); look at the disk, and run the same "
            f"command again"
        ) from error


def _forged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: its hash is right, but it is not what diffpipe writes ({str(error)[:300]}); take another checkpoint"
    )


def hush() -> None:
    """Suppress torch's warning that there is no process group: a single process needs none.

    The filter stays in place: removing it is not safe beside a thread.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
