"""Folders of diffusers: `model_index.json`, `unet/` and `scheduler/`. Written and read without diffusers.

A folder is somebody else's: nothing in it is imported or unpickled, whatever its configs name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.experiment.interop.renaming import to_ours, to_theirs
from diffpipe.experiment.interop.scheduler import Scheduler, from_scheduler
from diffpipe.experiment.interop.unet2d_config import UNet2D, UNet2DConfig, from_unet2d
from diffpipe.experiment.interop.unet2d_names import current_name
from diffpipe.experiment.interop.weights_file import WeightsFile, refuse_pickle
from diffpipe.files import atomic_write, parse_json, read_regular

INDEX = "model_index.json"
UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CLASSES = "_classes"
"""A key of unet/config.json that diffusers passes over: the number of classes, without the empty label."""
_VERSION = "0.35.0"  # that the keys are those of
_LONGEST = 1 << 22  # bytes of a JSON file: a table of betas may be long
_OWN = "diffpipe reads a UNet2DModel with a DDPMScheduler or a DDIMScheduler"


class DiffusersFolder(NamedTuple):
    """A folder's configs as ours, and its weights.

    classes: where diffpipe wrote it and the network has any; a row more is the empty label. stage: keys of our stage
    section. notes: sentences on what our sampler does otherwise.
    """

    model: UNet2D
    classes: int | None
    stage: dict[str, Any]
    notes: list[str]
    weights: WeightsFile


def write_configs(
    folder: Path, unet: UNet2DConfig, scheduler: Scheduler, config: Mapping[str, Any], classes: int
) -> None:
    """Write all files but the weights. Raises OSError."""
    labels = {CLASSES: classes} if classes else {}
    pipeline = "DDPMPipeline" if scheduler == "DDPMScheduler" else "DDIMPipeline"
    components = {"scheduler": ["diffusers", scheduler], "unet": ["diffusers", "UNet2DModel"]}
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for path, kind, tree in (
        (UNET, "UNet2DModel", {**labels, **unet.model_dump(mode="json")}),
        (SCHEDULER, scheduler, config),
        (INDEX, pipeline, components),
    ):
        text = json.dumps({"_class_name": kind, "_diffusers_version": _VERSION, **tree}, indent=2)
        atomic_write(folder / path, text + "\n")


def their_tensors(model: UNet2D, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our network's tensors as the UNet2DModel has them. Without rows of its own, the empty label has none there."""
    tensors = {key: tensor[: model.rows] if key == "label.weight" else tensor for key, tensor in tensors.items()}
    return to_theirs(tensors, model.names)


def read_folder(folder: Path) -> DiffusersFolder:
    """The configs of a folder, checked, and its weights, unread. Raises UserError."""
    index = _read_json(folder, INDEX)
    pipeline = index.get("_class_name")
    parts = {
        key: value for key, value in index.items() if not key.startswith("_") and value not in (None, [None, None])
    }
    for name, part in {"_class_name": ["diffusers", pipeline], **parts}.items():
        if not (isinstance(part, list) and len(part) == 2 and part[0] == "diffusers" and isinstance(part[1], str)):
            raise UserError(
                f"{folder / INDEX}: its {name[:40]} is {str(part)[:80]}, code that diffpipe does not run; {_OWN}"
            )
    if parts.keys() != {"unet", "scheduler"} or parts["unet"][1] != "UNet2DModel":
        listed = ", ".join(f"{name} {part[1]}" for name, part in parts.items())
        raise UserError(
            f"{folder / INDEX}: a {pipeline} of {listed[:200] or 'nothing'}, which is another architecture; {_OWN}"
        )
    scheduler = _read_json(folder, SCHEDULER)
    name = scheduler.get("_class_name")
    if name not in get_args(Scheduler):
        raise UserError(f"{folder / SCHEDULER}: a {str(name)[:60]}; {_OWN}")
    unet = _read_json(folder, UNET)
    if unet.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise UserError(f"{folder / UNET}: a {str(unet['_class_name'])[:60]}; {_OWN}")
    model = from_unet2d(unet, str(folder / UNET))
    stage, notes = from_scheduler(cast(Scheduler, name), scheduler, str(folder / SCHEDULER))
    if model.out_channels != model.channels * (2 if stage["learned_variance"] else 1):
        raise UserError(
            f"{folder / UNET}: out_channels is {model.out_channels}, and the network of the scheduler's variance_type "
            f"has {model.channels * (2 if stage['learned_variance'] else 1)}"
        )
    classes = unet.get(CLASSES)
    return DiffusersFolder(model, classes if type(classes) is int else None, stage, notes, _weights(folder))


def our_tensors(folder: DiffusersFolder, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our network. Raises UserError where the file holds others.

    expected: our network's tensors, without values. A class embedding without a row for the empty label gets one of
    zeros.
    """
    theirs = their_tensors(folder.model, expected)
    folder.weights.require({key: tensor.shape for key, tensor in theirs.items()}, f"the network of {UNET}")
    tensors = to_ours(folder.weights.read(), folder.model.names)
    if "label.weight" in tensors:
        rows = tensors["label.weight"]
        tensors["label.weight"] = rows.new_zeros(expected["label.weight"].shape)
        tensors["label.weight"][: len(rows)] = rows
    return tensors


def _weights(folder: Path) -> WeightsFile:
    path, pickle = folder / WEIGHTS, folder / "unet/diffusion_pytorch_model.bin"
    if not path.exists() and pickle.exists():
        place = repr(str(folder / "unet"))
        code = f"M.from_pretrained({place}, use_safetensors=False).save_pretrained({place})"
        raise refuse_pickle(pickle, f'python -c "from diffusers import UNet2DModel as M; {code}"')
    if (folder / f"{WEIGHTS}.index.json").exists():
        raise UserError(f"{path}.index.json: the weights are in several files; save them in one (max_shard_size)")
    return WeightsFile(path, current_name)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        tree = parse_json(read_regular(path, follow_links=True, limit=_LONGEST))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give a folder that the save_pretrained of a diffusers pipeline wrote"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a mapping of keys, as every config of diffusers is")
    if "auto_map" in tree:
        raise UserError(f"{path}: its auto_map names code of the folder's own, which diffpipe does not run; {_OWN}")
    return tree
