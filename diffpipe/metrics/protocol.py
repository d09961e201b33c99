"""A score file: the numbers, their floor, and the protocol with everything that they depend on, as JSON."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffpipe import __version__
from diffpipe.errors import UserError
from diffpipe.files import atomic_write, parse_json, read_regular

_LONGEST = 1 << 26  # bytes of a score file

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Result:
    """A score: the return value of `evaluate`, and the content of a score file.

    scores, floor: by metric name; the floor is the same metric between real images and the reference.
    protocol: `metrics` (by metric name: extractor, sha256, resize, the metric's parameters), `generated` (n and the
    source), `reference` (n, fingerprint, …), `floor` (which real images), `versions`, `date`.
    """

    scores: dict[str, float]
    floor: dict[str, float]
    protocol: dict[str, Any]


def versions() -> dict[str, str]:
    """The versions that a score can depend on."""
    return {"diffpipe": __version__, "torch": str(torch.__version__)}


def provenance() -> dict[str, Any]:
    """The last entries of every protocol: `versions`, and `date` in UTC to the second."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "date": now}


def compare(a: Result, b: Result) -> list[str]:
    """The dotted names of the protocol's fields that define a score and differ: empty where a and b may be compared.

    They are n, the reference's n and fingerprint, and every entry of each metric that both have. The images themselves
    (`generated`), the versions, the floor and the date may differ. References without a fingerprint differ.
    """
    shared = sorted(a.scores.keys() & b.scores.keys())
    if not shared:
        return ["metrics"]
    fields = _defining(a, shared), _defining(b, shared)
    differing = {key for key in fields[0].keys() | fields[1].keys() if fields[0].get(key) != fields[1].get(key)}
    if fields[0].get("reference.fingerprint") is None:
        differing.add("reference.fingerprint")
    return sorted(differing)


def require_alike(a: Result, b: Result, names: tuple[str, str] = ("the first score", "the second")) -> None:
    """Raises UserError that lists each differing field with both values, unless `compare` finds none."""
    differing = compare(a, b)
    if differing == ["metrics"]:
        raise UserError(
            f"{names[0]} and {names[1]} share no metric: {', '.join(a.scores)} against {', '.join(b.scores)}"
        )
    if differing:
        shared = sorted(a.scores.keys() & b.scores.keys())
        left, right = _defining(a, shared), _defining(b, shared)
        values = "; ".join(f"{key}: {left.get(key)!r} against {right.get(key)!r}" for key in differing)
        raise UserError(
            f"{names[0]} and {names[1]} follow unlike protocols ({values}); evaluate both alike to compare them"
        )


def _defining(result: Result, metrics: list[str]) -> dict[str, Any]:
    protocol = result.protocol
    fields = {
        "generated.n": protocol.get("generated", {}).get("n"),
        "reference.n": protocol.get("reference", {}).get("n"),
        "reference.fingerprint": protocol.get("reference", {}).get("fingerprint"),
    }
    for metric in metrics:
        fields |= {f"metrics.{metric}.{key}": v for key, v in protocol.get("metrics", {}).get(metric, {}).items()}
    return fields


def write(result: Result, path: str | Path) -> None:
    """Write the score as JSON, whole or not at all. Raises UserError where the file cannot be written."""
    write_json(asdict(result), path)


def write_json(tree: Mapping[str, Any], path: str | Path) -> None:
    """Write the JSON values of a score and of anything beside it, as `write` does."""
    path = Path(path)
    text = json.dumps(tree, indent=2, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the scores ({error.strerror}); free some space, or write them elsewhere"
        ) from error


def read(path: str | Path) -> Result:
    """The score in a file that `write` made. Raises UserError."""
    try:
        tree = parse_json(read_regular(Path(path), follow_links=True, limit=_LONGEST))
    except OSError as error:
        raise UserError(f"{path}: cannot read the scores ({error.strerror}); give a score.json") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); give a score.json") from error
    return parse(tree, str(path))


def parse(tree: Any, source: str) -> Result:
    """A Result from the JSON's tree. Raises UserError, naming `source`, where a part is missing or of another kind."""
    parts = ("scores", "floor", "protocol")
    if not isinstance(tree, dict) or any(not isinstance(tree.get(part), dict) for part in parts):
        raise UserError(f"{source}: not a score file; it has to hold scores, floor and protocol")
    for part in ("scores", "floor"):
        _require_numbers(tree[part], f"{source}: {part}")
    return Result(*(tree[part] for part in parts))


def _require_numbers(values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{where}.{name} is {value!r}, which is no number")
