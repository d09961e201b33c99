"""Run a function in several processes that form a gloo group, as a launcher would start them."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch.multiprocessing as mp


def run(world: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """What `function(*args)` returns on each of `world` ranks. Raises RuntimeError with a failed rank's traceback."""
    context = mp.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, workers = [], []
    for rank in range(world):
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_main, args=(rank, world, port, sender, function, args), daemon=True)
        worker.start()
        sender.close()
        pipes.append(receiver)
        workers.append(worker)
    results = []
    try:
        for rank, pipe in enumerate(pipes):
            if not pipe.poll(timeout):
                raise RuntimeError(f"rank {rank} of {world} said nothing for {timeout} s")
            failure, result = pipe.recv()
            if failure:
                raise RuntimeError(f"rank {rank} of {world} failed:\n{failure}")
            results.append(result)
    finally:
        for worker in workers:
            worker.kill() if len(results) < world else worker.join()
    return results


def _main(rank: int, world: int, port: int, pipe: Connection, function: Callable[..., Any], args: tuple) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    try:
        pipe.send((None, function(*args)))
    except BaseException:  # noqa: BLE001 (it is raised again in the parent)
        pipe.send((traceback.format_exc(), None))
