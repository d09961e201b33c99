"""The JSON schema of a config file, by which editors complete, explain and check its keys."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from diffpipe.config.defaults import DEFAULTS

_DEFAULTS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": "A YAML file, or a list of them, from which this one inherits: each path is relative to this file. "
    "Later files override earlier ones, and this file overrides all.",
}


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the files that `load_config` reads.

    A file with `defaults` may hold any part of a config, so no key is required there, and a section need not name its
    kind. Of other files, only the sections are required: an editor would list required keys in them twice.
    """
    schema = model.model_json_schema()
    required = schema["required"]
    schema["properties"] = {DEFAULTS: _DEFAULTS, **schema["properties"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_partial(schema),
        "if": {"required": [DEFAULTS]},
        "else": {"required": required},
    }


def _partial(schema: Any, of_keys: bool = False) -> Any:
    """A schema and those in it, without required keys and without pydantic's titles, which repeat the keys.

    A section without `kind` may be of several classes, so a union is `anyOf`. of_keys: whether the keys of `schema` are
    a config's.
    """
    if isinstance(schema, list):
        return [_partial(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if of_keys:
        return {key: _partial(value) for key, value in schema.items()}
    partial = {}
    for key, value in schema.items():
        if key == "description":
            partial[key] = " ".join(value.split())
        elif key == "oneOf":
            partial["anyOf"] = _partial(value)
        elif key == "default":
            partial[key] = value
        elif key not in ("required", "title"):
            partial[key] = _partial(value, of_keys=key in ("properties", "$defs"))
    return partial
