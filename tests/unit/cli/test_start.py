"""Help without the seconds that torch takes, and an example at its end."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diffpipe.__main__ import COMMANDS

HEAVY = ("torch", "numpy", "pydantic", "PIL", "matplotlib", "accelerate")

PROGRAM = f"""
import contextlib, sys
from diffpipe.__main__ import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
print([module for module in {HEAVY} if module in sys.modules], file=sys.stderr)
"""


def printed(*words: str) -> tuple[str, list[str]]:
    """The command's output, and its lines on stderr: the last one lists the heavy modules that it imported."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["smaple", "runs/a", "out"], []])
def test_words_without_a_command_import_nothing_heavy(words: list[str]) -> None:
    assert printed(*words)[1][-1] == "[]"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_imports_nothing_heavy_and_ends_with_an_example(command: str) -> None:
    out, errors = printed(command, "--help")
    assert errors == ["[]"]
    first, *lines = out.split("\nexample:")[1].splitlines()[1:]
    assert first.startswith(f"  diffpipe {command} ")
    assert all(line.startswith("  ") for line in lines)
