"""Several values of a key in one word, `optimizer.lr=1e-4,2e-4`, and how they are told from one value with commas."""

from __future__ import annotations

from pydantic import BaseModel

from diffpipe.config.fields import fields_at, takes_free_text, takes_scalars
from diffpipe.errors import UserError


def sweep_values(model: type[BaseModel], word: str) -> list[str]:
    """The values of `key=a,b`; only the one of `key=a`.

    A comma in brackets, braces or quotes belongs to a value, and so does every comma of a key that takes free text,
    such as a path. A key that takes lists alone has lists as its values: `key=[1,2],[3,4]`. Raises UserError where a
    value is empty.
    """
    key, _, text = word.partition("=")
    fields = fields_at(model, key.split("."))
    if not fields or any(map(takes_free_text, fields)):
        return [text]
    values = split_values(word)
    bracketed = all(value[:1] in {"[", "{"} for value in values)
    return values if bracketed or any(map(takes_scalars, fields)) else [text]


def split_values(word: str) -> list[str]:
    """The values of `key=a,b`, whatever the key takes. Raises UserError where one is empty."""
    text = word.partition("=")[2]
    values, start, depth, quote = [], 0, 0, ""
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and (depth or not text[start:i].strip()):
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth = max(depth - 1, 0)
        elif character == "," and not depth:
            values.append(text[start:i].strip())
            start = i + 1
    values.append(text[start:].strip())
    if len(values) > 1 and not all(values):
        raise UserError(f"{word}: a value is missing before or after a comma")
    return values
