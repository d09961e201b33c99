"""From a YAML file and `key=value` words to a validated config, and from pydantic's complaints to one line each."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from diffpipe.config import kinds
from diffpipe.config.base import Config
from diffpipe.config.defaults import read_merged
from diffpipe.config.fields import field_models, fields_of
from diffpipe.config.kinds import kinds_of, models_in
from diffpipe.config.overrides import override
from diffpipe.config.yaml_values import shortened
from diffpipe.errors import UserError

T = TypeVar("T", bound=BaseModel)

_NAMED_COMPLAINTS = 10
_MAX_COMPLAINT = 500


def load_config(model: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` and its `defaults`, lay the overrides (`train.steps=100`) over them, and validate.

    Raises UserError that names the file, the key, and what it should be.
    """
    tree, origins = read_merged(model, path)
    for word in overrides:
        override(model, tree, word)
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
        errors = error.errors()
        keys = [".".join(_walk(model, e["loc"])[0]) for e in errors]
        words = {word.partition("=")[0] for word in overrides}
        overridden = all(_is_overridden(key, words) for key in keys)
        named = [
            (None if overridden else _origin(key, origins or {}, source), _complaint(model, dict(e)))
            for key, e in zip(keys[:_NAMED_COMPLAINTS], errors, strict=False)
        ]
        more = [f"and {len(errors) - _NAMED_COMPLAINTS} more"] if len(errors) > _NAMED_COMPLAINTS else []
        groups = [
            (f"{file}: " if file else "") + "; ".join(shortened(complaint, _MAX_COMPLAINT) for _, complaint in group)
            for file, group in itertools.groupby(named, key=itemgetter(0))
        ]
        raise UserError("; ".join([*groups, *more])) from error


def _origin(key: str, origins: Mapping[str, str], source: str | None) -> str | None:
    """The file that sets a key, or the list that the key is an item of; `source` where none does."""
    while key not in origins and key.rpartition(".")[2].isdigit():
        key = key.rpartition(".")[0]
    return origins.get(key, source)


def _is_overridden(key: str, words: set[str]) -> bool:
    """Whether an override is of this key, of a section that it is in, or of a key in it."""
    return bool(key) and any(f"{a}.".startswith(f"{b}.") for word in words for a, b in ((key, word), (word, key)))


def _complaint(model: type[BaseModel], error: dict[str, Any]) -> str:
    """One validation error as `key: what is wrong`, with the nearest known key for an unknown one."""
    path, siblings, renamed = _walk(model, error["loc"])
    key = ".".join(path)
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(path, siblings, renamed)
        case "missing":
            return f"{key} is missing; add it to the file or give {key}=VALUE"
        case "union_tag_invalid" | kinds.UNKNOWN:
            return _unknown_kind(key, error)
        case "union_tag_not_found":
            return f"{key}.kind is missing; it says which kind of {key} this is"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{key}: {message}" if key else message
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            return f"{key}: {message}, not {shortened(repr(error['input']), 80)}"


def _unknown_kind(key: str, error: dict[str, Any]) -> str:
    """The kinds that are known, in the place of one that is not, and where others come from."""
    where = key if key.endswith(".kind") or key[-1].isdigit() else f"{key}.kind"
    known = f"{where} is {error['ctx']['tag']!r}; it is one of {error['ctx']['expected_tags']}"
    pluggable = error["type"] == kinds.UNKNOWN
    return known + ("; others come with --plugin MODULE or an installed package" if pluggable else "")


def _unknown_key(path: list[str], siblings: list[str], renamed: dict[str, str]) -> str:
    """The complaint about an unknown key: its new name, else the nearest known key, else all known keys."""
    key, section = ".".join(path), ".".join(path[:-1])
    if path[-1] in renamed:
        return f"{key} is called {'.'.join([*path[:-1], renamed[path[-1]]])} now; rename it"
    near = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.5)
    known = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known: {', '.join(siblings)}"
    return f"unknown key {key}" + (f" in section {section}" if section and not near else "") + f"; {known}"


def _walk(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], list[str], dict[str, str]]:
    """The dotted path of an error's location, without pydantic's own tags.

    And, beside its last part, the keys that are known and those that were renamed.
    """
    path: list[str] = []
    siblings: list[str] = []
    renamed: dict[str, str] = {}
    models = [model]
    for part in loc:
        if isinstance(part, int):  # in a list
            path.append(str(part))
            continue
        tagged = [m for m in models if len(models) > 1 and "kind" in m.model_fields and part in kinds_of(m)]
        if tagged:
            models = tagged
            continue
        fields = {key: field for m in models for key, field in fields_of(m).items()}
        siblings = sorted(fields)
        renamed = {old: new for m in models if issubclass(m, Config) for old, new in m.renamed.items()}
        if part not in siblings and part in {"str", "int", "float", "bool"}:
            continue  # a member of a plain union
        path.append(part)
        models = field_models(fields[part]) if part in fields else []
    return path, siblings, renamed


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
