"""Sources of samples to pack: an image and further members for each sample, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from diffpipe.data.index.scan import CLASS_DIGITS
from diffpipe.errors import UserError


@dataclass(frozen=True)
class PackItem:
    """One sample of a source.

    where: its name in error messages. image: encoded bytes, or pixels [h w] or [h w 3]; None where there is none.
    extension: that of an image whose bytes stay unchanged (None: by its format). members: the others, by extension.
    """

    where: str
    image: bytes | UInt8[np.ndarray, "h w *c"] | None
    extension: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Samples to pack. labels: one for each, or None. classes: the names of the classes, or None.

    It is passed to worker processes, forked or pickled.
    """

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def item(self, i: int) -> PackItem:
        """Sample i. Raises UserError where it cannot be read."""
        ...

    def names(self) -> Sequence[str]:
        """The name of each sample: a relative path or a key. Raises UserError where they have no names."""
        ...

    def column(self, name: str) -> Sequence[str]:
        """The values of a column of the labels file or the table. Raises UserError where there is no such column."""
        ...


def numbered(labels: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[list[int], list[str] | None]:
    """The labels as numbers, and the names of the classes.

    Numbers stay unchanged. Names are numbered by their place in `classes`, or else in alphabetical order. Raises
    UserError, which begins with `where`.
    """
    if all(label.isascii() and label.isdigit() for label in labels):
        longest = max(labels, key=len, default="")
        if len(longest) > CLASS_DIGITS:
            raise UserError(f"{where}: a label is {longest[:40]}…; number the classes from 0, or give names")
        numbers = [int(label) for label in labels]
        if classes is not None and max(numbers, default=-1) >= len(classes):
            raise UserError(f"{where}: a label is {max(numbers)}, but there are only {len(classes)} class names")
        return numbers, None if classes is None else list(classes)
    names = sorted(set(labels)) if classes is None else list(classes)
    number = {name: i for i, name in enumerate(names)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise UserError(f"{where}: a label is {unknown!r}, which --classes does not name; add it or correct the label")
    return [number[label] for label in labels], names
