"""Folders of diffusers: `model_index.json`, the network, `scheduler/` and, for latents, `vae/`. diffusers is not used.

A folder is somebody else's: nothing in it is imported or unpickled, whatever its configs name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from torch import Tensor

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.experiment.interop.dit_transformer import DiTTransformer, from_dit_transformer
from diffpipe.experiment.interop.scheduler import Scheduler, from_scheduler
from diffpipe.experiment.interop.unet2d_config import UNet2D, from_unet2d
from diffpipe.experiment.interop.unet2d_names import current_name
from diffpipe.experiment.interop.weights_file import WeightsFile, literal, refuse_pickle
from diffpipe.files import atomic_write, parse_json, read_regular

INDEX, SCHEDULER = "model_index.json", "scheduler/scheduler_config.json"
VAE = "vae"
_CLASSES, _LABEL_DROPOUT = "_classes", "_label_dropout"
"""Keys of the network's config that diffusers passes over: the classes, without the empty label, and its share."""
_NETWORKS = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),  # the second in early versions
}
_VERSION = "0.35.0"  # that the keys are those of
_LONGEST = 1 << 22  # bytes of a JSON file: a table of betas may be long
_OWN = "diffpipe reads a UNet2DModel or a DiTTransformer2DModel with a DDPMScheduler or a DDIMScheduler"

Model = UNet2D | DiTTransformer


class Labels(NamedTuple):
    """The classes of a network: their number, the share hidden in training, and their names where they have any."""

    classes: int
    dropout: float
    names: tuple[str, ...] = ()


class DiffusersFolder(NamedTuple):
    """A folder's configs as ours, and its weights.

    classes: where diffpipe wrote it; a row more is the empty label. class_names: of a folder that has them. stage: keys
    of our stage section. notes: sentences on what our sampler does otherwise. vae: the autoencoder's weights, where the
    network denoises latents.
    """

    model: Model
    classes: int | None
    class_names: tuple[str, ...]
    stage: dict[str, Any]
    notes: list[str]
    weights: WeightsFile
    vae: WeightsFile | None


def network_folder(model: Model) -> str:
    return "unet" if isinstance(model, UNet2D) else "transformer"


def weights_path(part: str) -> str:
    """The file of the weights of a part, such as `unet`."""
    return f"{part}/diffusion_pytorch_model.safetensors"


def weights_file(folder: Path) -> Path:
    """The file of the network's weights in a folder. Raises UserError where there is none."""
    paths = [folder / weights_path(part) for part in _NETWORKS]
    path = next((path for path in paths if path.exists()), None)
    if path is not None:
        return path
    read_folder(folder)  # raises
    raise UserError(f"{folder}: no {' or '.join(map(weights_path, _NETWORKS))} in it")


def write_configs(
    folder: Path,
    model: Model,
    network: Config,
    scheduler: tuple[Scheduler, Mapping[str, Any]],
    labels: Labels,
    vae: Config | None,
) -> None:
    """Write all files but the weights. Raises OSError."""
    part, (name, config) = network_folder(model), scheduler
    kind = _NETWORKS[part][0]
    components: dict[str, Any] = {"scheduler": ["diffusers", name], part: ["diffusers", kind]}
    if isinstance(model, UNet2D):
        pipeline = "DDPMPipeline" if name == "DDPMScheduler" else "DDIMPipeline"
        ours = {_CLASSES: labels.classes} if labels.classes else {}
    else:
        pipeline, ours = "DiTPipeline", {_CLASSES: labels.classes, _LABEL_DROPOUT: labels.dropout}
        components[VAE] = ["diffusers", "AutoencoderKL"] if vae else [None, None]
        if labels.names:
            components["id2label"] = {str(i): name for i, name in enumerate(labels.names)}
    files = [
        (f"{part}/config.json", kind, {**ours, **network.model_dump(mode="json")}),
        (SCHEDULER, name, config),
        (INDEX, pipeline, components),
    ]
    if vae:
        files.append((f"{VAE}/config.json", "AutoencoderKL", vae.model_dump(mode="json")))
    for path, kind, tree in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"_class_name": kind, "_diffusers_version": _VERSION, **tree}, indent=2)
        atomic_write(folder / path, text + "\n")


def read_folder(folder: Path) -> DiffusersFolder:
    """The configs of a folder, checked, and its weights, unread. Raises UserError."""
    index = _read_json(folder, INDEX)
    class_names = _class_names(index.pop("id2label", None))
    parts = _parts(index, folder / INDEX)
    part = "unet" if "unet" in parts else "transformer"
    config = f"{part}/config.json"
    scheduler = _read_json(folder, SCHEDULER)
    name = scheduler.get("_class_name")
    if name not in get_args(Scheduler):
        raise UserError(f"{folder / SCHEDULER}: a {str(name)[:60]}; {_OWN}")
    if parts["scheduler"] != name:
        raise UserError(
            f"{folder / INDEX}: its scheduler is a {parts['scheduler'][:60]}, and {SCHEDULER} is that of a {name}; "
            f"make them agree"
        )
    network = _read_json(folder, config)
    if network.get("_class_name", _NETWORKS[part][0]) not in _NETWORKS[part]:
        raise UserError(f"{folder / config}: a {str(network['_class_name'])[:60]}; {_OWN}")
    model = (from_unet2d if part == "unet" else from_dit_transformer)(network, str(folder / config))
    stage, notes = from_scheduler(cast(Scheduler, name), scheduler, str(folder / SCHEDULER))
    if isinstance(model, DiTTransformer):  # DiTPipeline leaves the variance out, so no scheduler there learns it
        stage["learned_variance"] = model.out_channels == 2 * model.channels
    if _LABEL_DROPOUT in network:
        stage["label_dropout"] = network[_LABEL_DROPOUT]
    if model.out_channels != model.channels * (2 if stage["learned_variance"] else 1):
        raise UserError(
            f"{folder / config}: out_channels is {model.out_channels}, and the network of the scheduler's "
            f"variance_type has {model.channels * (2 if stage['learned_variance'] else 1)}"
        )
    classes, vae = network.get(_CLASSES), _weights(folder, VAE, "AutoencoderKL") if VAE in parts else None
    weights = _weights(folder, part, _NETWORKS[part][0])
    return DiffusersFolder(model, classes if type(classes) is int else None, class_names, stage, notes, weights, vae)


def our_tensors(folder: DiffusersFolder, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our network. Raises UserError where the file holds others.

    expected: our network's tensors, without values.
    """
    theirs = folder.model.their_tensors(expected)
    config = f"{network_folder(folder.model)}/config.json"
    folder.weights.require({key: tensor.shape for key, tensor in theirs.items()}, f"the network of {config}")
    try:
        return folder.model.our_tensors(folder.weights.read(), expected)
    except UserError as error:
        raise UserError(f"{folder.weights.path}: {error}") from error


def _parts(index: Mapping[str, Any], where: Path) -> dict[str, str]:
    """The parts of a pipeline and their classes. Raises UserError where they are not those of ours."""
    pipeline = index.get("_class_name")
    parts = {
        key: value for key, value in index.items() if not key.startswith("_") and value not in (None, [None, None])
    }
    for name, part in {"_class_name": ["diffusers", pipeline], **parts}.items():
        if not (isinstance(part, list) and len(part) == 2 and part[0] == "diffusers" and isinstance(part[1], str)):
            raise UserError(f"{where}: its {name[:40]} is {str(part)[:80]}, code that diffpipe does not run; {_OWN}")
    classes = {name: part[1] for name, part in parts.items()}
    network = next((name for name in _NETWORKS if classes.get(name) in _NETWORKS[name]), "")
    expected = {network, "scheduler", *([VAE] if network == "transformer" and VAE in classes else [])}
    if classes.keys() != expected or classes.get(VAE, "AutoencoderKL") != "AutoencoderKL":
        listed = ", ".join(f"{name} {kind}" for name, kind in classes.items())
        raise UserError(f"{where}: a {pipeline} of {listed[:200] or 'nothing'}, which is another architecture; {_OWN}")
    return classes


def _class_names(labels: Any) -> tuple[str, ...]:
    """The names of classes 0, 1, … in a DiTPipeline's id2label, where they are all there."""
    if not isinstance(labels, dict) or set(labels) != {str(i) for i in range(len(labels))}:
        return ()
    names = tuple(labels[str(i)] for i in range(len(labels)))
    return names if all(isinstance(name, str) for name in names) else ()


def _weights(folder: Path, part: str, kind: str) -> WeightsFile:
    path, pickle = folder / weights_path(part), folder / f"{part}/diffusion_pytorch_model.bin"
    if not path.exists() and pickle.exists():
        place = literal(folder / part)
        code = (
            f"from diffusers import {kind} as M; "
            f"M.from_pretrained({place}, use_safetensors=False).save_pretrained({place})"
        )
        raise refuse_pickle(pickle, f"python -c {shlex.quote(code)}")
    if (folder / f"{weights_path(part)}.index.json").exists():
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
