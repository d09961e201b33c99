"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diffpipe.train.runtime import Runtime


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """One process on the CPU, in float32 whatever the processor."""
    with Runtime.start("fp32", "cpu") as started:
        yield started
