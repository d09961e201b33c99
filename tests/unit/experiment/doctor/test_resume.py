"""What has changed since the checkpoint, and checkpoints that would be skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.experiment.doctor.resume import changes, damaged
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.train.checkpoint import newest_valid
from diffpipe.train.checkpoint.verify import Damage
from diffpipe.train.distributed import Communicator
from tests.support.runs import indexed_shards, saved_run
from tests.support.stage_cases import CASES


def test_changes_are_named_where_they_are_allowed_and_else_refused(tmp_path: Path) -> None:
    shape = ImageShape(1, square(8), 10)
    saved_run(tmp_path / "run", steps=(3,))
    checkpoint, _ = newest_valid(tmp_path / "run" / "checkpoints", Communicator())
    assert checkpoint is not None
    shards = shard_set.load(indexed_shards(tmp_path / "images", 6))
    words = (f"run.dir={tmp_path / 'run'}", "data.allow_changes=true")
    seed, data = changes(
        checkpoint, CASES["ddpm"].experiment(*words, "seed=3", "run.allow_changes=[seed]"), shape, shards
    )
    assert seed == "seed was 0 and is 3"
    assert data.startswith("the data: its fingerprint was ")
    with pytest.raises(UserError, match="seed was 0 and is 3; restore the config"):
        changes(checkpoint, CASES["ddpm"].experiment(*words, "seed=3"), shape, shards)


def test_each_damaged_checkpoint_is_a_warning() -> None:
    (finding,) = damaged([Damage(Path("step-00000003"), "a.safetensors is missing")])
    assert finding.level == "warning"
    assert finding.problem == "a damaged checkpoint: step-00000003: a.safetensors is missing"
