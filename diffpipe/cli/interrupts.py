"""Commands that leave nothing behind when a signal stops them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from diffpipe.errors import UserError
from diffpipe.process import INTERRUPTED


class StoppedError(UserError):
    """The command was stopped by a signal."""

    status = INTERRUPTED


@contextlib.contextmanager
def stop_cleanly(message: str) -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the block as Ctrl-C does. Raises StoppedError with the message for each."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in handlers.items():
        if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(message) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
