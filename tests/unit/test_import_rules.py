"""What import-linter cannot say: contracts about single modules of other packages."""

from __future__ import annotations

import ast
from pathlib import Path

import diffpipe

HOME = Path(diffpipe.__file__).parent


def imported(path: Path) -> set[str]:
    """Every dotted name that the file imports, `from a import b` as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_data_and_metrics_are_told_rank_and_world_size() -> None:
    for package in ("data", "metrics"):
        for path in (HOME / package).rglob("*.py"):
            assert not any(name.startswith("torch.distributed") for name in imported(path)), path
