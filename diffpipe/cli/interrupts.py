"""Commands that leave nothing behind when a signal stops them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from diffpipe.errors import UserError


class StoppedError(UserError):
    """The command was stopped by a signal."""

    status = 130


@contextlib.contextmanager
def stop_cleanly(message: str) -> Iterator[None]:
    """Let SIGTERM unwind the block as Ctrl-C does. Raises StoppedError with the message for either."""
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(message) from None
    finally:
        signal.signal(signal.SIGTERM, handler)
