"""Run a function in several processes that form a gloo group, as a launcher would start them.

They are forks of the server of commands: `python -m tests.support.gloo_processes CALL` runs what was pickled there.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.commands import diffpipe


def run(world: int, function: Callable[..., Any], *args: Any, timeout: float = 600) -> list[Any]:
    """The result of `function(*args)` on each of `world` ranks. Raises RuntimeError with a failed rank's traceback."""
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call"
        call.write_bytes(pickle.dumps((function, args)))
        ended = diffpipe(call, processes=world, timeout=timeout, module="tests.support.gloo_processes")
        paths = [call.with_name(f"result-{rank}") for rank in range(world)]
        parts = [pickle.loads(path.read_bytes()) if path.exists() else (None, None) for path in paths]
    for rank, (failure, _) in enumerate(parts):
        if failure:
            raise RuntimeError(f"rank {rank} of {world} failed:\n{failure}")
    if ended.returncode:
        raise RuntimeError(f"a rank of {world} died:\n{ended.stderr}")
    return [result for _, result in parts]


def _main(call: Path) -> int:
    failure = result = None
    try:
        function, args = pickle.loads(call.read_bytes())
        result = function(*args)
    except BaseException:  # noqa: BLE001 (it is raised again by `run`)
        failure = traceback.format_exc()
    call.with_name(f"result-{os.environ['RANK']}").write_bytes(pickle.dumps((failure, result)))
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1])))
