"""A run's weights in one safetensors file, with its config and shape in the file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.experiment.run import Run
from diffpipe.files import parse_json
from diffpipe.train.checkpoint.state import FORMAT, RunState, parse_state

METADATA = "diffpipe"
"""The key of the metadata: the text of the checkpoint's state.json."""


class SingleFile(NamedTuple):
    """The state of the run that a file was made of, in the current form, the format it was written in, the weights."""

    state: RunState
    format: int
    weights: WeightsFile


def metadata(run: Run) -> dict[str, str]:
    """The metadata of a run's file. One key only: safetensors writes several in random order."""
    tree = run.experiment.model_dump(mode="json")
    return {METADATA: run.checkpoint.state.model_copy(update={"experiment": tree}).text(indent=None)}


def single_file_tensors(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of networks by name, under names of one file: `denoiser.stem.weight`."""
    return {f"{net}.{key}": tensor for net, state in tensors.items() for key, tensor in state.items()}


def read_single_file(path: Path) -> SingleFile:
    """A file that `diffpipe export RUN FILE` wrote, its weights unread. Raises UserError for another file."""
    weights = WeightsFile(path)
    text = weights.metadata.get(METADATA)
    if text is None:
        raise UserError(
            f"{path}: its metadata has no config of diffpipe; give a file that `diffpipe export RUN FILE.safetensors` "
            f"wrote, weights with the names of guided-diffusion or EDM2, or a diffusers folder"
        )
    try:
        tree = parse_json(text)
        written = tree["format"]
        if type(written) is not int or not 1 <= written <= FORMAT:
            raise UserError(
                f"{path}: written by another version of diffpipe (format {str(written)[:20]}; this one reads up to "
                f"{FORMAT}); update diffpipe"
            )
        return SingleFile(parse_state(tree, written), written, weights)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: its metadata is not what diffpipe writes ({str(error)[:300]})") from error


def network_tensors(file: SingleFile, expected: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each network. expected: theirs, without values. Raises UserError where the file has others."""
    named = single_file_tensors(expected)
    file.weights.require({name: tensor.shape for name, tensor in named.items()}, "the networks of its config")
    tensors = file.weights.read()
    return {
        net: {key: tensors[f"{net}.{key}"].to(t.dtype) for key, t in state.items()} for net, state in expected.items()
    }
