"""The weights that a new run starts from (`run.init`): those of another run, a diffusers folder or an exported file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffpipe.errors import UserError, shell_command
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.find_checkpoint import find_checkpoint, find_pinned_checkpoint
from diffpipe.experiment.initial_fit import Fit, fit
from diffpipe.experiment.interop.diffusers_folder import read_folder, weights_file
from diffpipe.experiment.interop.import_run import open_source
from diffpipe.experiment.interop.single_file import METADATA, single_file_tensors
from diffpipe.experiment.interop.source import ImportOptions
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.experiment.stored_config import stored_config
from diffpipe.experiment.stored_tensors import blank_tensors, load_networks, load_part
from diffpipe.files import sha256_of, user_path
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.run_folder import is_run
from diffpipe.train.ema import prefix
from diffpipe.train.initialization import StartFunction
from diffpipe.train.lora import plain_name
from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import without_values

_KINDS = "give a run directory, one of its checkpoints, a diffusers folder, or a file of `diffpipe export`"


class InitialWeights(NamedTuple):
    """The weights to load before the first step.

    sha256: of the checkpoint's manifest.json, or of the file of weights. values: the tensors to load, by
    `network.tensor`; only rank 0 has them.
    """

    name: str
    sha256: str
    fit: Fit
    values: Mapping[str, Tensor]

    def start_function(self, start: StartFunction | None) -> StartFunction:
        """The function that loads them into fresh networks. start: the stage's own, which sets what stays fresh."""

        def load(nets: Mapping[str, nn.Module]) -> None:
            if start is not None and self.fit.fresh:
                start(nets)
            for name, net in nets.items():
                for key, tensor in net.state_dict().items():
                    if (value := self.values.get(f"{name}.{plain_name(key)}")) is not None:
                        tensor.copy_(value)

        return load

    def sentences(self) -> list[str]:
        """The tensors that are loaded and those that are not."""
        return [f"starting from {self.name}: {sentence}" for sentence in self.fit.sentences()]


class WeightsSource(NamedTuple):
    """Weights, unread. blank: their tensors by `network.tensor`, without values. read: reads those of these names."""

    name: str
    experiment: Experiment
    sha256: str
    blank: Mapping[str, Tensor]
    read: Callable[[list[str]], dict[str, Tensor]]


def weights_source(experiment: Experiment, shape: ImageShape, runtime: Runtime) -> WeightsSource | None:
    """The weights that `run.init` names, verified; None where it names none.

    A collective. Raises UserError, which begins with the key, where they cannot be read.
    """
    if experiment.run.init is None:
        return None
    path = user_path(experiment.run.init)
    with _named():
        if runtime.comm.on_rank_zero(lambda: is_run(path)):
            return _of_run(path, experiment, runtime)
        return _of_file(path, experiment, shape, runtime)


def initial_weights(source: WeightsSource, experiment: Experiment, stage: Stage, runtime: Runtime) -> InitialWeights:
    """The weights of a source that the stage's networks start from. A collective.

    Raises UserError, which begins with `run.init`, where they do not fit.
    """
    with _named():
        fitted = fit(source.blank, without_values(stage), source.experiment, experiment)
        read = lambda: _finite(source.read(fitted.loaded)) if runtime.main else {}  # noqa: E731
        values = runtime.comm.raise_on_all_ranks(read)
    return InitialWeights(source.name, source.sha256, fitted, values)


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Errors in the block begin with the key."""
    try:
        yield
    except UserError as error:
        raise UserError(f"run.init: {error}") from error


def _of_run(path: Path, experiment: Experiment, runtime: Runtime) -> WeightsSource:
    init = experiment.init
    if init.sha256 is None:
        found = find_checkpoint(path, runtime)
    else:
        found = find_pinned_checkpoint(path, init.sha256, runtime, role="initial weights", place="run.init=PATH")
    part = "net" if init.weights == "raw" else prefix(0)
    stored, blank = stored_config(found), blank_tensors(found)

    def read(names: list[str]) -> dict[str, Tensor]:
        tensors = {name: torch.empty_like(blank[name], device="cpu") for name in names}
        load_networks(found, tensors, part, functools.partial(load_part, found, part), stored.lora)
        return tensors

    return WeightsSource(f"{found.path} ({init.weights})", stored, found.manifest_sha256, blank, read)


def _of_file(path: Path, experiment: Experiment, shape: ImageShape, runtime: Runtime) -> WeightsSource:
    """The weights of a diffusers folder or of an exported file. Its hash is checked before anything in it is parsed."""
    init = experiment.init
    sha256 = runtime.comm.on_rank_zero(lambda: _hash(path))
    if init.sha256 not in (None, sha256):
        raise UserError(
            f"{path}: its weights have sha256 {sha256}, and init.sha256 is {init.sha256}; bring those weights back, or "
            f"leave init.sha256 out"
        )
    if init.weights == "raw":
        raise UserError(f"{path}: it holds one set of weights; leave init.weights out")
    codec = getattr(getattr(experiment.stage, "codec", None), "run", None)
    if path.is_dir():
        options = _folder_options(path, shape, codec)
    elif METADATA in WeightsFile(path).metadata:
        options = ImportOptions(codec=codec and Path(codec))
    else:
        command = shell_command("diffpipe", "import", path)
        raise UserError(f"{path}: not a file of `diffpipe export`; make a run of it first: {command} RUN")
    words = [f"stage.codec.run={codec}"] if options.codec else []
    opened = open_source(path, experiment.run.dir, words, options, runtime)
    return WeightsSource(
        str(path),
        opened.experiment,
        sha256,
        single_file_tensors(opened.blank),
        lambda names: {name: tensor for name, tensor in single_file_tensors(opened.read()).items() if name in names},
    )


def _hash(path: Path) -> str:
    """The hash of the file of weights. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; {_KINDS}")
    file = weights_file(path) if path.is_dir() else path
    try:
        return sha256_of(file)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; {_KINDS}") from error


def _folder_options(path: Path, shape: ImageShape, codec: str | None) -> ImportOptions:
    """The facts that a diffusers folder lacks. shape: of our images. codec: our VAE's run."""
    folder = read_folder(path)
    if folder.vae is not None and codec is None:
        raise UserError(f"{path}: its network denoises latents, and stage.codec.kind is pixels; set stage.codec")
    rows, classes = getattr(folder.model, "rows", None), None
    if rows is not None and folder.classes is None:
        # The last row may be the empty label. It is where our number of classes fits so.
        classes = max(1, min(max(shape.classes, rows - 1), rows))
    return ImportOptions(classes, Path(codec) if codec and folder.vae is not None else None)


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors. Raises UserError where a value is not finite."""
    bad = next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
    if bad is not None:
        raise UserError(f"{bad} has values that are not finite: its training diverged; take other weights")
    return tensors
