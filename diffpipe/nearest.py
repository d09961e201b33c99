"""The known names that are most like a word which is none of them, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[object], n: int = 2) -> list[str]:
    """Up to n of the known names: the same but for capitals, those that begin with the word, or those most like it.

    Empty where no name is like it.
    """
    names = {str(name).casefold(): str(name) for name in known}
    small = word.casefold()
    if small in names:
        return [names[small]]
    near = [name for name in names if small and name.startswith(small)][:n]
    near = near or difflib.get_close_matches(small, names, n) or difflib.get_close_matches(small, names, 1, 0.5)
    return [names[name] for name in near]


def did_you_mean(word: str, known: Iterable[object], n: int = 2) -> str | None:
    """`did you mean …?` with the nearest of the known names, or None where no name is alike."""
    near = nearest(word, known, n)
    return f"did you mean {' or '.join(near)}?" if near else None
