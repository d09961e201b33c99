"""Numbers with their nouns in messages."""

from __future__ import annotations


def plural(n: int | str, one: str, many: str | None = None) -> str:
    """`1 image`, `2 images`. many: the plural where it is not the singular with an s; n may be formatted already."""
    return f"{n} {one if str(n) == '1' else many or one + 's'}"
