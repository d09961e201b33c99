"""Stop consensus in a single process: it knows at once, and a second interrupt aborts."""

from __future__ import annotations

import signal

import pytest

from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import Agreed, StopConsensus


def test_a_second_interrupt_aborts_a_single_process() -> None:
    with Runtime.start("fp32", "cpu") as runtime:
        stop_consensus = StopConsensus(runtime.comm)
        with stop_consensus.listening():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_flag_within_and_ends_the_process_outside(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop_consensus = StopConsensus(Communicator())
    with stop_consensus.listening():
        assert stop_consensus.poll() == Agreed(None, False)
        signal.raise_signal(number)
        assert stop_consensus.poll() == Agreed(number, False)
        assert stop_consensus.poll(failed=True) == Agreed(number, True)
    assert signal.getsignal(number) == before


def test_under_a_launcher_a_second_interrupt_is_the_first_one_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    stop_consensus = StopConsensus(Communicator())
    with stop_consensus.listening():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop_consensus.poll() == Agreed(signal.SIGINT, False)


def test_under_nohup_the_end_of_the_terminal_is_ignored_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop_consensus = StopConsensus(Communicator())
        with stop_consensus.listening():
            signal.raise_signal(signal.SIGHUP)
            assert stop_consensus.poll() == Agreed(None, False)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
