"""Data that tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import SHARDS, succeeds


@pytest.fixture(scope="session")
def few_test_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of four images of each class of Fashion-MNIST's test set: all 2,000 take a feature network 20 seconds."""
    folder = tmp_path_factory.mktemp("few") / "test"
    succeeds("pack", SHARDS / "test", folder, "--per-class", 4)
    return folder
