"""torch's errors over a lost process become one plain sentence, and no other error does."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from diffpipe.errors import LostPeerError
from diffpipe.train.lost_peer import lost_peer_errors

# The first lines of errors that gloo and NCCL have raised.
LOST = [
    "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242",
    "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1000ms for recv operation",
    "NCCL communicator was aborted on rank 0.",
]


def raises(message: str) -> None:
    with lost_peer_errors():
        raise RuntimeError(message)


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 3)


@pytest.mark.usefixtures("in_a_job")
@pytest.mark.parametrize("message", LOST)
def test_a_failed_collective_is_a_lost_peer(message: str) -> None:
    with pytest.raises(LostPeerError, match="rank 3 has lost another process of the job") as caught:
        raises(f"{message}\nand a long trace")
    assert message in str(caught.value)
    assert "trace" not in str(caught.value)
    assert caught.value.status == 1


@pytest.mark.usefixtures("in_a_job")
def test_another_error_stays_as_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes"):
        raises("mat1 and mat2 shapes cannot be multiplied")


def test_a_process_alone_has_no_peer_to_lose() -> None:
    with pytest.raises(RuntimeError, match=r"^Broken pipe"):
        raises("Broken pipe")
