"""What can be packed: samples in a fixed order, each an image and what else belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from diffpipe.errors import UserError


@dataclass(frozen=True)
class PackItem:
    """One sample as its source has it.

    where: what an error calls it. image: encoded, or pixels [h w] or [h w 3]; None where there is none. extension: the
    image's where its bytes stay as they are (None: what its first bytes say). members: the rest, by extension.
    """

    where: str
    image: bytes | UInt8[np.ndarray, "h w *c"] | None
    extension: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Samples to pack, with a label each (or none at all) and the names of the classes (or none).

    It goes to worker processes, forked or pickled.
    """

    @property
    def labels(self) -> Sequence[int] | None: ...

    @property
    def classes(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def item(self, i: int) -> PackItem:
        """Sample i. Raises UserError where it cannot be had."""
        ...

    def names(self) -> Sequence[str]:
        """What each sample is called: a relative path or a key. Raises UserError where they have no names."""
        ...

    def column(self, name: str) -> Sequence[str]:
        """What a column of the labels file or the table says of each sample. Raises UserError where there is none."""
        ...


def numbered(labels: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[list[int], list[str] | None]:
    """Labels as numbers, and the classes' names: numbers stay what they are, names are numbered.

    Names are numbered as they stand in `classes`, or else in alphabetical order. Raises UserError that begins with
    `where`.
    """
    if all(label.isascii() and label.isdigit() for label in labels):
        numbers = [int(label) for label in labels]
        if classes is not None and max(numbers, default=-1) >= len(classes):
            raise UserError(f"{where}: a label is {max(numbers)}, but there are only {len(classes)} class names")
        return numbers, None if classes is None else list(classes)
    names = sorted(set(labels)) if classes is None else list(classes)
    number = {name: i for i, name in enumerate(names)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise UserError(f"{where}: a label is {unknown!r}, which --classes does not name; add it or mend the label")
    return [number[label] for label in labels], names
