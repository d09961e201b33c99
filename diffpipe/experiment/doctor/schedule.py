"""The steps of a run against what takes many of them: the warm-up, and snapshots of averages."""

from __future__ import annotations

from collections.abc import Iterator

from diffpipe.experiment.config import Experiment
from diffpipe.experiment.doctor.findings import Finding
from diffpipe.train.ema import PowerEMAConfig


def too_few_steps(experiment: Experiment) -> Iterator[Finding]:
    """A finding for a learning rate that never gets to its height, and for averages without a snapshot."""
    steps, warmup = experiment.train.steps, experiment.optimizer.warmup
    if warmup >= steps:
        yield Finding(
            "warning",
            f"optimizer.warmup={warmup} and train.steps={steps}: the run ends before its learning rate has risen to "
            f"optimizer.lr; set optimizer.warmup to a tenth of the steps or less",
        )
    ema = experiment.ema
    if isinstance(ema, PowerEMAConfig) and ema.snapshot_every > steps:
        yield Finding(
            "note",
            f"ema.snapshot_every={ema.snapshot_every} and train.steps={steps}: there will be no snapshots to make an "
            f"average of another length from; lower ema.snapshot_every for --ema",
        )
