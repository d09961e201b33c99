"""The pace of a server: too slow is an error, and the pause that it asks for is kept."""

from __future__ import annotations

import datetime
import email.utils
import itertools

import pytest

from diffpipe.data.remote import rate
from diffpipe.data.remote.rate import LeastRate, SlowServerError, least_rate, pause
from diffpipe.errors import UserError


def test_a_byte_a_second_is_an_error_after_a_few_connections() -> None:
    pace, reconnected = LeastRate("http://host/a.tar", 1000.0), 0

    def read_on() -> None:
        nonlocal reconnected
        for _ in range(1000):
            try:
                pace.count(1.0, 1)
            except SlowServerError:
                reconnected += 1

    with pytest.raises(UserError, match=r"a\.tar: the server sends 1 byte per second, fewer than 1000; try again"):
        read_on()
    assert reconnected == 2


def test_a_server_that_recovers_is_read_on() -> None:
    pace, slow = LeastRate("a.tar", 1000.0), 0
    for received in itertools.islice(itertools.cycle([1] * 60 + [5000] * 60), 600):
        try:
            pace.count(1.0, received)
        except SlowServerError:
            slow += 1
    assert slow > 2  # of never three in a row


def test_only_the_time_that_is_waited_counts() -> None:
    pace = LeastRate("a.tar", 1000.0)
    for _ in range(10_000):
        pace.count(0.0001, 10)


def test_zero_allows_any_rate() -> None:
    pace = LeastRate("a.tar", 0.0)
    for _ in range(1000):
        pace.count(1.0, 0)


def test_the_rate_is_set_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFPIPE_LEAST_RATE", raising=False)
    assert least_rate() == rate.DEFAULT_LEAST_RATE
    monkeypatch.setenv("DIFFPIPE_LEAST_RATE", "12.5")
    assert least_rate() == 12.5
    for text in ("fast", "-1", "nan"):
        monkeypatch.setenv("DIFFPIPE_LEAST_RATE", text)
        with pytest.raises(UserError, match="give bytes per second, or 0 for any rate"):
            least_rate()


def test_a_pause_is_a_number_or_a_date() -> None:
    assert [pause(text) for text in ("7", " 120 ", "0")] == [7, 120, 0]
    assert [pause(text) for text in (None, "", "soon", "-3", "1.5", "Wed, 99 Foo 2026 99:99:99 GMT", "٣")] == [0] * 7
    assert pause("9" * 5000) >= 10**8
    now = datetime.datetime.now(datetime.UTC)
    assert 0 < pause(email.utils.format_datetime(now + datetime.timedelta(hours=1), usegmt=True)) <= 3600
    assert pause(email.utils.format_datetime(now - datetime.timedelta(hours=1), usegmt=True)) == 0
