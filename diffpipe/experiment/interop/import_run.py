"""Make a run directory of weights that were trained elsewhere: to sample from, to score, to train further."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from diffpipe.config import dump_yaml, override, validate
from diffpipe.data.loader.order import VERSION
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.find_checkpoint import find_checkpoint
from diffpipe.experiment.interop.autoencoder_kl import latent_scale
from diffpipe.experiment.interop.diffusers_folder import DiffusersFolder, our_tensors, read_folder
from diffpipe.experiment.interop.single_file import network_tensors, read_single_file
from diffpipe.experiment.run import build_stage
from diffpipe.experiment.stored_config import stored_config
from diffpipe.files import atomic_write, user_path
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.stages.ddpm import DDPM, DENOISER, LATENT_SCALE
from diffpipe.stages.latents import LatentCodec
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.state import RunState, Shape
from diffpipe.train.checkpoint.write import TensorShard, commit
from diffpipe.train.distributed import Communicator
from diffpipe.train.ema import prefix as ema_prefix
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values

_TRAINING = {"data": {"batch_size": 64}, "train": {"steps": 10_000}}
"""Keys that every config has and no folder says."""
_OWN_KEYS = {"data": ("train", "sources", "test", "cache"), "train": ("device", "trackers")}
"""Keys of a file's config that name places on the machine where it was made."""

Tensors = Mapping[str, Mapping[str, Tensor]]


class _Source(NamedTuple):
    """A source to import: its config as plain values, the shape of its images, and what reads the networks' tensors.

    `tensors` takes the stage, and its networks' tensors without values to compare with.
    """

    tree: dict[str, Any]
    shape: ImageShape
    tensors: Callable[[Stage, Tensors], Tensors]
    notes: list[str]


class ImportedRun(NamedTuple):
    """The run that was made. notes: sentences on what its sampler does otherwise than the source's."""

    experiment: Experiment
    shape: ImageShape
    parameters: int
    notes: list[str]


def import_run(
    source: str | Path,
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    classes: int | None = None,
    codec: str | Path | None = None,
) -> ImportedRun:
    """Make the run directory `run` of a diffusers folder, or of a file that `diffpipe export RUN FILE` wrote.

    Its one checkpoint, of step 0, has the weights as the trained and as the averaged ones, and no optimizer state:
    training it further begins with a fresh one. overrides: `key=value` words laid over its config. classes: of a folder
    whose network has a class embedding. codec: the VAE run of a network that denoises latents. Raises UserError;
    then no checkpoint is left.
    """
    path, home = user_path(source), user_path(run)
    if checkpoints.committed(home / "checkpoints"):
        raise UserError(f"{home}: a run with checkpoints already; give another directory")
    words = [*([f"stage.codec.run={codec}"] if codec else []), *overrides]
    with Runtime.start("fp32", "cpu") as runtime:
        imported = _of_folder(path, classes, codec, runtime) if path.is_dir() else _of_file(path, classes)
        tree = imported.tree | {"run": {"dir": str(run)}}
        for word in words:
            override(Experiment, tree, word)
        named = {word.partition("=")[0] for word in words}
        experiment, stage, _ = build_stage(validate(Experiment, tree, str(path)), imported.shape, runtime, named=named)
        tensors = imported.tensors(stage, {name: net.state_dict() for name, net in without_values(stage).items()})
        _write(home, experiment, imported.shape, tensors, str(path), runtime.comm)
    count = sum(tensor.numel() for state in tensors.values() for tensor in state.values())
    return ImportedRun(experiment, imported.shape, count, imported.notes)


def _of_folder(path: Path, classes: int | None, codec: str | Path | None, runtime: Runtime) -> _Source:
    folder = read_folder(path)
    model = folder.model
    classes = model.count_classes(folder.classes if classes is None else classes, str(path))
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
        raise UserError(f"{path}: its network denoises latents; give --codec RUN, the VAE run that it was trained with")
    else:
        stage["codec"] = {"kind": "vae"}
        shape = ImageShape(**find_checkpoint(Path(codec), runtime).state.shape.model_dump())._replace(classes=classes)
    data = _data(shape) | ({"class_names": folder.class_names} if len(folder.class_names) == classes else {})
    tree = {**_TRAINING, "data": {**_TRAINING["data"], **data}, "stage": stage}
    return _Source(tree, shape, functools.partial(_folder_tensors, folder), folder.notes)


def _folder_tensors(folder: DiffusersFolder, stage: Stage, expected: Tensors) -> Tensors:
    tensors = {DENOISER: our_tensors(folder, expected[DENOISER])}
    if folder.vae is not None:
        codec = cast(DDPM, stage).codec
        tensors[LATENT_SCALE] = latent_scale(folder.vae, cast(LatentCodec, codec))
    return tensors


def _of_file(path: Path, classes: int | None) -> _Source:
    if classes is not None:
        raise UserError("--classes is for a diffusers folder; a file names its classes")
    file = read_single_file(path)
    stored = stored_config(Checkpoint(path, file.state, "", file.format))
    shape = ImageShape(**file.state.shape.model_dump())
    tree = stored.model_dump(mode="json", include={"seed", "data", "stage", "optimizer", "ema", "train"})
    for section, keys in _OWN_KEYS.items():
        tree[section] = {key: value for key, value in tree[section].items() if key not in keys}
    tree["data"] |= _data(shape)
    return _Source(tree, shape, lambda _, expected: network_tensors(file, expected), [])


def _data(shape: ImageShape) -> dict[str, Any]:
    """The data section: no shards, and what the network fixes."""
    size = {"resolution": shape.resolution, "channels": shape.channels, "labels": shape.classes > 0}
    return {"train": [], "order_version": VERSION, **size}


def _write(
    home: Path, experiment: Experiment, shape: ImageShape, tensors: Tensors, source: str, comm: Communicator
) -> None:
    """Write the run directory: its checkpoint of step 0, and config.yaml. A collective. Raises UserError."""
    state = RunState(
        step=0,
        position=0,
        fingerprint="",
        shape=Shape(**shape._asdict()),
        experiment=experiment.model_dump(mode="json"),
        imported_from=source,
    )
    values = {
        f"{prefix}.{name}.{key}": TensorShard(tensor.clone(memory_format=torch.contiguous_format), (0,) * tensor.ndim)
        for prefix in ("net", *(ema_prefix(i) for i in range(len(experiment.ema.decays))))
        for name, nets in tensors.items()
        for key, tensor in nets.items()
    }
    commit(home / "checkpoints", 0, values if comm.main else {}, state.model_dump_json(indent=1), comm)
    comm.on_rank_zero(lambda: atomic_write(home / "config.yaml", dump_yaml(experiment)))
