"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import diffpipe
from diffpipe import plugins
from diffpipe.train.runtime import Runtime
from tests.support.commands import CONFIG
from tests.support.runs import TINY_WORDS


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    """One process on the CPU, in float32 whatever the processor."""
    with Runtime.start("fp32", "cpu") as started:
        yield started


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/tiny in a folder of its own: a class-conditional diffusion of Fashion-MNIST, trained for two steps."""
    run = tmp_path_factory.mktemp("tiny") / "runs" / "tiny"
    assert diffpipe.train(CONFIG, [*TINY_WORDS, f"run.dir={run}", "train.steps=2"]) is None
    return run


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plug-in is loaded when a test starts, and none that it loads outlives it: worker processes load them too."""
    monkeypatch.setattr(plugins, "_parts", {group: {} for group in plugins.GROUPS})
    monkeypatch.setattr(plugins, "_modules", [])
