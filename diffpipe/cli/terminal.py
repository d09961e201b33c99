"""What commands say to the person who started them: on stderr, from rank 0."""

from __future__ import annotations

import sys

from diffpipe.train.runtime import Runtime


def say(runtime: Runtime, message: str) -> None:
    """One line, from rank 0."""
    if runtime.main:
        print(message, file=sys.stderr, flush=True)
