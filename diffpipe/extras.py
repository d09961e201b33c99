"""Libraries that the base installation leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffpipe.errors import UserError


@contextmanager
def from_extra(extra: str) -> Iterator[None]:
    """Import inside what `pip install 'diffpipe[extra]'` brings. Raises UserError with this command where it is absent.

    A library that is there and fails to import raises its own ImportError.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or str(error)).partition(".")[0]
        raise UserError(f"{library} is not installed; install it with: pip install 'diffpipe[{extra}]'") from error
