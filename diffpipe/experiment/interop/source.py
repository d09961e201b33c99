"""The sources that a run is made of: a diffusers folder, a file of `diffpipe export`, a state dict of other code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from torch import Tensor

from diffpipe.data.loader.order import VERSION
from diffpipe.errors import UserError
from diffpipe.experiment.find_checkpoint import find_checkpoint
from diffpipe.experiment.interop.autoencoder_kl import latent_scale
from diffpipe.experiment.interop.diffusers_folder import DiffusersFolder, our_tensors, read_folder
from diffpipe.experiment.interop.edm2 import EDM2Weights, edm2_tensors, from_edm2, is_edm2
from diffpipe.experiment.interop.guided_diffusion import (
    AttentionOrder,
    GuidedDiffusion,
    from_guided_diffusion,
    guided_diffusion_tensors,
    is_guided_diffusion,
)
from diffpipe.experiment.interop.single_file import METADATA, network_tensors, read_single_file
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.experiment.stored_config import stored_config
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.nn.adm import ADMConfig
from diffpipe.plural import plural
from diffpipe.resolution import Resolution, square
from diffpipe.stages.ddpm import DDPM, DENOISER, LATENT_SCALE, LOG_VARIANCE
from diffpipe.stages.latents import LatentCodec
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.runtime import Runtime

_TRAINING = {"data": {"batch_size": 64}, "train": {"steps": 10_000}}
"""Keys that every config has and no folder says."""
_OWN_KEYS = {"data": ("train", "sources", "test", "cache"), "train": ("device", "trackers")}
"""Keys of a file's config that name places on the machine where it was made."""
_UNTOLD = (
    "no shape tells the heads, the order of their queries, keys and values, the schedule and the target: taken are "
    "stage.network.head_channels=64, --attention-order legacy, stage.schedule.kind=linear and stage.prediction=eps, "
    "where you give no others"
)
_UNTOLD_EDM2 = (
    "no shape tells the heads, the balances and the standard deviation of the data: taken are stage.network's defaults "
    "and stage.schedule.sigma_data=0.5, where you give no others"
)

Tensors = Mapping[str, Mapping[str, Tensor]]


class Source(NamedTuple):
    """A source to import: its config as plain values, the shape of its images, and what reads the networks' tensors.

    `tensors` takes the stage, and its networks' tensors without values to compare with.
    """

    tree: dict[str, Any]
    shape: ImageShape
    tensors: Callable[[Stage, Tensors], Tensors]
    notes: list[str]


class ImportOptions(NamedTuple):
    """The facts about a source that it does not hold; None: not given. See `import_run`."""

    classes: int | None = None
    codec: Path | None = None
    resolution: Resolution | None = None
    attention_order: AttentionOrder | None = None


def read_source(path: Path, options: ImportOptions, runtime: Runtime) -> Source:
    """The source at `path`. A collective. Raises UserError where it is none, or where an option does not fit it."""
    if path.is_dir():
        _refuse(options, "a diffusers folder", "resolution", "attention_order")
        return _of_folder(path, options, runtime)
    weights = WeightsFile(path)
    if METADATA not in weights.metadata and is_edm2(weights):
        _refuse(options, "a state dict of EDM2", "classes", "codec", "resolution", "attention_order")
        return _of_edm2(weights)
    if METADATA not in weights.metadata and is_guided_diffusion(weights):
        _refuse(options, "a state dict of guided-diffusion", "classes", "codec")
        return _of_guided_diffusion(weights, options)
    _refuse(options, "a file of `diffpipe export`", "classes", "resolution", "attention_order")
    return _of_file(path)


def _refuse(options: ImportOptions, source: str, *names: str) -> None:
    for name in names:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} has no effect on {source}, which names its own; leave it out")


def _of_folder(path: Path, options: ImportOptions, runtime: Runtime) -> Source:
    folder, codec = read_folder(path), options.codec
    model = folder.model
    classes = model.count_classes(folder.classes if options.classes is None else options.classes, str(path))
    stage = {
        "kind": "ddpm",
        "network": model.network.model_dump(mode="json"),
        "conditional": classes > 0,
        "label_dropout": 0.1 if model.has_empty_label(classes) else 0.0,
        **folder.stage,
    }
    if folder.vae is None:
        if codec is not None:
            raise UserError(f"{path}: its network denoises pixels; leave out --codec")
        shape = ImageShape(model.channels, model.resolution, classes)
    elif codec is None:
        raise UserError(
            f"{path}: its network denoises latents; give --codec RUN, the run whose VAE was exported with it (an "
            f"AutoencoderKL of another origin has no network in diffpipe)"
        )
    else:
        stage["codec"] = {"kind": "vae"}
        shape = ImageShape(**dict(find_checkpoint(codec, runtime).state.shape))._replace(classes=classes)
    data = _data(shape) | ({"class_names": folder.class_names} if len(folder.class_names) == classes else {})
    tree = _tree(stage, data)
    return Source(tree, shape, functools.partial(_folder_tensors, folder), folder.notes)


def _folder_tensors(folder: DiffusersFolder, stage: Stage, expected: Tensors) -> Tensors:
    tensors = {DENOISER: our_tensors(folder, expected[DENOISER])}
    if folder.vae is not None:
        codec = cast(DDPM, stage).codec
        tensors[LATENT_SCALE] = latent_scale(folder.vae, cast(LatentCodec, codec))
    return tensors


def _of_guided_diffusion(weights: WeightsFile, options: ImportOptions) -> Source:
    if options.resolution is None:
        raise UserError(f"{weights.path}: no shape tells the size of its images; give --resolution N")
    if options.attention_order not in (None, *get_args(AttentionOrder)):
        raise UserError(f"attention_order is {options.attention_order!r}; give {' or '.join(get_args(AttentionOrder))}")
    model = from_guided_diffusion(weights, options.resolution)
    shape = ImageShape(model.channels, options.resolution, model.classes)
    if model.out_channels not in (model.channels, 2 * model.channels):
        outputs = plural(model.out_channels, "channel")
        raise UserError(f"{weights.path}: its output has {outputs}, for {model.channels} of images")
    stage = {
        "kind": "ddpm",
        "network": model.network.model_dump(mode="json"),
        "conditional": model.classes > 0,
        "label_dropout": 0.0,
        "learned_variance": model.out_channels == 2 * model.channels,
    }
    order = options.attention_order or "legacy"
    return Source(
        _tree(stage, _data(shape)), shape, functools.partial(_guided_tensors, weights, model, order), [_UNTOLD]
    )


def _of_edm2(weights: WeightsFile) -> Source:
    model = from_edm2(weights)
    shape = ImageShape(model.channels, square(model.resolution), model.classes)
    stage = {
        "kind": "ddpm",
        "network": model.network.model_dump(mode="json"),
        "prediction": "edm",
        "weighting": {"kind": "learned" if model.learned_weighting else "edm"},
        "sampler": {"kind": "heun", "steps": 32, "clip": False},  # as in the paper, appendix A
        "conditional": model.classes > 0,
        "label_dropout": 0.0,
    }
    return Source(_tree(stage, _data(shape)), shape, functools.partial(_edm2_tensors, weights, model), [_UNTOLD_EDM2])


def _edm2_tensors(weights: WeightsFile, model: EDM2Weights, _: Stage, expected: Tensors) -> Tensors:
    network, weighting = edm2_tensors(weights, model, expected[DENOISER], expected.get(LOG_VARIANCE))
    return {DENOISER: network} | ({LOG_VARIANCE: weighting} if weighting else {})


def _guided_tensors(
    weights: WeightsFile, model: GuidedDiffusion, order: AttentionOrder, stage: Stage, expected: Tensors
) -> Tensors:
    network = cast(ADMConfig, cast(DDPM, stage).config.network)
    return {DENOISER: guided_diffusion_tensors(weights, model, network, order, expected[DENOISER])}


def _of_file(path: Path) -> Source:
    file = read_single_file(path)
    stored = stored_config(Checkpoint(path, file.state, "", file.format))
    shape = ImageShape(**dict(file.state.shape))
    tree = stored.model_dump(mode="json", include={"seed", "data", "stage", "optimizer", "ema", "train"})
    for section, keys in _OWN_KEYS.items():
        tree[section] = {key: value for key, value in tree[section].items() if key not in keys}
    tree["data"] |= _data(shape)
    return Source(tree, shape, lambda _, expected: network_tensors(file, expected), [])


def _tree(stage: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    return {**_TRAINING, "data": {**_TRAINING["data"], **data}, "stage": stage}


def _data(shape: ImageShape) -> dict[str, Any]:
    """The data section: no shards, and what the network fixes."""
    size = {"resolution": shape.resolution.plain(), "channels": shape.channels, "labels": shape.classes > 0}
    return {"train": [], "order_version": VERSION, **size}
