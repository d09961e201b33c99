"""The weights of a run as files for other programs."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffpipe.config import dump_yaml
from diffpipe.errors import UserError
from diffpipe.experiment.interop.diffusers_folder import WEIGHTS, their_tensors, write_configs
from diffpipe.experiment.interop.scheduler import to_scheduler
from diffpipe.experiment.interop.single_file import metadata, single_file_tensors
from diffpipe.experiment.interop.unet2d_config import UNet2D, to_unet2d
from diffpipe.experiment.run import Run
from diffpipe.files import atomic_write, sync
from diffpipe.nn.unet import UNetConfig
from diffpipe.stages.ddpm import DENOISER, DDPMConfig

ExportFormat = Literal["safetensors", "diffusers"]
SINGLE_FILE = ".safetensors"


def export(run: Run, out: Path, to: ExportFormat) -> list[str]:
    """Write the run's weights. Returns sentences on what the files do not say. Raises UserError.

    safetensors: one file per network, named for it, and the run's config.yaml, in the folder `out`; or the one file
    `out` where its name ends so. diffusers: a folder that a pipeline of diffusers loads.
    """
    if to not in get_args(ExportFormat):
        raise UserError(f"to is {to!r}; give {' or '.join(get_args(ExportFormat))}")
    single = out.suffix == SINGLE_FILE and not out.is_dir()
    if to == "diffusers" and single:
        raise UserError(f"{out}: a diffusers pipeline is a folder; give a name without {SINGLE_FILE}")
    try:
        if to == "diffusers":
            return _export_diffusers(run, out)
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
        _save(net.state_dict(), folder / f"{name}.safetensors", {"weights": run.weights})
    atomic_write(folder / "config.yaml", dump_yaml(run.experiment))


def _export_file(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = single_file_tensors({name: net.state_dict() for name, net in run.nets.items()})
    _save(tensors, path, metadata(run))


def _export_diffusers(run: Run, folder: Path) -> list[str]:
    stage = run.experiment.stage
    if not isinstance(stage, DDPMConfig) or stage.codec.kind != "pixels" or not isinstance(stage.network, UNetConfig):
        raise UserError(
            f"{run.home} is a {stage.describe()}, for which diffusers has no pipeline; it has one for stage.kind ddpm "
            f"on pixels with stage.network.kind unet: export --to safetensors"
        )
    channels, resolution, classes = run.shape
    classes = classes if stage.conditional else 0
    rows = classes + (stage.label_dropout > 0) if classes else None
    outputs = 2 * channels if stage.learned_variance else channels
    model = UNet2D(stage.network, channels, outputs, resolution, rows)
    unet, (scheduler, config) = to_unet2d(model), to_scheduler(stage)
    tensors = their_tensors(model, run.nets[DENOISER].state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    write_configs(folder, unet, scheduler, config, classes)
    _save(tensors, folder / WEIGHTS, {"format": "pt"})  # the metadata that diffusers asks for
    notes = []
    if classes:
        notes.append("DDPMPipeline and DDIMPipeline pass no labels: call the UNet2DModel with class_labels yourself")
    if stage.sampler.kind not in ("ancestral", "ddim", "euler"):
        notes.append(f"the scheduler is {scheduler}, where the run samples by {stage.sampler.kind}")
    return notes


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all. Raises OSError or SafetensorError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
