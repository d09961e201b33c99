"""Score images by a run's stage on all processes: its likelihood, a bound on it, or its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from diffpipe.cli.images import ShardImages
from diffpipe.cli.runs import Run
from diffpipe.contract import Batch, Score, Scores, UserError
from diffpipe.diffusion.bound import BoundScore
from diffpipe.metrics.evaluate import CHUNK
from diffpipe.rng import Draws
from diffpipe.train.runtime import Runtime
from diffpipe.train.tracking import progress_bar


class Course(NamedTuple):
    """A diffusion's bound over time: for each stratum of timesteps the mean of its terms' sum, in bits/dim."""

    strata: Sequence[range]
    terms: Float64[Tensor, " k"]


class Likelihoods(NamedTuple):
    """What a stage says of each image.

    values: "score" and its terms by name, float64 [n] in the order of the images. unit, kind: see `contract.Score`.
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
    opened: Run, images: ShardImages, seed: int, runtime: Runtime, label: int | None = None
) -> Likelihoods:
    """The score of every image, shared out in fixed chunks over the ranks. A collective.

    A class-conditional stage is given each image's own label, or `label` for all. Raises UserError where the stage
    scores nothing.
    """
    stage, kind = opened.stage, opened.experiment.stage.kind
    if not isinstance(stage, Scores):
        raise UserError(f"a run of stage.kind {kind} has no likelihood and no error; give a run of another kind")
    conditional = getattr(opened.experiment.stage, "conditional", False)
    mine: dict[int, Likelihoods] = {}

    def score(chunk: range) -> Likelihoods:
        positions = torch.tensor(chunk, device=runtime.device)
        labels = None
        if conditional:
            labels = images.labels(chunk) if label is None else torch.full((len(chunk),), label)
            labels = labels.to(runtime.device)
        batch = Batch(images.images(chunk).to(runtime.device), labels, positions, [str(i) for i in chunk])
        with torch.no_grad(), runtime.autocast():
            found = stage.score(opened.nets, batch, Draws(seed, positions))
        return _kept(found)

    def score_mine(bar: Any) -> None:
        for start in range(runtime.rank * CHUNK, images.n, runtime.world * CHUNK):
            chunk = range(start, min(start + CHUNK, images.n))
            mine[start] = score(chunk)
            bar.update(min(len(chunk) * runtime.world, images.n - bar.n))

    with progress_bar("score", "image", images.n, runtime) as bar:
        runtime.together(lambda: score_mine(bar))
    parts = {start: part for each in runtime.gather(mine) for start, part in each.items()}
    return _merge([parts[start] for start in sorted(parts)])


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
