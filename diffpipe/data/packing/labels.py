"""Labels files: the label of each image, by its relative path, and further columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffpipe.errors import UserError
from diffpipe.files import parse_json, read_regular
from diffpipe.plural import plural

_LONGEST = 1 << 30  # bytes of a labels file
_PATH = ("path", "file_name", "filename", "file", "image")
_LABEL = ("label", "class")
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_labels(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a labels file by relative path. Each row maps column names, including "label", to values.

    CSV or TSV: with a header that names a path and a label column, or without a header the path and then the label.
    JSON lines: objects with a path and a label. Anything else is text: a path, spaces, a label. Raises UserError.
    """
    try:
        text = read_regular(file, follow_links=True, limit=_LONGEST).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); give a text file in UTF-8") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; give a text file in UTF-8") from error
    suffix = file.suffix.lower()
    if suffix in _JSON_LINES:
        rows = _json_rows(file, text)
    elif suffix in _SEPARATORS:
        rows = _csv_rows(file, text, _SEPARATORS[suffix])
    else:
        rows = _text_rows(file, text)
    by_path: dict[str, dict[str, str]] = {}
    for number, row in rows:
        path = _cell(file, number, row, _PATH)
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if path.startswith("/") or ".." in parts or not parts:
            raise UserError(f"{file}:{number}: {path!r} is not a relative path; give paths below the folder of images")
        path = "/".join(parts)
        if path in by_path:
            raise UserError(f"{file}:{number}: {path} is named twice; keep one row for each image")
        by_path[path] = {**row, "label": _cell(file, number, row, _LABEL)}
    if not by_path:
        raise UserError(f"{file}: no rows; give one for each image, with its path and its label")
    return by_path


def _cell(file: Path, number: int, row: dict[str, str], names: tuple[str, ...]) -> str:
    """The value of the first of these columns that the row has. Raises UserError where it is empty or missing."""
    value = next((row[name] for name in names if name in row), "")
    if not value:
        raise UserError(f"{file}:{number}: no {names[0]}; each row needs a path and a label")
    return value


def _csv_rows(file: Path, text: str, separator: str) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    header = [_PATH[0], _LABEL[0]]
    try:
        for cells in reader:
            row = [cell.strip() for cell in cells]
            words = [cell.lower() for cell in row]
            if reader.line_num == 1 and set(words) & set(_PATH):
                header = [lower if lower in _PATH + _LABEL else cell for lower, cell in zip(words, row, strict=True)]
            elif any(row):
                if len(row) < len(header):
                    raise UserError(
                        f"{file}:{reader.line_num}: {plural(len(row), 'cell')} for {len(header)}; correct the row"
                    )
                yield reader.line_num, dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: {error}; correct the row") from error


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in _lines(text):
        try:
            row: Any = parse_json(line)
        except ValueError as error:
            raise UserError(f"{file}:{number}: not JSON ({error}); give one object per line") from error
        if not isinstance(row, dict):
            raise UserError(f'{file}:{number}: not an object; give lines such as {{"path": "a.png", "label": "cat"}}')
        yield number, {key: str(value) for key, value in row.items() if type(value) in (str, int)}


def _text_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in _lines(text):
        words = line.rsplit(maxsplit=1)
        if len(words) < 2:
            raise UserError(f"{file}:{number}: no label; give lines of a path, a space and a label")
        yield number, {"path": words[0], "label": words[1]}


def _lines(text: str) -> Iterable[tuple[int, str]]:
    return ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip())
