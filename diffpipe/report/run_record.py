"""Everything that a report of one run needs, as the run directory has it now."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.experiment.run_status import RunStatus, read_status
from diffpipe.files import parse_json, read_regular
from diffpipe.report.config_table import RunConfigTable, read_config
from diffpipe.report.metrics_log import MetricsLog, read_metrics
from diffpipe.report.run_jobs import RunJob, read_jobs
from diffpipe.report.run_scores import RunScores, read_scores
from diffpipe.report.sample_grids import SampleGrids, read_grids
from diffpipe.run_folder import CHECKPOINTS, CONFIG, DAMAGED, METRICS, STATE, committed, step_of
from diffpipe.train.checkpoint.format import STATE_LIMIT
from diffpipe.train.checkpoint.state import RunState, parse_state

_MOST_STEPS = 1 << 53  # a stranger's checkpoint may have any number in its name


@dataclass(frozen=True)
class RunRecord:
    """One run.

    state: of its newest checkpoint that can be read; it is not verified. read_at: in seconds since 1970.
    """

    home: Path
    log: MetricsLog
    config: RunConfigTable
    jobs: Sequence[RunJob]
    grids: SampleGrids
    scores: RunScores
    checkpoints: Sequence[int]
    damaged: Sequence[str]
    state: RunState | None
    status: RunStatus
    read_at: float

    @property
    def step(self) -> int:
        """The last step that is known."""
        steps = [self.log.last("step") or 0.0, *self.checkpoints[:1], *(job.last for job in self.jobs[-1:])]
        return int(min(max(steps), _MOST_STEPS))

    @property
    def last_step(self) -> int | None:
        """The step that training ends with, as far as it is known."""
        if (expected := self.log.last("last_step")) is not None:
            return int(expected)
        experiment = self.config.experiment
        return None if experiment is None else experiment.train.steps


def read_run(home: Path) -> RunRecord:
    """Read a run directory. Raises UserError where it is none, or where its log cannot be read."""
    if not home.is_dir():
        raise UserError(f"{home}: no such directory; give a run directory")
    if not any((home / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS)):
        raise UserError(f"{home}: not a run directory: no config.yaml, metrics.jsonl or checkpoints in it; give one")
    try:
        log = read_metrics(home / METRICS)
        paths = committed(home / CHECKPOINTS)
        grids = read_grids(home / "samples")
        damaged = sorted(path.name for path in (home / CHECKPOINTS).glob(f"{DAMAGED}*"))
    except OSError as error:
        raise UserError(f"{error.filename or home}: {error.strerror}; make it readable") from error
    now = time.time()
    status = read_status(home, now)
    return RunRecord(
        home=home,
        log=log,
        config=read_config(home / CONFIG),
        jobs=read_jobs(home, log, running=status.state == "running"),
        grids=grids,
        scores=read_scores(home / "scores", log),
        checkpoints=[step_of(path) for path in paths],
        damaged=damaged,
        state=_newest_state(paths),
        status=status,
        read_at=now,
    )


def _newest_state(checkpoints: Sequence[Path]) -> RunState | None:
    for path in checkpoints:
        try:
            tree = parse_json(read_regular(path / STATE, limit=STATE_LIMIT))
            return parse_state(tree, tree["format"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return None
