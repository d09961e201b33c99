"""From a YAML file and `key=value` words to a validated config."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from diffpipe.config.base import Config
from diffpipe.config.complaints import complaints
from diffpipe.config.defaults import read_merged
from diffpipe.config.fields import fields_of
from diffpipe.config.kinds import kinds_of, models_in
from diffpipe.config.overrides import override
from diffpipe.config.yaml_values import shortened
from diffpipe.errors import UserError, all_of

T = TypeVar("T", bound=BaseModel)

_NAMED_COMPLAINTS = 10
_MAX_COMPLAINT = 500


def load_config(model: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` and its `defaults`, lay the overrides (`train.steps=100`) over them, and validate.

    Raises UserError that names the file, the key, and what it should be.
    """
    tree, origins = read_merged(model, path)
    all_of(*(functools.partial(override, model, tree, word) for word in overrides))
    return validate(model, tree, source=str(path), overrides=overrides, origins=origins)


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def validate(
    model: type[T],
    tree: dict[str, Any],
    source: str | None,
    overrides: Sequence[str] = (),
    origins: Mapping[str, str] | None = None,
) -> T:
    """Build `model` from a tree of plain values. Raises UserError with the first complaints on one line.

    source: the file that the tree is from, which the error names unless all complaints are about `overrides`. origins:
    the file of each dotted key, where it may be another one.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        found = complaints(model, error)
        words = {word.partition("=")[0] for word in overrides}
        overridden = all(_is_overridden(complaint.key, words) for complaint in found)
        named = [
            (
                None if overridden else _origin(complaint.key, origins or {}, source),
                shortened(complaint.sentence, _MAX_COMPLAINT),
            )
            for complaint in found[:_NAMED_COMPLAINTS]
        ]
        more = [f"and {len(found) - _NAMED_COMPLAINTS} more"] if len(found) > _NAMED_COMPLAINTS else []
        groups = [
            (f"{file}: " if file else "") + "; ".join(sentence for _, sentence in group)
            for file, group in itertools.groupby(named, key=itemgetter(0))
        ]
        user_error = UserError("; ".join([*groups, *more]))
        user_error.faults = [f"{file}: {sentence}" if file else sentence for file, sentence in named]
        raise user_error from error


def _origin(key: str, origins: Mapping[str, str], source: str | None) -> str | None:
    """The file that sets a key, or the list that the key is an item of; `source` where none does."""
    while key not in origins and key.rpartition(".")[2].isdigit():
        key = key.rpartition(".")[0]
    return origins.get(key, source)


def _is_overridden(key: str, words: set[str]) -> bool:
    """Whether an override is of this key, of a section that it is in, or of a key in it."""
    return bool(key) and any(f"{a}.".startswith(f"{b}.") for word in words for a, b in ((key, word), (word, key)))


def rename_keys(model: Any, tree: Any) -> Any:
    """The tree of plain values with every key that was renamed under the name that `model` has for it now."""
    models = models_in(model)
    if not models or not isinstance(tree, dict):
        return tree
    tagged = [m for m in models if "kind" in m.model_fields and tree.get("kind") in kinds_of(m)]
    model = tagged[0] if len(models) > 1 and tagged else models[0]
    renamed = model.renamed if issubclass(model, Config) else {}
    tree = {renamed.get(key, key): value for key, value in tree.items()}
    fields = fields_of(model)
    return {key: rename_keys(fields[key].annotation, value) if key in fields else value for key, value in tree.items()}
