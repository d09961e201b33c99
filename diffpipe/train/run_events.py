"""The events of a run, in events.jsonl: a line where a job starts or resumes, and one where it ends, with the reason.

A job that is killed writes no last line. So a start after a start says that the job before it was killed or lost.
"""

from __future__ import annotations

import functools
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from diffpipe.run_folder import EVENTS
from diffpipe.train.logs import LogFile, print_on_rank_zero
from diffpipe.train.runtime import Runtime

_LONGEST = 2000  # characters of an error


@contextmanager
def recorded_events(
    run_dir: Path, runtime: Runtime, step: Callable[[], int], *, resumed: bool
) -> Iterator[Callable[[signal.Signals], None]]:
    """Record that a job starts, or resumes, and how the block ends: `finish`, `stop` or `fail`. Rank 0 writes.

    step: the number of finished steps. Yields a function to call with the signal that stopped the job. The file never
    stops a run, as `LogFile`.
    """
    stopped_by: list[signal.Signals] = []
    if not runtime.main:
        yield stopped_by.append
        return
    warn = functools.partial(print_on_rank_zero, runtime)
    with closing(LogFile(run_dir / EVENTS, lambda _: True, lambda message: warn(f"warning: {message}"))) as file:

        def write(event: str, **values: Any) -> None:
            file.write({"step": step(), "event": event, "time": round(time.time(), 2), **values})

        write("resume" if resumed else "start", processes=runtime.world, host=socket.gethostname())
        try:
            yield stopped_by.append
        except BaseException as error:
            write("fail", error=f"{type(error).__name__}: {error}"[:_LONGEST])
            raise
        if stopped_by:
            write("stop", signal=stopped_by[0].name)
        else:
            write("finish")
