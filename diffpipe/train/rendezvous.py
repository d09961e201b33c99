"""How the processes of a job find each other, also after the launcher has restarted them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous


@functools.cache
def init_method() -> str:
    """The init method for the process group: torch's env://, with separate keys for each restart of the job."""
    register_rendezvous_handler("attempt", _rendezvous)
    return "attempt://"


def _rendezvous(_: str, timeout: timedelta, **__: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """The launcher's store outlives a restart and still holds the addresses of the dead processes.

    A new process that reads one waits for a dead one: so each attempt has its own prefix.
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if shared else "0"
    yield dist.PrefixStore(f"attempt {attempt}", store), rank, world
