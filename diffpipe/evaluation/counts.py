"""The number of images that is measured where none is asked for."""

from __future__ import annotations

from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

DEFAULT_COUNT = 1000


def note_count(requested: int | None, n: int, place: str, runtime: Runtime) -> None:
    """Say on stderr that the n images of a place are fewer than the default, where no number was requested."""
    if requested is None and n < DEFAULT_COUNT:
        print_on_rank_zero(runtime, f"n is {n} instead of {DEFAULT_COUNT}: {place} has no more images")
