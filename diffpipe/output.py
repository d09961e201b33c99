"""The output of a command: its result on stdout, as text or as one JSON document, and all the rest on stderr."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Output:
    """The output of a command. A command adds to it; `main` prints the document at the end.

    as_json: the result is a JSON document instead of text. Until it is written, whatever is printed on stdout, by a
    library say, goes to stderr. quiet: of all that goes to stderr, only warnings and errors are printed.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False):
        self.as_json, self.quiet = as_json, quiet
        self._values: dict[str, Any] = {}
        self._files: list[Path] = []
        self._notes: list[str] = []
        self._stdout: TextIO | None = None
        self._descriptor: int | None = None

    def redirect(self, *, process: bool) -> None:
        """Send stdout to stderr where the result is a JSON document. process: that of compiled code, too."""
        if not self.as_json:
            return
        sys.stdout.flush()
        self._stdout, sys.stdout = sys.stdout, sys.stderr
        if process:
            self._descriptor = os.dup(1)
            os.dup2(2, 1)

    def restore(self) -> None:
        """End what `redirect` did."""
        if self._stdout is not None:
            sys.stdout, self._stdout = self._stdout, None
        if self._descriptor is not None:
            os.dup2(self._descriptor, 1)
            os.close(self._descriptor)
            self._descriptor = None

    def result(self, text: str, *files: Path, **values: Any) -> None:
        """Print a result, and on stderr the files or folders that hold it and that it does not name.

        files, values: the result as JSON; see `add`.
        """
        self.add(*files, **values)
        if not self.as_json:
            print(_without_controls(text), flush=True)  # noqa: T201
            for path in filter(lambda path: path not in text, map(str, files)):
                self.remark(path)

    def add(self, *files: Path, **values: Any) -> None:
        """Add files and values to the document: of a folder, all files in it. A list is added to that of its name."""
        for name, value in values.items():
            self._values[name] = self._values.get(name, []) + value if isinstance(value, list) else value
        self._files += files

    def note(self, text: str) -> None:
        """Print a remark on the result on stderr, and add it to the document."""
        self._notes.append(text)
        self.remark(f"note: {text}")

    def remark(self, text: str) -> None:
        """Print a line on stderr. A quiet command prints only those that begin with `warning: `."""
        if not self.quiet or text.startswith("warning: "):
            print(_without_controls(text), file=sys.stderr, flush=True)  # noqa: T201

    def document(self, command: str | None, status: int, error: str | None) -> str:
        """The JSON document: the command, its exit status, the error where there is one, and the result."""
        head = {"command": command, "status": status} | ({} if error is None else {"error": error})
        files = [file for path in self._files for file in _files(path)]
        tree = {**head, **self._values, "files": files, "notes": self._notes}
        return json.dumps(_plain(tree), indent=2, allow_nan=False)


def printable(text: str) -> str:
    """The text as a terminal shows it as it is: a name of a file may hold control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def _files(path: Path) -> list[Path]:
    """The file, or all files in the folder, in alphabetical order."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def utf8(text: str) -> str:
    """The text with escapes for what is not UTF-8: the name of a file may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _without_controls(text: str) -> str:
    """The lines of a text, whose characters that command a terminal or turn its direction are shown by their codes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _plain(value: Any) -> Any:
    """The value as JSON has it: a path as text, and null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


current = Output()
"""The output of the command that runs; that of a Python program is plain text."""
