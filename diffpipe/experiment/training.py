"""Train a run from its config: join the job, lock the run directory, train, and leave."""

from __future__ import annotations

import functools
import signal
from collections.abc import Sequence

from diffpipe.data import own_places
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.job import Job
from diffpipe.experiment.preflight import open_data
from diffpipe.train.callbacks import Callback
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.lost_peer import lost_peer_errors
from diffpipe.train.run_lock import locked
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import StopConsensus


def train(experiment: Experiment, callbacks: Sequence[Callback] = ()) -> signal.Signals | None:
    """Train to the last step, from the newest valid checkpoint where the run has one. All processes of a job call it.

    Returns the signal that stopped it, after a checkpoint was saved, or None at the last step. Raises UserError.
    """
    config, home = experiment.train, experiment.run.path
    runtime = Runtime.start(
        config.precision, config.device, home, config.timeout, config.trackers, deterministic=config.deterministic
    )
    with runtime, lost_peer_errors():
        stop_consensus = StopConsensus(runtime.comm)
        # Caught up to the last line: once one rank has left, the launcher signals the others.
        with stop_consensus.listening():
            shards, shape = runtime.comm.raise_on_all_ranks(lambda: open_data(experiment, runtime.world))
            warn = functools.partial(print_on_rank_zero, runtime)
            with locked(home, runtime.comm, warn, use_lock=experiment.run.lock):
                job = Job.prepare(experiment, runtime, shards, shape, callbacks)
                if runtime.main:
                    own_places.note_run(home, experiment.data.trained_on)
                stopped_by = job.run(stop_consensus)
                runtime.trackers.finish()  # which may take a minute: the run is locked, and signals are caught
                return stopped_by
