"""The rows that a comparison is asked for: a run, the row's name, and how this row samples."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffpipe.errors import UserError
from diffpipe.files import user_path

# The keys that differ from `stage.sampler.KEY`; they are the names of the options of `diffpipe sample`.
CONFIG_KEYS = {"sampler": "stage.sampler.kind", "codec": "stage.codec.run"}


class ComparisonRow(NamedTuple):
    """One row of a comparison. overrides: `key=value` words for the run's config."""

    name: str
    path: Path
    overrides: tuple[str, ...] = ()


def comparison_rows(runs: Sequence[str], named: Sequence[Sequence[str]]) -> list[ComparisonRow]:
    """The rows of plain RUNs and of [NAME, RUN, key=value, …] lists, in this order. Raises UserError."""
    rows = [_plain_row(run) for run in runs] + [_named_row(words) for words in named]
    if not rows:
        raise UserError("no run to compare; give RUNs, or --row NAME RUN")
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{names.count(name)} rows are called {name}; give each its own name: --row NAME RUN")
    return rows


def _plain_row(word: str) -> ComparisonRow:
    """A row named after the run's directory."""
    path = user_path(word)
    if not path.exists() and ("=" in word or "," in word):
        raise UserError(f"{word!r} is not a run; to name a row or to change how it samples, write {_modern(word)}")
    absolute = path.resolve()
    return ComparisonRow(absolute.parents[1].name if absolute.parent.name == "checkpoints" else absolute.name, path)


def _named_row(words: Sequence[str]) -> ComparisonRow:
    option = f"--row {shlex.join(words)}"
    if len(words) < 2 or not all(words[:2]):
        raise UserError(f"{option}: write --row NAME RUN, with key=value settings after them if you like")
    name, run, *settings = words
    overrides = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not (key and equals and value):
            raise UserError(
                f"{option}: {setting!r} is not a setting; write key=value, such as steps=4, and other RUNs before --row"
            )
        overrides.append(f"{CONFIG_KEYS.get(key, f'stage.sampler.{key}')}={value}")
    return ComparisonRow(name, user_path(run), tuple(overrides))


def _modern(word: str) -> str:
    """The `--row` option that says what `[NAME=]RUN[,key=value…]`, the form of earlier versions, said."""
    head, *settings = word.split(",")
    name, equals, run = head.partition("=")
    if not equals:
        name, run = Path(head).name, head
    settings = [f"sampler={setting[5:]}" if setting.startswith("kind=") else setting for setting in settings]
    return f"--row {shlex.join([name or 'NAME', run or 'RUN', *settings])}"
