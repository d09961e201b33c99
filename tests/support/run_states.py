"""States of runs for tests that save checkpoints without a run."""

from __future__ import annotations

from typing import Any

from diffpipe.resolution import square
from diffpipe.train.checkpoint.state import RunState, Shape


def run_state(step: int, **fields: Any) -> RunState:
    """A state at this step, as small as can be."""
    settings: dict[str, Any] = {
        "position": 8 * step,
        "fingerprint": "0" * 64,
        "shape": Shape(channels=1, resolution=square(8)),
    }
    return RunState(**{"step": step, "experiment": {}, **settings, **fields})
