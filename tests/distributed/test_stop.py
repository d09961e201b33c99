"""Stop consensus: all ranks agree after the same step, whichever rank got the signal."""

from __future__ import annotations

import os
import signal

import pytest

from diffpipe.errors import LostPeerError
from diffpipe.train.lost_peer import lost_peer_errors
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import Agreed, StopConsensus
from tests.support.gloo_processes import run


def polls(rank: int, number: int, fails: int) -> list[Agreed]:
    """Six polls; `rank` gets the signal after the second, and the rank `fails` fails after the fourth."""
    agreed: list[Agreed] = []
    with Runtime.start("fp32", "cpu") as runtime:
        stop_consensus = StopConsensus(runtime.comm)
        with stop_consensus.listening():
            for step in range(6):
                if step == 2 and runtime.rank == rank:
                    os.kill(os.getpid(), number)
                agreed.append(stop_consensus.poll(failed=runtime.rank == fails and step >= 4))
        runtime.comm.barrier()
    return agreed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_all_ranks_agree_one_step_after_one_rank_got_a_signal(number: signal.Signals) -> None:
    first, second = run(2, polls, 1, number, 0)
    assert first == second
    assert first == [*[Agreed(None, False)] * 3, *[Agreed(number, False)] * 2, Agreed(number, True)]


def test_a_single_process_knows_at_once() -> None:
    assert polls(0, signal.SIGTERM, 0)[2:5] == [*[Agreed(signal.SIGTERM, False)] * 2, Agreed(signal.SIGTERM, True)]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def survivor() -> str:
    """Rank 1 exits; the error of rank 0 in its next polls."""
    with Runtime.start("fp32", "cpu", timeout=120) as runtime:
        stop_consensus = StopConsensus(runtime.comm)
        stop_consensus.poll()
        if runtime.rank == 1:
            return ""
        try:
            with lost_peer_errors():
                for _ in range(3):
                    stop_consensus.poll()
        except LostPeerError as lost:
            return str(lost)
    return "rank 0 has missed nobody"


def test_an_exited_process_is_noticed_at_the_next_poll() -> None:
    message, _ = run(2, survivor)
    assert "rank 0 has lost another process of the job" in message
