"""The latents of a loaded run, whose tools have tests in tests/unit/evaluation: a run without latents is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import diffpipe
from diffpipe.errors import UserError
from tests.support.commands import SHARDS


def test_a_run_without_latents_is_refused(tiny_run: Path) -> None:
    run, shards = diffpipe.load(tiny_run), str(SHARDS / "test")
    with pytest.raises(UserError, match="reconstructs no images"):
        run.reconstruct(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    for use in (lambda: run.latent_map(shards), lambda: run.move_attribute(shards, 0, 1)):
        with pytest.raises(UserError, match="has no latents"):
            use()
