"""The weights of a run as files for other programs."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from diffpipe.config import dump_yaml
from diffpipe.errors import UserError
from diffpipe.experiment.run import Run


def export_safetensors(run: Run, folder: Path) -> None:
    """One safetensors file per network, named for it, and the run's config.yaml. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, net in run.nets.items():
            tensors = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
            save_file(tensors, folder / f"{name}.safetensors", metadata={"weights": run.weights})
        (folder / "config.yaml").write_text(dump_yaml(run.experiment), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error
