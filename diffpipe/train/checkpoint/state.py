"""The state of a run beside its tensors: `state.json`, typed and versioned, with a migration from each older format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_core import PydanticSerializationError

from diffpipe.output import utf8
from diffpipe.resolution import Resolution

FORMAT = 3
"""The format that is written. Every older one is read, through `MIGRATIONS`."""

RENAMED_PARTS = {1: {"denoiser": "unet", "flow_blocks": "blocks"}}
"""By format: today's name of a network or of a part of one, and the name in checkpoints of that format."""

MISSING_NETWORKS = {1: {"latent_scale"}}
"""By format: networks that its checkpoints lack. Loading leaves them as they are built."""


_MOST = 1 << 53
"""Steps and samples of a run: a float holds each number exactly."""


class LatentStatistics(BaseModel, extra="forbid", frozen=True):
    """Mean and standard deviation of each latent channel of a VAE, over so many images. Only format 1 wrote them."""

    mean: list[float]
    std: list[float]
    images: int = Field(ge=1)


class ValidationSet(BaseModel, extra="forbid", frozen=True):
    """The held-out samples of a run's validation losses. Losses are comparable where the samples are the same."""

    fingerprint: str
    n: int = Field(ge=1)


class TrainingTime(BaseModel, extra="forbid", frozen=True):
    """The time of training so far, for train.minutes: `seconds` from step `first` to step `step`, a log step."""

    first: int = Field(ge=0)
    step: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)


class Shape(BaseModel, extra="forbid", frozen=True):
    """The shape of the data: see `interfaces.ImageShape`."""

    channels: int = Field(ge=1, le=1 << 16)
    resolution: Resolution
    classes: int = Field(default=0, ge=0, le=1 << 31)


class RunState(BaseModel, extra="forbid", frozen=True):
    """The progress of a run: all that a resume needs besides the tensors.

    step: the number of finished optimizer steps. position: the next sample's position in the stream. skipped: the
    number of updates left out as not finite. bad_samples: the error message of each sample that could not be read.
    fingerprint: the shards'. experiment: the resolved config as plain values, with the keys of the checkpoint's format.
    time: of a run with train.minutes.
    imported_from: the folder or file of its weights, where they were trained elsewhere and no step has been made since:
    then there is no state of an optimizer, and training goes on with any data.
    """

    format: Literal[3] = FORMAT
    step: int = Field(ge=0, le=_MOST, strict=True)
    position: int = Field(ge=0, le=_MOST, strict=True)
    skipped: int = Field(default=0, ge=0)
    bad_samples: list[str] = []
    fingerprint: str
    shape: Shape
    experiment: dict[str, Any]
    latents: LatentStatistics | None = None
    reconstruction: dict[str, Any] | None = None
    validation: ValidationSet | None = None
    time: TrainingTime | None = None
    imported_from: str | None = None

    def text(self, indent: int | None = 1) -> str:
        """The state as JSON. Escapes stand for what is not UTF-8, as a name of a file or a key of a sample may be."""
        try:
            return self.model_dump_json(indent=indent)
        except PydanticSerializationError:
            return self.model_validate(_escaped(self.model_dump())).model_dump_json(indent=indent)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {key: _escaped(entry) for key, entry in value.items()}
    return [_escaped(entry) for entry in value] if isinstance(value, list | tuple) else value


def _from_format_1(tree: dict[str, Any]) -> dict[str, Any]:
    """Format 1 has `bad` for `bad_samples`. Its `identity` repeats the config, except for the data's fingerprint."""
    tree = dict(tree)
    identity = tree.pop("identity")
    return {"format": 2, "bad_samples": tree.pop("bad"), "fingerprint": identity["data"]["fingerprint"], **tree}


def _from_format_2(tree: dict[str, Any]) -> dict[str, Any]:
    """Format 2 differs in the config alone: see `experiment.stored_config`."""
    return {**tree, "format": tree["format"] + 1}  # not 3: a state of another format than its manifest says is refused


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_format_1, 2: _from_format_2}
"""By format: from its tree to the next format's."""


def parse_state(tree: Any, written: int) -> RunState:
    """The state from the parsed JSON of a checkpoint in format `written`.

    Raises ValueError, KeyError or TypeError where it is not a state.
    """
    for version in range(written, FORMAT):
        tree = MIGRATIONS[version](tree)
    return RunState.model_validate(tree)
