"""The config of a run as rows, in which the values that differ from their defaults are marked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from diffpipe.config import validate
from diffpipe.config.yaml_values import parse_yaml
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.files import read_regular
from diffpipe.resolution import Resolution

_LONGEST = 400  # characters of a value
_LONGEST_FILE = 1 << 20
_FILLED_IN = {"class_names", "order_version", "sha256"}
"""Keys that training fills in where the config leaves them open: names from the index, a version, hashes."""


class ConfigRow(NamedTuple):
    """One key. default: as text; None where it has none, or where it is not known.

    changed: it has to be given, or the value differs from the default. filled_in: training may have filled it in.
    """

    key: str
    value: str
    default: str | None
    changed: bool
    filled_in: bool = False


class RunConfigTable(NamedTuple):
    """The rows of a config.yaml, and its plain values. problem: the reason why it cannot be read in full."""

    rows: Sequence[ConfigRow]
    tree: Mapping[str, Any]
    experiment: Experiment | None
    problem: str | None


def read_config(path: Path) -> RunConfigTable:
    """The config of a run. One of another version, or of a plug-in that is not loaded, has no defaults to compare."""
    try:
        # A resolved config: another file that it names, by `defaults`, is not read.
        tree = parse_yaml(read_regular(path, limit=_LONGEST_FILE).decode())
        if not isinstance(tree, dict):
            raise ValueError("it holds no sections")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return RunConfigTable([], {}, None, f"{path.name} cannot be read: {reason}")
    try:
        experiment = validate(Experiment, tree, str(path))
    except UserError as error:
        return RunConfigTable([*_plain_rows(tree)], tree, None, str(error))
    return RunConfigTable([*_rows(experiment)], tree, experiment, None)


def _rows(config: BaseModel, default: object = None, path: str = "") -> Iterator[ConfigRow]:
    """default: the config that stands here where none is given, of this or another kind; None where there is none."""
    for name, field in type(config).model_fields.items():
        key, value = f"{path}{field.alias or name}", getattr(config, name)
        if type(default) is type(config) or (name == "kind" and default is not None):
            required, normal = False, getattr(default, name)
        else:
            required = field.is_required()
            normal = None if required else field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            if type(normal) is not type(value):
                normal = _default_section(config, name)
            if normal is None and not required:
                yield ConfigRow(key, _text(value), _text(None), changed=True)
            yield from _rows(value, normal, f"{key}.")
        else:
            filled_in = name in _FILLED_IN and value != normal
            changed = (required or value != normal) and not filled_in
            yield ConfigRow(key, _text(value), None if required else _text(normal), changed, filled_in)


def _default_section(config: BaseModel, name: str) -> BaseModel | None:
    """The section that a config has where none is given: its kind may depend on other keys. None where it has none."""
    try:
        others = config.model_dump(by_alias=True, exclude={name})
        return getattr(type(config).model_validate(others), name)
    except ValidationError:
        return None


def _plain_rows(tree: object, path: str = "") -> Iterator[ConfigRow]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _plain_rows(value, f"{path}.{key}" if path else str(key))
    else:
        yield ConfigRow(path, _text(tree), None, changed=False)


def _text(value: Any) -> str:
    """A value as in YAML, on one line."""
    if isinstance(value, Resolution):
        value = value.plain()
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=lambda one: one.model_dump(mode="json"))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
