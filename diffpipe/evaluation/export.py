"""The weights of a run as files for other programs."""

from __future__ import annotations

import secrets
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffpipe.config import dump_yaml
from diffpipe.errors import UserError
from diffpipe.experiment.run import Run
from diffpipe.files import atomic_write, sync


def export_safetensors(run: Run, folder: Path) -> None:
    """One safetensors file per network, named for it, and the run's config.yaml. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, net in run.nets.items():
            tensors = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
            _save(tensors, folder / f"{name}.safetensors", {"weights": run.weights})
        atomic_write(folder / "config.yaml", dump_yaml(run.experiment))
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error
    except SafetensorError as error:
        raise UserError(f"{folder}: {error}; free some space, or give another folder") from error


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError or SafetensorError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file(tensors, temporary, metadata)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
