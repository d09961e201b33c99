"""The Fréchet distance between real images and their reconstructions: what an autoencoder loses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.scores import score
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Reconstructs, Stage
from diffpipe.metrics.evaluate import ImageSource
from diffpipe.metrics.names import parse_metric
from diffpipe.rng import KeyedRNG
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

METRIC = "fd_efficientnet_lite0"
_FEWEST = 4  # half of the images against the other half is the floor


def held_out_images(experiment: Experiment) -> ShardSet:
    """The images of data.test, or those of data.train where there are none."""
    data = experiment.data
    return shard_set.load(data.test or data.trained_on, cache=data.shard_cache)


def originals(experiment: Experiment, stage: Stage) -> ShardImages:
    """The `eval.reconstruction` images that are compared with their reconstructions. Raises UserError."""
    n, data = experiment.eval.reconstruction, experiment.data
    if not isinstance(stage, Reconstructs):
        raise UserError(
            f"eval.reconstruction scores reconstructed images, and stage.kind {experiment.stage.kind} reconstructs "
            f"none; set eval.reconstruction=0"
        )
    if n < _FEWEST:
        raise UserError(f"eval.reconstruction is {n}, and a score needs {_FEWEST} images or more; set it to 0 for none")
    try:
        return ShardImages(held_out_images(experiment), data.channels, data.resolution, n=n)
    except UserError as error:
        raise UserError(f"eval.reconstruction: {error}") from error


class ReconstructedImages:
    """The reconstructions of real images: image i depends on the i-th of `originals` and the weights alone."""

    def __init__(
        self,
        stage: Reconstructs,
        nets: Mapping[str, nn.Module],
        originals: ImageSource,
        runtime: Runtime,
        seed: int,
        about: Mapping[str, Any],
    ):
        self.stage, self.nets, self.originals, self.runtime = stage, nets, originals, runtime
        self.seed, self.about = seed, about

    @property
    def n(self) -> int:
        return self.originals.n

    def describe(self) -> dict[str, Any]:
        precision = str(self.runtime.dtype).removeprefix("torch.")
        what = "reconstructions of the reference"
        return {"images": what, "seed": self.seed, "precision": precision, **self.about}

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        device = self.runtime.device
        originals = self.originals.images(indices).to(device, memory_format=self.runtime.memory_format)
        rng = KeyedRNG(self.seed, torch.tensor(indices, device=device))
        with self.runtime.autocast():
            return self.stage.reconstruct(self.nets, originals, rng).cpu()


def reconstruction(
    experiment: Experiment, stage: Stage, nets: Mapping[str, nn.Module], runtime: Runtime, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The score with its protocol, as a score file holds it: JSON values. A collective. Raises UserError.

    about: the protocol's entries for the weights. The floor is the score of one half of the images against the other.
    Reconstructions can be far below it, because they are of the reference's own images.
    """
    real = originals(experiment, stage)
    assert isinstance(stage, Reconstructs)
    reconstructed = ReconstructedImages(stage, nets, real, runtime, experiment.seed, about)
    result = score(reconstructed, real, None, [METRIC], runtime)
    print_on_rank_zero(runtime, f"{METRIC} of {real.n} images and their reconstructions: {result.scores[METRIC]:.3f}")
    return asdict(result)


def in_words(tree: Mapping[str, Any] | None) -> str:
    """The reconstruction score of a checkpoint in words. tree: as `reconstruction` returns it; None: there is none."""
    if tree is None:
        return "no reconstruction FD (the last checkpoint of a training with eval.reconstruction=1000 has one)"
    n = tree["protocol"]["generated"]["n"]
    return f"reconstruction FD {tree['scores'][METRIC]:.1f} ({parse_metric(METRIC).extractor}, n {n:,})"
