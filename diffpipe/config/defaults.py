"""YAML files that inherit from others: `defaults: base.yaml` at the top of a config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from diffpipe.config.fields import field_models, fields_of
from diffpipe.config.kinds import kinds_of
from diffpipe.config.yaml_values import MAX_CHARACTERS, YamlError, parse_yaml, shortened
from diffpipe.errors import UserError
from diffpipe.files import open_regular, user_path

DEFAULTS = "defaults"
"""The key that names the files from which a file inherits. The merged config does not have it."""

_MOST_FILES = 100
"""Files that are read for one config, each as often as it is named: n files can name one another 2ⁿ times. Together
they have at most `MAX_CHARACTERS`."""


class MergedYaml(NamedTuple):
    """The merged values of a file and its defaults, without `defaults`.

    origins: the file that sets a dotted key, after those through which it was reached: `child.yaml → base.yaml`.
    """

    tree: dict[str, Any]
    origins: dict[str, str]


def read_merged(model: type[BaseModel], path: str | Path) -> MergedYaml:
    """Read a YAML file of a `model` and the files that its `defaults` name, relative to it: a path or a list of paths.

    A later one overrides an earlier one, and the file itself overrides all. Sections are merged key by key; a list or
    any other value is replaced. A section that names another `kind` replaces the inherited one whole, because its keys
    belong to its kind. An inherited section without `kind` is of the default one; where there is none, it is merged.
    Raises UserError with the chain of files.
    """
    return _read(model, user_path(path), [], [])


def _read(model: type[BaseModel], path: Path, above: list[Path], lengths: list[int]) -> MergedYaml:
    """above: the files whose `defaults` lead to this one. lengths: of all files read before; that of this is added."""
    chain = " → ".join(map(str, [*above, path]))
    if os.path.realpath(path) in map(os.path.realpath, above):
        raise UserError(f"{chain}: these files inherit from each other; remove `{DEFAULTS}` from one of them")
    text = _read_text(path, chain, named_by=above[-1] if above else None)
    lengths.append(len(text))
    if above and (len(lengths) > _MOST_FILES or sum(lengths) > MAX_CHARACTERS):
        raise UserError(
            f"{above[0]}: its `{DEFAULTS}` lead to more than {_MOST_FILES} files or {MAX_CHARACTERS} characters, where "
            f"a file counts as often as it is named; name fewer files"
        )
    own = _parse(text, chain)
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in _base_names(own.pop(DEFAULTS, []), chain):
        base = _read(model, path.parent / user_path(name), [*above, path], lengths)
        tree = _merge(tree, base.tree, [model])
        origins |= base.origins
    return MergedYaml(_merge(tree, own, [model]), origins | dict.fromkeys(_dotted(own), chain))


def _open(path: Path, *, regular: bool) -> int:
    """A descriptor of the file. regular: refuse any other kind; otherwise a pipe is read, as of `train <(…)`.

    A pipe without a writer is empty: it is not waited for.
    """
    if regular:
        return open_regular(path, follow_links=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _read_text(path: Path, chain: str, named_by: Path | None) -> str:
    """The text of one file, cut where it is too long. chain: names it in errors. named_by: the file that names it."""
    try:
        with os.fdopen(_open(path, regular=named_by is not None), encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS + 1)
    except OSError as error:
        remedy = "give the config first, and key=value words after it" if "=" in str(path) else "give a YAML file"
        if (path / "config.yaml").is_file():
            remedy = f"give {path / 'config.yaml'}"
        if named_by:
            remedy = f"correct `{DEFAULTS}` in {named_by}"
        raise UserError(f"{chain}: cannot read the config ({error.strerror}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{chain}: not valid YAML: {error.reason} at byte {error.start}; write it in UTF-8") from error


def _parse(text: str, chain: str) -> dict[str, Any]:
    """The mapping at the top of one file."""
    try:
        tree = parse_yaml(text)
    except YamlError as error:
        raise UserError(f"{chain}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{chain}: a config is a mapping of sections such as `data:` and `train:`")
    return tree


def _base_names(value: Any, chain: str) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str) and name for name in names):
        given = shortened(repr(value), 80)
        raise UserError(f"{chain}: {DEFAULTS} is {given}; give the path of a YAML file, or a list of them")
    return names


def _merge(base: dict[str, Any], over: dict[str, Any], models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """`over` laid over `base`. models: the config classes that the section may be of."""
    inherited = base.get("kind", _default_kind(models))
    if "kind" in over and inherited is not None and over["kind"] != inherited:
        return over
    models = [model for model in models if _may_be(model, over.get("kind", base.get("kind")))]
    merged = {**base, **over}
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            fields = [fields_of(model)[key] for model in models if key in fields_of(model)]
            merged[key] = _merge(base[key], value, [model for field in fields for model in field_models(field)])
    return merged


def _default_kind(models: Sequence[type[BaseModel]]) -> Any:
    """The kind of a section that names none, where one of its classes has a default."""
    fields = [fields_of(model).get("kind") for model in models]
    return next((field.default for field in fields if field and not field.is_required()), None)


def _may_be(model: type[BaseModel], kind: Any) -> bool:
    return kind is None or "kind" not in fields_of(model) or kind in kinds_of(model)


def _dotted(tree: dict[Any, Any], prefix: str = "") -> list[str]:
    """The dotted keys of all sections and values in a tree."""
    keys = []
    for key, value in tree.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys
