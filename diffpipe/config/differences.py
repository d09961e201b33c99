"""The keys in which two configs differ."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffpipe.config.yaml_values import one_line

MISSING: Any = object()
"""The value of a key that one of the two configs does not have, as where they are of different kinds."""


class Difference(NamedTuple):
    """A dotted key and its two values, of which one may be MISSING."""

    key: str
    first: Any
    second: Any

    def __str__(self) -> str:
        first, second = ("(absent)" if v is MISSING else one_line(v) for v in (self.first, self.second))
        return f"{self.key}: {first} → {second}"

    def as_dict(self) -> dict[str, Any]:
        """The key and its values for JSON; one that is MISSING is left out."""
        return {name: value for name, value in self._asdict().items() if value is not MISSING}


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[Difference]:
    """The keys whose values differ between two trees of plain values, in the order of the first, then of the second."""
    one, other = flatten(first), flatten(second)
    pairs = [Difference(key, one.get(key, MISSING), other.get(key, MISSING)) for key in {**one, **other}]
    return [pair for pair in pairs if pair.first != pair.second]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree by their dotted keys. A list is a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
