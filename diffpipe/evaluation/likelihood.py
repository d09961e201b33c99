"""Score images by a run's stage on all processes: its likelihood, a bound on it, or its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import number_of_classes
from diffpipe.diffusion.bound import BoundScore
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import Run
from diffpipe.interfaces import Batch, Generates, Score, Scores
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime


class Course(NamedTuple):
    """A diffusion's bound over time: for each stratum of timesteps the mean of its terms' sum, in bits/dim."""

    strata: Sequence[range]
    terms: Float64[Tensor, " k"]


class Likelihoods(NamedTuple):
    """What a stage says of each image.

    values: "score" and its terms by name, float64 [n] in the order of the images. unit, kind: see `interfaces.Score`.
    """

    values: Mapping[str, Float64[Tensor, " n"]]
    unit: str
    kind: str
    course: Course | None

    @property
    def n(self) -> int:
        return len(self.values["score"])

    def mean(self, name: str) -> float:
        return float(self.values[name].mean())

    def standard_error(self, name: str) -> float:
        return float(self.values[name].std()) / math.sqrt(self.n)


def score_images(
    opened: Run, images: ShardImages, seed: int, runtime: Runtime, label: int | None = None, title: str = "score"
) -> Likelihoods:
    """The score of every image, shared out in fixed chunks over the ranks. A collective.

    A class-conditional stage is given each image's own label, or `label` for all. What is random is keyed by the image
    alone: two labels are compared under the same noise. title: of the progress bar. Raises UserError where the stage
    scores nothing.
    """
    stage = scoring(opened)
    conditional = is_conditional(opened)

    def score(chunk: range) -> Likelihoods:
        positions = torch.tensor(chunk, device=runtime.device)
        labels = None
        if conditional:
            labels = images.labels(chunk) if label is None else torch.full((len(chunk),), label)
            labels = labels.to(runtime.device)
        batch = Batch(images.images(chunk).to(runtime.device), labels, positions, [str(i) for i in chunk])
        return _kept(stage.score(opened.nets, batch, KeyedRNG(seed, positions)))

    return _merge(map_over_ranks(images.n, score, runtime, title))


def labelled_images(shards: str, opened: Run, n: int) -> ShardImages:
    """n images of the shards, after a check that a class-conditional run knows their labels. Raises UserError."""
    loaded, classes = shard_set.load(shards), opened.shape.classes
    if is_conditional(opened):
        path = loaded.lacking("cls")
        if path is not None:
            raise UserError(f"{path}: the run is class-conditional and some samples have no label; pack them with one")
        if number_of_classes(loaded) > classes:
            raise UserError(f"{shards} holds {number_of_classes(loaded)} classes and the run was trained on {classes}")
    return ShardImages(loaded, opened.shape.channels, opened.shape.resolution, n=n)


def is_conditional(opened: Run) -> bool:
    """Whether the run's stage explains an image given its class."""
    return getattr(opened.experiment.stage, "conditional", False)


def scoring(opened: Run, *, likelihood: bool = False) -> Scores:
    """The run's stage, which scores: by a likelihood where one is asked for. Raises UserError where it does not."""
    kind = opened.experiment.stage.kind
    if not isinstance(opened.stage, Scores):
        raise UserError(f"a run of stage.kind {kind} has no likelihood and no error; give a run of another kind")
    if likelihood and not isinstance(opened.stage, Generates):  # what draws nothing is no distribution
        raise UserError(f"a run of stage.kind {kind} has an error and no likelihood; give a run of another kind")
    return opened.stage


def require_likelihood(found: Likelihoods, opened: Run) -> None:
    """Raise UserError where the scores are no likelihoods, or not all of them are finite."""
    if found.kind == "error":
        kind = opened.experiment.stage.kind
        raise UserError(f"a run of stage.kind {kind} has an error and no likelihood; give a run of another kind")
    infinite = int((~found.values["score"].isfinite()).sum())
    if infinite:
        raise UserError(
            f"{opened.home}: {infinite} of {found.n} likelihoods are not finite; look at the training's loss"
        )


def _kept(score: Score) -> Likelihoods:
    values = {name: value.double().cpu() for name, value in {"score": score.per_sample, **score.terms}.items()}
    course = None
    if isinstance(score, BoundScore):
        course = Course(score.strata, score.over_time.double().mean(0).cpu())
    return Likelihoods(values, score.unit, score.kind, course)


def _merge(parts: Sequence[Likelihoods]) -> Likelihoods:
    first = parts[0]
    values = {name: torch.cat([part.values[name] for part in parts]) for name in first.values}
    n, course = len(values["score"]), None
    if first.course:
        terms = [part.n / n * part.course.terms for part in parts if part.course]
        course = Course(first.course.strata, torch.stack(terms).sum(0))
    return Likelihoods(values, first.unit, first.kind, course)
