"""`diffpipe train CONFIG [key=value …]`."""

from __future__ import annotations

import argparse
import os

from diffpipe.config import load_config
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.job import Job
from diffpipe.experiment.preflight import open_data
from diffpipe.train.lost_peer import lost_peer_errors
from diffpipe.train.run_lock import locked
from diffpipe.train.runtime import Runtime
from diffpipe.train.stop import StopConsensus


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of the experiment, such as configs/fashion_mnist/ddpm.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the file, such as train.steps=100")


def run(args: argparse.Namespace) -> int:
    """The exit status: 0, or EX_TEMPFAIL (75) where the job was asked to stop, has saved, and can be started again."""
    experiment = load_config(Experiment, args.config, args.overrides)
    train, home = experiment.train, experiment.run.path
    with Runtime.start(train.precision, train.device, home, train.timeout) as runtime, lost_peer_errors():
        stop_consensus = StopConsensus(runtime.comm)
        with stop_consensus.listening():
            shards, shape = runtime.comm.raise_on_all_ranks(lambda: open_data(experiment, runtime.world))
            with locked(home, runtime.comm):
                stopped = Job.prepare(experiment, runtime, shards, shape).run(stop_consensus)
                # Still deaf to signals: as soon as one rank has left, the launcher ends the others.
                return os.EX_TEMPFAIL if stopped else 0
