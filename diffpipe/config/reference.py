"""The reference of a config's keys: each with its type, default and description."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from diffpipe.config.fields import field_models, fields_of
from diffpipe.config.kinds import Names, kinds_of
from diffpipe.config.yaml_values import one_line
from diffpipe.nearest import nearest


class Key(NamedTuple):
    """One key of a config.

    name: the dotted path. type: such as `int ≥ 1`. default: in YAML; None where a value has to be given.
    """

    name: str
    type: str
    default: str | None
    description: str


class Section(NamedTuple):
    """The keys of one config class, at one place in the config.

    title: the dotted path, and the values of `kind` that lead to the class.
    """

    title: str
    description: str
    keys: list[Key]


def sections(
    model: type[BaseModel], name: str = "", kinds: Sequence[str] = (), description: str = ""
) -> Iterator[Section]:
    """The sections of a config class: its own keys first, then those of its fields, in order."""
    keys, below = [], []
    for key, field in fields_of(model).items():
        path, models = f"{name}.{key}" if name else key, field_models(field)
        if not models:
            keys.append(Key(path, type_in_words(field), _default(field), _line(field.description)))
        for one in models:
            chosen = [*kinds, f"{path}.kind={'|'.join(map(str, kinds_of(one)))}"] if len(models) > 1 else kinds
            below.append((one, path, chosen, _line(field.description)))
    if keys:
        title = (name or "the top level") + (f" (with {', '.join(kinds)})" if kinds else "")
        yield Section(title, description, keys)
    for one, path, chosen, about in below:
        yield from sections(one, path, chosen, about)


def as_text(model: type[BaseModel], prefix: str = "") -> str:
    """The reference to read on a terminal; only the keys that begin with `prefix`."""
    blocks = []
    for section in sections(model):
        lines = [f"{section.title}: {section.description}" if section.description else section.title]
        for key in section.keys:
            if key.name.startswith(prefix):
                default = "required" if key.default is None else f"default {key.default}"
                lines += [f"  {key.name}  ({key.type}; {default})", f"      {key.description}"]
        if len(lines) > 1:
            blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def as_markdown(model: type[BaseModel]) -> str:
    """The reference as one table a section."""
    lines = []
    for section in sections(model):
        lines += [f"### {section.title}", "", *([section.description, ""] if section.description else [])]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in section.keys:
            default = "*required*" if key.default is None else f"`{key.default}`"
            cells = [f"`{key.name}`", key.type, default, key.description]
            lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]
        lines += [""]
    return "\n".join(lines)


def choices(model: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """Every key, with the words that its value may be; empty where it may be others."""
    found: dict[str, tuple[str, ...]] = {}
    for key in [key for section in sections(model) for key in section.keys]:
        words = tuple(key.type.split(" | "))
        found[key.name] = found.get(key.name, ()) + (words if all(map(str.isidentifier, words)) and words[1:] else ())
    return found


def nearest_keys(model: type[BaseModel], word: str, *, alike: bool = True) -> list[str]:
    """The keys and sections that a word may stand for: up to two that end with it, else the one most `alike`."""
    paths = {path for section in sections(model) for key in section.keys for path in _prefixes(key.name)}
    ending = sorted(path for path in paths if path.endswith(f".{word}"))
    fewest = min((path.count(".") for path in ending), default=0)
    highest = [path for path in ending if path.count(".") == fewest][:2]
    return highest or (nearest(word, sorted(paths), n=1) if alike else [])


def type_in_words(field: FieldInfo) -> str:
    """The type of a field's value, with its bounds, such as `int ≥ 1`."""
    return _type(field.annotation, field.metadata)


def _prefixes(key: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of the key `a.b.c`."""
    return list(itertools.accumulate(key.split("."), "{}.{}".format))


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    return one_line(list(value) if isinstance(value, tuple) else value)


def _type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """The type in words, with the bounds in its metadata."""
    args = get_args(annotation)
    match get_origin(annotation):
        case None if names := [mark for mark in metadata if isinstance(mark, Names)]:
            words = " | ".join(names[0].all())
        case None:
            words = "true | false" if annotation is bool else getattr(annotation, "in_words", annotation.__name__)
        case origin if origin is Annotated:
            return _type(args[0], [*args[1:], *metadata])
        case origin if origin is Literal:
            words = " | ".join(map(str, args))
        case origin if origin in (Union, UnionType):
            return " or ".join("null" if arg is NoneType else _type(arg, metadata) for arg in args)
        case origin if origin is dict:
            words = f"mapping from {_type(args[0])} to {_type(args[1])}"
        case origin if origin is list or args[-1] is ...:
            words = f"list of {_type(args[0])}"
        case _:
            words = f"[{', '.join(map(_type, args))}]"
    return words + _bounds(metadata)


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(metadata: Sequence[Any]) -> str:
    """The bounds of a number, from the metadata of its field."""
    flat = [one for item in metadata for one in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [
        f"{sign} {getattr(item, name)}"
        for item in flat
        for name, sign in _SIGNS.items()
        if isinstance(item, annotated_types.BaseMetadata) and hasattr(item, name)
    ]
    return " " + ", ".join(bounds) if bounds else ""
