"""pydantic's complaints about a config, each as one sentence: what is wrong, where, and what to give."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffpipe.config import kinds
from diffpipe.config.base import Config
from diffpipe.config.fields import field_models, fields_of
from diffpipe.config.kinds import kinds_of
from diffpipe.config.reference import nearest_keys, type_in_words
from diffpipe.config.yaml_values import shortened
from diffpipe.nearest import did_you_mean, nearest

_WRONG_VALUE = re.compile(r".*_(type|parsing)|(greater|less)_than.*|finite_number|int_from_float")
"""pydantic's names of values that are not of the type of their key, or out of its bounds."""
_MEMBERS = {"str", "int", "float", "bool"}
"""pydantic's tags of members of a plain union."""
_PLAIN = {"int": "an integer", "float": "a number", "str": "text", "list": "a list", "mapping": "a mapping"}


class _Place(NamedTuple):
    """Where in a config an error is.

    path: the parts of the dotted key, without pydantic's own tags. siblings, renamed: the keys that are known beside
    its last part, and those that were renamed. field: the last field on the way. owner: the dotted key of that field.
    """

    path: list[str]
    siblings: list[str]
    renamed: dict[str, str]
    field: FieldInfo | None
    owner: str

    @property
    def key(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True)
class Complaint:
    """A complaint of pydantic about a config of the class `model`."""

    model: type[BaseModel]
    error: Mapping[str, Any]
    place: _Place

    @property
    def key(self) -> str:
        """The dotted key that it is about."""
        return self.place.key

    @property
    def sentence(self) -> str:
        """The fault of the key, and what to give. It takes some milliseconds: there may be thousands."""
        return _sentence(self.model, self.error, self.place)


def complaints(model: type[BaseModel], error: ValidationError) -> list[Complaint]:
    """The complaints in an error about a config of this class, at most one about the value of a key."""
    first: dict[tuple[str, str], Complaint] = {}  # pydantic has one for each member of a union
    for detail in error.errors():
        place, kind = _place(model, detail["loc"]), detail["type"]
        of_value = _WRONG_VALUE.fullmatch(kind) or kind == "literal_error"
        first.setdefault(("", place.owner) if of_value else (kind, place.key), Complaint(model, detail, place))
    return list(first.values())


def _sentence(model: type[BaseModel], error: Mapping[str, Any], place: _Place) -> str:
    key = place.key
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(model, place)
        case "missing" if not place.path[-1].isdigit():
            return f"{key} is missing; add it to the file or give {key}=VALUE"
        case "union_tag_invalid" | kinds.UNKNOWN | "literal_error":
            return _unknown_name(key, error, place)
        case "union_tag_not_found":
            known = [kind for one in field_models(place.field) for kind in kinds_of(one)] if place.field else []
            return f"{key}.kind is missing; it is one of {', '.join(map(repr, known))}"
        case "value_error":
            message = str(error["ctx"]["error"])
            return f"{key}: {message}" if key else message
        case _:
            return _wrong_value(key, error, place)


def _wrong_value(key: str, error: Mapping[str, Any], place: _Place) -> str:
    """A value that is not of the type of its key, or out of its bounds, and what the key takes."""
    words = "" if place.field is None else type_in_words(place.field)
    is_pair = words.startswith("[") and error["type"] in ("missing", "too_long")
    key = place.owner if is_pair else key
    wrong = f"{key} is {_shown(error['input'])}"
    if place.field is None or not (is_pair or _WRONG_VALUE.fullmatch(error["type"])):
        message = error["msg"]
        return f"{wrong}: {message[0].lower()}{message[1:]}"
    names = [name for model in field_models(place.field) for name in fields_of(model)]
    if names:
        several = key == place.owner and get_origin(place.field.annotation) is tuple
        what = "a list of sections with keys" if several else "a section with keys"
        example = f"{key}{'.0' if several else ''}.{'kind' if 'kind' in names else names[0]}"
        return f"{wrong}; it is {what} of its own, such as {example}"
    words = " or ".join(map(_plain, words.split(" or ")))
    return f"{wrong}; give {words}" if key == place.owner else f"{wrong}; {place.owner} takes {words}"


def _shown(value: Any) -> str:
    return "null" if value is None else shortened(repr(value), 80)


def _plain(words: str) -> str:
    """One type of the reference, such as `int ≥ 1`, as one says it."""
    head, space, rest = words.partition(" ")
    return words.replace(" | ", " or ") if " | " in words else f"{_PLAIN.get(head, head)}{space}{rest}"


def _unknown_name(key: str, error: Mapping[str, Any], place: _Place) -> str:
    """A kind or another word that is none of those that are known, the nearest of them, and where others come from."""
    about = error["ctx"]
    literal = error["type"] == "literal_error"
    is_section = not literal and place.field is not None and bool(field_models(place.field))
    value, known = (error["input"], about["expected"]) if literal else (about["tag"], about["expected_tags"])
    where = f"{key}.kind" if is_section else key
    wrong = f"{where} is {_shown(value)}; {'give' if literal else 'it is one of'} {known}"
    others = "; others come with --plugin MODULE or an installed package" if error["type"] == kinds.UNKNOWN else ""
    near = did_you_mean(value, re.findall("'([^']*)'", known)) if isinstance(value, str) else None
    return wrong + others + (f"; {near}" if near else "")


def _unknown_key(model: type[BaseModel], place: _Place) -> str:
    """The complaint about an unknown key: its new name, else the nearest known key, else all known keys beside it."""
    *sections, name = place.path
    key, section = place.key, ".".join(sections)
    if name in place.renamed:
        return f"{key} is called {'.'.join([*sections, place.renamed[name]])} now; rename it"
    near = [f"{section}.{sibling}" for sibling in nearest(name, place.siblings, n=1)] if sections else []
    near = near or [other for other in nearest_keys(model, name, alike=not sections) if other != key]
    if near:
        return f"unknown key {key}; did you mean {' or '.join(near)}?"
    where = f" in section {section}" if section else ""
    return f"unknown key {key}{where}; known: {', '.join(place.siblings)}"


def _place(model: type[BaseModel], loc: Sequence[int | str]) -> _Place:
    path: list[str] = []
    siblings: list[str] = []
    renamed: dict[str, str] = {}
    models, field, owner = [model], None, ""
    for part in loc:
        if isinstance(part, int):  # in a list
            path.append(str(part))
            continue
        tagged = [m for m in models if len(models) > 1 and "kind" in m.model_fields and part in kinds_of(m)]
        if tagged:
            models = tagged
            continue
        fields = {key: one for m in models for key, one in fields_of(m).items()}
        is_value = field is not None and not models and get_origin(field.annotation) is not dict
        if part not in fields and (is_value or part in _MEMBERS):
            continue
        siblings = sorted(fields)
        renamed = {old: new for m in models if issubclass(m, Config) for old, new in m.renamed.items()}
        path.append(part)
        if part in fields:
            field, owner = fields[part], ".".join(path)
            models = field_models(field)
        else:
            models = []
    return _Place(path, siblings, renamed, field, owner)
