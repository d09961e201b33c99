"""Rules that import-linter cannot check: single modules of other packages, and what the tests import."""

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


def test_data_and_metrics_do_not_import_torch_distributed() -> None:
    for package in ("data", "metrics"):
        for path in (HOME / package).rglob("*.py"):
            assert not any(name.startswith("torch.distributed") for name in imported(path)), path


TESTS = HOME.parent / "tests"


def test_no_module_of_the_tests_imports_a_test_module() -> None:
    for path in TESTS.rglob("*.py"):
        for name in imported(path):
            parts = name.split(".")
            assert parts[0] != "tests" or not any(part.startswith("test_") for part in parts), (path, name)


def test_tests_and_scripts_import_the_library_and_no_command() -> None:
    """A test of a command goes through `diffpipe.__main__`. tests/unit/cli holds those of the modules of cli."""
    for folder in ("tests", "eval"):
        for path in (HOME.parent / folder).rglob("*.py"):
            if not path.is_relative_to(HOME.parent / "tests" / "unit" / "cli"):
                assert not any(name.startswith("diffpipe.cli") for name in imported(path)), path
