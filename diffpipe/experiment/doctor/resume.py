"""The checkpoint that a run would resume from, and the changes since then that `train` would refuse."""

from __future__ import annotations

from collections.abc import Iterator

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import all_of
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.experiment.resume_compat import allowed_changes, allowed_data_change
from diffpipe.interfaces import ImageShape
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.verify import Damage


def damaged(complaints: list[Damage]) -> Iterator[Finding]:
    """Findings on checkpoints that the job would skip."""
    for damage in complaints:
        yield Finding("warning", f"a damaged checkpoint: {damage}; the job goes on from an older one, or bring it back")


def changes(checkpoint: Checkpoint, experiment: Experiment, shape: ImageShape, shards: ShardSet) -> list[str]:
    """The changes since the checkpoint, all of them allowed. Raises UserError where `train` would refuse it."""
    config, data = all_of(
        lambda: [str(change) for change in allowed_changes(checkpoint, experiment, shape)],
        lambda: data_changes(checkpoint, experiment, shards),
    )
    return [*config, *data]


def data_changes(checkpoint: Checkpoint, experiment: Experiment, shards: ShardSet) -> list[str]:
    """The change of the data since the checkpoint, if there is one. Raises UserError where `train` would refuse it."""
    change = allowed_data_change(checkpoint, experiment, shards, experiment.run.path)
    return [] if change is None else [f"the data: {change}"]
