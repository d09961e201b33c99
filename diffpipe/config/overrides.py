"""`key=value` words of the command line, laid over a tree of plain values."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from diffpipe.config.fields import fields_at, takes_words
from diffpipe.config.yaml_values import YamlError, parse_override, shortened
from diffpipe.errors import UserError


def override(model: type[BaseModel], tree: dict[str, Any], word: str) -> None:
    """Set `section.key=value` in the tree of plain values of a `model`. Raises UserError.

    Text for a key that takes text is the value, as typed: a path may have a `#`, and a name may be a number or a date.
    In quotes, or for another key, the value is read as YAML.
    """
    key, equals, text = word.partition("=")
    shown = shortened(word, 100)
    if not equals or not all(key.split(".")):
        raise UserError(f"{shown!r} is not an override: write key=value, such as train.steps=1000")
    *sections, leaf = key.split(".")
    value = _value(model, [*sections, leaf], text, shown)
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        tree = tree[section]
        if not isinstance(tree, dict):
            raise UserError(f"{shown!r}: {section} is a value, not a section with keys in it")
    tree[leaf] = value


def _value(model: type[BaseModel], keys: list[str], text: str, shown: str) -> Any:
    fields = [takes_words(field) for field in fields_at(model, keys)]
    if not fields or not all(words for words, _, _ in fields):
        try:
            return parse_override(text)
        except YamlError as error:
            raise UserError(f"{shown!r}: the value is not valid YAML: {error}") from error
    nullable, listed = any(null for _, null, _ in fields), any(several for _, _, several in fields)
    if text in ("", "null") or (nullable and text == "~"):
        return None
    if text[:1] in {'"', "'"} or (listed and text[:1] == "["):
        try:
            return parse_override(text)
        except YamlError:  # such as the glob [a-c]*.tar
            return text
    return text
