"""Make a run directory of weights that were trained elsewhere: to sample from, to score, to train further."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from diffpipe.config import dump_yaml, override, validate
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.interop.guided_diffusion import AttentionOrder
from diffpipe.experiment.interop.source import ImportOptions, Tensors, read_source
from diffpipe.experiment.run import build_stage
from diffpipe.files import atomic_write, user_path
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import parse_resolution
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.state import RunState, Shape
from diffpipe.train.checkpoint.write import TensorShard, commit
from diffpipe.train.distributed import Communicator
from diffpipe.train.ema import prefix as ema_prefix
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values


class ImportedRun(NamedTuple):
    """The run that was made. notes: sentences on what its sampler does otherwise than the source's."""

    experiment: Experiment
    shape: ImageShape
    parameters: int
    notes: list[str]


class OpenSource(NamedTuple):
    """The config of a run of a source's weights, and the tensors of its networks.

    blank: the tensors without values. read: reads them; it raises UserError where the source holds others. notes: as in
    `ImportedRun`.
    """

    experiment: Experiment
    shape: ImageShape
    blank: Tensors
    read: Callable[[], Tensors]
    notes: list[str]


def import_run(
    source: str | Path,
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    classes: int | None = None,
    codec: str | Path | None = None,
    resolution: int | Sequence[int] | None = None,
    attention_order: AttentionOrder | None = None,
) -> ImportedRun:
    """Make a run directory of a diffusers folder, a file of `diffpipe export`, or another state dict.

    Its one checkpoint, of step 0, has the weights as the trained and as the averaged ones, and no optimizer state:
    training it further begins with a fresh one. overrides: `key=value` words laid over its config. classes: of a folder
    whose network has a class embedding. codec: the VAE run of a network that denoises latents. resolution: a
    side, or (height, width). It and attention_order are for a state dict of guided-diffusion, which tells neither.
    Raises UserError; then no checkpoint is left.
    """
    path, home = user_path(source), user_path(run)
    if checkpoints.committed(home / "checkpoints"):
        raise UserError(f"{home}: a run with checkpoints already; give another directory")
    words = [*([f"stage.codec.run={codec}"] if codec else []), *overrides]
    size = None if resolution is None else parse_resolution(resolution)
    options = ImportOptions(classes, Path(codec) if codec else None, size, attention_order)
    with Runtime.start("fp32", "cpu") as runtime:
        opened = open_source(path, run, words, options, runtime)
        tensors = opened.read()
        _write(home, opened.experiment, opened.shape, tensors, str(path), runtime.comm)
    count = sum(tensor.numel() for state in tensors.values() for tensor in state.values())
    return ImportedRun(opened.experiment, opened.shape, count, opened.notes)


def open_source(
    path: Path, run: str | Path, words: Sequence[str], options: ImportOptions, runtime: Runtime
) -> OpenSource:
    """The config of a run of a source's weights, and the weights, unread. A collective. Raises UserError.

    run: the directory of that run. words: `key=value` words laid over its config.
    """
    imported = read_source(path, options, runtime)
    tree = imported.tree | {"run": {"dir": str(run)}}
    for word in words:
        override(Experiment, tree, word)
    named = {word.partition("=")[0] for word in words}
    config = validate(Experiment, tree, str(path))
    try:
        experiment, stage, _ = build_stage(config, imported.shape, runtime, named=named)
    except UserError as error:  # it speaks of our keys, whose values are the source's
        raise UserError(f"{path}: {error}") from error
    blank = {name: net.state_dict() for name, net in without_values(stage).items()}
    return OpenSource(experiment, imported.shape, blank, lambda: imported.tensors(stage, blank), imported.notes)


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
    commit(home / "checkpoints", 0, values if comm.main else {}, state.text(), comm)
    comm.on_rank_zero(lambda: atomic_write(home / "config.yaml", dump_yaml(experiment)))
