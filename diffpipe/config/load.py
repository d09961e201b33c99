"""From a YAML file and `key=value` words to a validated config, and from pydantic's complaints to one line each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from diffpipe.config import kinds
from diffpipe.config.base import Config
from diffpipe.config.fields import field_models, fields_of
from diffpipe.config.kinds import kinds_of, models_in
from diffpipe.config.overrides import override
from diffpipe.config.yaml_values import MAX_CHARACTERS, YamlError, parse_yaml, shortened
from diffpipe.errors import UserError
from diffpipe.files import user_path

T = TypeVar("T", bound=BaseModel)

_NAMED_COMPLAINTS = 10
_MAX_COMPLAINT = 500


def load_config(model: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path`, lay the overrides (`train.steps=100`) over it, and validate.

    Raises UserError that names the file, the key, and what it should be.
    """
    tree = read_yaml(path)
    for word in overrides:
        override(model, tree, word)
    return validate(model, tree, source=str(path), overrides=overrides)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file. Raises UserError."""
    path = user_path(path)
    try:
        with path.open(encoding="utf-8") as file:
            tree = parse_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        remedy = "give the config first, and key=value words after it" if "=" in str(path) else "give a YAML file"
        raise UserError(f"{path}: cannot read the config ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid YAML: {error.reason} at byte {error.start}; write it in UTF-8") from error
    except YamlError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections such as `data:` and `train:`")
    return tree


def dump_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def validate(model: type[T], tree: dict[str, Any], source: str | None, overrides: Sequence[str] = ()) -> T:
    """Build `model` from a tree of plain values. Raises UserError with the first complaints on one line.

    source: the file that the tree is from, which the error names unless all complaints are about `overrides`.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        errors = error.errors()
        complaints = [shortened(_complaint(model, dict(e)), _MAX_COMPLAINT) for e in errors[:_NAMED_COMPLAINTS]]
        more = [f"and {len(errors) - _NAMED_COMPLAINTS} more"] if len(errors) > _NAMED_COMPLAINTS else []
        words = {word.partition("=")[0] for word in overrides}
        overridden = all(_is_overridden(".".join(_walk(model, e["loc"])[0]), words) for e in errors)
        prefix = "" if source is None or overridden else f"{source}: "
        raise UserError(f"{prefix}{'; '.join([*complaints, *more])}") from error


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
