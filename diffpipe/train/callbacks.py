"""Callbacks of a training that a Python program starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Callback:
    """The base of callbacks: override what you need. Rank 0 calls them, at the same moments as the trackers."""

    def on_log(self, values: Mapping[str, Any], step: int) -> None:
        """After a line was written to metrics.jsonl: its values, without the step."""

    def on_samples(self, path: Path) -> None:
        """After a grid of samples was written to this PNG file."""
