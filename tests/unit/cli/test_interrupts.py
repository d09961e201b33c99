"""A command that a signal stops unwinds, and says so."""

from __future__ import annotations

import os
import signal

import pytest

from diffpipe.cli.interrupts import StoppedError, stop_cleanly


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_the_block(number: signal.Signals) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    unwound = False

    def work() -> None:
        nonlocal unwound
        with stop_cleanly("stopped"):
            try:
                os.kill(os.getpid(), number)
            finally:
                unwound = True

    with pytest.raises(StoppedError, match=r"^stopped$") as raised:
        work()
    assert raised.value.status == 130
    assert unwound
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == handlers
