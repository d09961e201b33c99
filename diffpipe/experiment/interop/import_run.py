"""Make a run directory of weights that were trained elsewhere: to sample from, to score, to train further."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffpipe.config import dump_yaml, override, validate
from diffpipe.data.loader.order import VERSION
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.interop.diffusers_folder import our_tensors, read_folder
from diffpipe.experiment.interop.single_file import network_tensors, read_single_file
from diffpipe.experiment.run import build_stage
from diffpipe.experiment.stored_config import stored_config
from diffpipe.files import atomic_write, user_path
from diffpipe.interfaces import ImageShape
from diffpipe.stages.ddpm import DENOISER
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

    `tensors` takes the networks' own, without values, to compare with.
    """

    tree: dict[str, Any]
    shape: ImageShape
    tensors: Callable[[Tensors], Tensors]
    notes: list[str]


class ImportedRun(NamedTuple):
    """The run that was made. notes: sentences on what its sampler does otherwise than the source's."""

    experiment: Experiment
    shape: ImageShape
    parameters: int
    notes: list[str]


def import_run(
    source: str | Path, run: str | Path, overrides: Sequence[str] = (), *, classes: int | None = None
) -> ImportedRun:
    """Make the run directory `run` of a diffusers folder, or of a file that `diffpipe export RUN FILE` wrote.

    Its one checkpoint, of step 0, has the weights as the trained and as the averaged ones, and no optimizer state:
    training it further begins with a fresh one. overrides: `key=value` words laid over its config. classes: of a folder
    whose network has a class embedding. Raises UserError; then no checkpoint is left.
    """
    path, home = user_path(source), user_path(run)
    if checkpoints.committed(home / "checkpoints"):
        raise UserError(f"{home}: a run with checkpoints already; give another directory")
    imported = _of_folder(path, classes) if path.is_dir() else _of_file(path, classes)
    tree = imported.tree | {"run": {"dir": str(run)}}
    for word in overrides:
        override(Experiment, tree, word)
    experiment = validate(Experiment, tree, str(path))
    with Runtime.start("fp32", "cpu") as runtime:
        experiment, stage, _ = build_stage(experiment, imported.shape, runtime)
        tensors = imported.tensors({name: net.state_dict() for name, net in without_values(stage).items()})
        _write(home, experiment, imported.shape, tensors, str(path), runtime.comm)
    count = sum(tensor.numel() for state in tensors.values() for tensor in state.values())
    return ImportedRun(experiment, imported.shape, count, imported.notes)


def _of_folder(path: Path, classes: int | None) -> _Source:
    folder = read_folder(path)
    model = folder.model
    classes = _classes(path, model.rows, folder.classes if classes is None else classes)
    shape = ImageShape(model.channels, model.resolution, classes)
    stage = {
        "kind": "ddpm",
        "network": model.network.model_dump(mode="json"),
        "conditional": classes > 0,
        "label_dropout": 0.0 if classes == model.rows else 0.1,
        **folder.stage,
    }
    tree = {**_TRAINING, "data": {**_TRAINING["data"], **_data(shape)}, "stage": stage}
    return _Source(tree, shape, lambda nets: {DENOISER: our_tensors(folder, nets[DENOISER])}, folder.notes)


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
    return _Source(tree, shape, functools.partial(network_tensors, file), [])


def _data(shape: ImageShape) -> dict[str, Any]:
    """The data section: no shards, and what the network fixes."""
    size = {"resolution": shape.resolution, "channels": shape.channels, "labels": shape.classes > 0}
    return {"train": [], "order_version": VERSION, **size}


def _classes(path: Path, rows: int | None, classes: int | None) -> int:
    """The number of classes of a network with so many rows in its class embedding. Raises UserError."""
    if rows is None and not classes:
        return 0
    if rows is None:
        raise UserError(f"{path}: its network has no class embedding; leave out --classes")
    if classes is None or not rows - 1 <= classes <= rows or classes < 1:
        raise UserError(
            f"{path}: its class embedding has {rows} rows; give --classes {rows}, or --classes {rows - 1} where the "
            f"last row is the empty label of classifier-free guidance"
        )
    return classes


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
