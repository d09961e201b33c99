"""The weights of a run as files for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from safetensors import SafetensorError

from diffpipe.config import dump_yaml
from diffpipe.errors import UserError
from diffpipe.evaluation.export_diffusers import export_diffusers
from diffpipe.experiment.interop.single_file import metadata, single_file_tensors
from diffpipe.experiment.interop.weights_file import save_weights
from diffpipe.experiment.run import Run
from diffpipe.files import atomic_write
from diffpipe.run_folder import is_run

ExportFormat = Literal["safetensors", "diffusers"]
SINGLE_FILE = ".safetensors"


def export(run: Run, out: Path, to: ExportFormat, *, merge: bool = False) -> list[str]:
    """Write the run's weights. Returns sentences on what the files do not say. Raises UserError.

    safetensors: one file per network, named for it, and the run's config.yaml, in the folder `out`; or the one file
    `out` where its name ends so. diffusers: a folder that a pipeline of diffusers loads; of a run with
    `lora` the adapter alone, or with `merge` the whole folder with the adapter in its weights.
    """
    if to not in get_args(ExportFormat):
        raise UserError(f"to is {to!r}; give {' or '.join(get_args(ExportFormat))}")
    if merge and (to != "diffusers" or run.experiment.lora is None):
        raise UserError(
            "--merge is for `--to diffusers` and a run with lora; elsewhere weights are whole: leave it out"
        )
    single = out.suffix == SINGLE_FILE and not out.is_dir()
    if to == "diffusers" and single:
        raise UserError(f"{out}: a diffusers pipeline is a folder; give a name without {SINGLE_FILE}")
    if is_run(out):  # its config.yaml would be replaced, and a file more makes a checkpoint a damaged one
        raise UserError(f"{out}: a run directory or a checkpoint; give another folder for the exported weights")
    if out.exists() and not (out.is_dir() and next(out.iterdir(), None) is None):
        raise UserError(f"{out} exists already; remove it or give another name")
    try:
        if to == "diffusers":
            return export_diffusers(run, out, merge=merge)
        if single:
            _export_file(run, out)
        else:
            _export_folder(run, out)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a folder that can be written") from error
    except SafetensorError as error:
        raise UserError(f"{out}: {error}; free some space, or give another folder") from error
    return []


def _export_folder(run: Run, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, net in run.nets.items():
        save_weights(net.state_dict(), folder / f"{name}.safetensors", {"weights": run.weights})
    atomic_write(folder / "config.yaml", dump_yaml(run.experiment))


def _export_file(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = single_file_tensors({name: net.state_dict() for name, net in run.nets.items()})
    save_weights(tensors, path, metadata(run))
