"""`python -m tests.faults.signal_before_step …` is `python -m diffpipe …` with a SIGTERM before its first step."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from diffpipe.__main__ import main
from diffpipe.experiment.job import Job

if __name__ == "__main__":
    prepare = Job.prepare

    def prepare_after_signal(*args: Any) -> Job:
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(*args)

    setattr(Job, "prepare", prepare_after_signal)  # noqa: B010 (no longer a class method)
    sys.exit(main())
