"""The fields of config classes, and the values that they take."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from diffpipe.config.kinds import Kinds, Names, models_in


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a config class by their keys."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def field_models(field: FieldInfo) -> list[type[BaseModel]]:
    """The config classes that a field's value, or an item of it, can have, those of plug-ins included."""
    args = get_args(field.annotation) if get_origin(field.annotation) is tuple else [field.annotation]
    models = [model for arg in args for model in models_in(arg)]
    return [*models, *(model for mark in field.metadata if isinstance(mark, Kinds) for model in mark.models())]


def fields_at(model: type[BaseModel], keys: list[str]) -> list[FieldInfo]:
    """The fields that `section.key` may be: several, where the kinds of a section have keys of one name."""
    models, fields = [model], []
    for key in keys:
        fields = [field for model in models for name, field in fields_of(model).items() if name == key]
        models = [model for field in fields for model in field_models(field)]
    return fields


def takes_words(field: FieldInfo) -> tuple[bool, bool, bool]:
    """Whether a field takes text and no number or boolean, whether it takes null, and whether a list."""
    members = _members(field.annotation)
    lists = [member for member in members if get_origin(member) in (list, tuple)]
    others = [member for member in members if member not in lists and member is not NoneType]
    words = str in others and all(member is str or _is_choice(member) for member in others)
    return words, NoneType in members, bool(lists)


def takes_free_text(field: FieldInfo) -> bool:
    """Whether a field takes any text, such as a path, and not only one of a few words."""
    return str in _members(field.annotation) and not any(isinstance(mark, Names) for mark in field.metadata)


def takes_scalars(field: FieldInfo) -> bool:
    """Whether a field takes a value that is neither a list nor a mapping."""
    others = (member for member in _members(field.annotation) if get_origin(member) not in (list, tuple, dict))
    return any(member is not NoneType and not models_in(member) for member in others)


def _members(annotation: Any) -> list[Any]:
    """The types in a union, or the one type."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for arg in get_args(annotation) for member in _members(arg)]
    return [annotation]


def _is_choice(annotation: Any) -> bool:
    return get_origin(annotation) is Literal and all(isinstance(word, str) for word in get_args(annotation))
