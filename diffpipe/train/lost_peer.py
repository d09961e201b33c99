"""torch's error where another process of the job has died or hangs, as a LostPeerError with a plain message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from diffpipe.errors import LostPeerError

# Words in the message of a failed collective. gloo and NCCL raise no common type that would tell it from other errors.
_LOST = ("connection closed by peer", "connection reset by peer", "timed out waiting", "broken pipe", "socket timeout")
_LOST += ("nccl communicator was aborted", "watchdog", "remote process exited", "unhandled system error")


@contextmanager
def lost_peer_errors() -> Iterator[None]:
    """Raise LostPeerError where a collective within fails because another process is gone or stuck."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized() and any(words in str(error).lower() for words in _LOST):
            reason = str(error).strip().splitlines()[0][:200]
            raise LostPeerError(
                f"rank {dist.get_rank()} has lost another process of the job, which has died or hangs ({reason}); "
                f"nothing was saved; the same command goes on from the last checkpoint"
            ) from error
        raise
