"""From a YAML file and `key=value` words to a validated config, and from pydantic's complaints to one line each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffpipe.config import kinds
from diffpipe.config.base import Config
from diffpipe.config.kinds import Kinds, kinds_of, models_in
from diffpipe.errors import UserError

T = TypeVar("T", bound=BaseModel)


def load_config(model: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path`, lay the overrides (`train.steps=100`) over it, and validate.

    Raises UserError that names the file, the key, and what it should be.
    """
    tree = read_yaml(path)
    for word in overrides:
        override(tree, word)
    return validate(model, tree, source=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file. Raises UserError."""
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the config ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections such as `data:` and `train:`")
    return tree


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def validate(model: type[T], tree: dict[str, Any], source: str) -> T:
    """Build `model` from a tree of plain values. Raises UserError with all complaints on one line."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        complaints = "; ".join(_complaint(model, dict(e)) for e in error.errors())
        raise UserError(f"{source}: {complaints}") from error


def override(tree: dict[str, Any], word: str) -> None:
    """Set `section.key=value` in a tree of plain values; the value is YAML. Raises UserError."""
    key, equals, text = word.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{word!r} is not an override: write key=value, such as train.steps=1000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{word!r}: the value is not valid YAML; quote it for the shell and for YAML") from error
    *sections, leaf = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"{word!r}: {section} is a value, not a section with keys in it")
    tree[leaf] = value


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
            return f"{key}: {message}, not {error['input']!r}"


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


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a config class by their keys."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def field_models(field: FieldInfo) -> list[type[BaseModel]]:
    """The config classes that a field's value, or an item of it, can have, those of plug-ins included."""
    args = get_args(field.annotation) if get_origin(field.annotation) is tuple else [field.annotation]
    models = [model for arg in args for model in models_in(arg)]
    return [*models, *(model for mark in field.metadata if isinstance(mark, Kinds) for model in mark.models())]


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
