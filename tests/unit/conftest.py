"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from diffpipe import plugins
from diffpipe.train.runtime import Runtime


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """One process on the CPU, in float32 whatever the processor."""
    with Runtime.start("fp32", "cpu") as started:
        yield started


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plug-in is loaded when a test starts, and none that it loads outlives it: worker processes load them too."""
    monkeypatch.setattr(plugins, "_parts", {group: {} for group in plugins.GROUPS})
    monkeypatch.setattr(plugins, "_modules", [])
