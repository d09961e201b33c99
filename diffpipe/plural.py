"""Numbers with their nouns in messages."""

from __future__ import annotations


def plural(n: int | str, one: str, many: str | None = None) -> str:
    """`1 image`, `2 images`. many: the plural where it is not the singular with an s; n may be formatted already."""
    return f"{n} {one if str(n) == '1' else many or one + 's'}"


def duration(seconds: float) -> str:
    """A time in its two largest units, such as `1 h 20 min` or `45 s`."""
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
