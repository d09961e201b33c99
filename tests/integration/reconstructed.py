"""`python -m tests.integration.reconstructed RUN SHARDS OUT`: what the run makes of the images, as numpy's file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffpipe.data.index import shard_set
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.reconstruction import ReconstructedImages
from diffpipe.experiment.run import open_run
from diffpipe.interfaces import Reconstructs
from diffpipe.train.runtime import Runtime


def reconstructed(run: Path, shards: str, runtime: Runtime) -> Tensor:
    """The processes share the images out, and each holds all of them in the end."""
    opened = open_run(run, [], runtime)
    assert isinstance(opened.stage, Reconstructs)
    real = ShardImages(shard_set.load(shards), opened.shape.channels, opened.shape.resolution)
    source = ReconstructedImages(opened.stage, opened.nets, real, runtime, seed=0, about={})
    return torch.cat(map_over_ranks(source.n, source.images, runtime))


if __name__ == "__main__":
    with Runtime.start("fp32", "cpu") as started:
        images = reconstructed(Path(sys.argv[1]), sys.argv[2], started)
        if started.main:
            np.save(sys.argv[3], images.numpy())
