"""The pace of a server: the least rate at which it has to send, and the pause that it asks for."""

from __future__ import annotations

import datetime
import email.utils
import os

from diffpipe.errors import UserError
from diffpipe.plural import plural

DEFAULT_LEAST_RATE = 10_000.0
"""Bytes per second. At this rate a shard of 100 MB takes three hours."""
LONGEST_PAUSE = 600.0  # seconds
_WINDOW = 30.0  # seconds
_SLOW_WINDOWS = 3


class SlowServerError(ConnectionError):
    """The connection is so slow that another one is worth a try."""


class LeastRate:
    """Adds up what arrives of a file and the time that was waited for it.

    A server that sends a byte now and then never meets a timeout, and its file never ends.
    """

    def __init__(self, name: str, rate: float | None = None):
        """name: of the file, for messages. rate: bytes per second; None: $DIFFPIPE_LEAST_RATE, else the default."""
        self._name, self._rate = name, least_rate() if rate is None else rate
        self._seconds, self._bytes, self._slow_windows = 0.0, 0, 0

    def count(self, seconds: float, received: int) -> None:
        """Raises SlowServerError after a slow half minute, and UserError after the third in a row."""
        self._seconds += seconds
        self._bytes += received
        if self._seconds < _WINDOW:
            return
        rate = self._bytes / self._seconds
        self._seconds, self._bytes = 0.0, 0
        if rate >= self._rate:
            self._slow_windows = 0
            return
        self._slow_windows += 1
        if self._slow_windows < _SLOW_WINDOWS:
            raise SlowServerError(f"it sends {plural(f'{rate:.0f}', 'byte')} per second")
        raise UserError(
            f"{self._name}: the server sends {plural(f'{rate:.0f}', 'byte')} per second, fewer than {self._rate:.0f}; "
            "try again later, or set data.least_rate or $DIFFPIPE_LEAST_RATE to a lower number (0: any)"
        )


def least_rate() -> float:
    """The least rate of $DIFFPIPE_LEAST_RATE, else the default. Raises UserError for what is no number."""
    text = os.environ.get("DIFFPIPE_LEAST_RATE") or str(DEFAULT_LEAST_RATE)
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not rate >= 0:
        raise UserError(f"DIFFPIPE_LEAST_RATE is {text!r}; give bytes per second, or 0 for any rate")
    return rate


def pause(retry_after: str | None) -> float:
    """The seconds that a `Retry-After` header asks to wait: a number or a date. 0 without a header that says so."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
