"""The stage's `start` for a new run: what is set from the first samples of its training stream."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader.dataset import Dataset
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Stage, Starts
from diffpipe.rng import KeyedRNG
from diffpipe.train.initialization import StartFunction
from diffpipe.train.runtime import Runtime


def start_function(stage: Stage, experiment: Experiment, shards: ShardSet, runtime: Runtime) -> StartFunction | None:
    """The function that sets fresh networks from data; None where the stage needs no data for it.

    Every rank reads the same samples, positions 0 to `stage.start_samples` − 1.
    """
    if not isinstance(stage, Starts) or not stage.start_samples:
        return None

    def start(nets: Mapping[str, nn.Module]) -> None:
        dataset = Dataset(experiment.data, shards, experiment.seed)
        batch = runtime.to_device(dataset.batch(np.arange(stage.start_samples)))
        stage.start(nets, batch, KeyedRNG(experiment.seed, batch.positions))

    return start
