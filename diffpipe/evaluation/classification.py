"""The classes of images by the likelihoods of a class-conditional run, and how far to trust them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import require_likelihood, score_images
from diffpipe.experiment.run import Run
from diffpipe.metrics import calibration
from diffpipe.metrics.calibration import Reliability
from diffpipe.rng import permutation
from diffpipe.train.runtime import Runtime


class Calibration(NamedTuple):
    """What the probabilities of one half of the images are worth. log_loss: -log p(y|x) of the true label, in nats."""

    log_loss: float
    reliability: Reliability


class Classified(NamedTuple):
    """What the classes' likelihoods say of the images.

    confusion: images by true class (row) and predicted one (column). raw, tempered: of the half of the images that the
    temperature was not fitted on, before and after dividing the logits by it.
    """

    confusion: Int[Tensor, "k k"]
    temperature: float
    raw: Calibration
    tempered: Calibration

    @property
    def n(self) -> int:
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        return int(self.confusion.diagonal().sum())


def log_likelihoods(opened: Run, images: ShardImages, seed: int, runtime: Runtime) -> Float64[Tensor, "n k"]:
    """log p(x|y) in nats, or the bound on it, of every image under every label. A collective.

    An image meets every label with the same noise, so that what the noise adds cancels in their comparison (Li et al.
    2023, section 3.3). Raises UserError where the stage has no likelihood.
    """
    classes, dims = opened.shape.classes, opened.shape.channels * opened.shape.resolution**2
    columns = []
    for label in range(classes):
        found = score_images(opened, images, seed, runtime, label, f"score as class {label + 1}/{classes}")
        require_likelihood(found, opened)
        assert found.unit.startswith("bits/dim"), "likelihoods are in bits/dim"
        columns.append(-dims * math.log(2) * found.values["score"])
    return torch.stack(columns, dim=1)


def log_prior(opened: Run, prior: str) -> Float64[Tensor, " k"]:
    """log p(y) by `prior`. Of data: one image of each class is added, as by Laplace, so that none is impossible."""
    classes = opened.shape.classes
    counts = torch.zeros(classes, dtype=torch.int64)
    if prior == "data":
        try:
            data = opened.experiment.data
            shards = shard_set.load(data.trained_on, cache=data.shard_cache)
            counts = torch.bincount(sequential_reader.labels(shards, range(shards.total)), minlength=classes)
        except UserError as error:
            raise UserError(f"--prior data counts the run's data.train: {error}; or give --prior uniform") from error
    return (counts + 1).double().log() - math.log(int(counts.sum()) + classes)


def classify(logits: Float64[Tensor, "n k"], labels: Int[Tensor, " n"], seed: int) -> Classified:
    """Held against the true labels: the likeliest classes, and p(y|x) on a half of the images drawn by the seed.

    logits: log p(x|y) + log p(y). A temperature is fitted on the other half.
    """
    n, k = logits.shape
    confusion = torch.bincount(k * labels + logits.argmax(dim=1), minlength=k * k).reshape(k, k)
    order = torch.from_numpy(permutation(n, seed, "calibration"))
    fitted, held = order[: n // 2], order[n // 2 :]
    temperature = calibration.fit_temperature(logits[fitted], labels[fitted])

    def judge(logits: Tensor) -> Calibration:
        reliability = calibration.reliability(logits.softmax(dim=1), labels[held])
        return Calibration(calibration.log_loss(logits, labels[held]), reliability)

    return Classified(confusion, temperature, judge(logits[held]), judge(logits[held] / temperature))
