"""Per-image scores by a run's stage, on all processes: its likelihood, a bound on it, or its error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import number_of_classes
from diffpipe.diffusion.ode_likelihood import ODEScore, ODESettings
from diffpipe.diffusion.vlb import VLBScore
from diffpipe.errors import UserError
from diffpipe.evaluation.counts import DEFAULT_COUNT
from diffpipe.evaluation.image_sources import ShardImages, TensorImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import Run
from diffpipe.interfaces import Batch, Generates, Score, Scores, Unscored
from diffpipe.plural import plural
from diffpipe.rng import KeyedRNG
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

_MANY_EVALUATIONS = 200
"""Network evaluations per image that are announced: without a GPU, minutes may pass before the first progress."""


@runtime_checkable
class CountsEvaluations(Protocol):
    """A stage whose score takes many evaluations of its network."""

    def score_evaluations(self) -> int:
        """The network evaluations of `Scores.score` per image."""
        ...


@runtime_checkable
class ScoresByODE(Protocol):
    """A stage whose samples are the end of a probability flow, which gives images a likelihood."""

    def ode_score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG, settings: ODESettings) -> ODEScore:
        """The likelihood of each sample. All randomness comes from `rng`. nets: as for `Scores.score`."""
        ...


class VLBByTimestep(NamedTuple):
    """A diffusion's variational bound over time: the mean over images of each stratum's summed terms, in bits/dim.

    strata: consecutive ranges of timesteps. terms: one number per stratum.
    """

    strata: Sequence[range]
    terms: Float64[Tensor, " k"]


class Likelihoods(NamedTuple):
    """The scores of n images.

    values: "score" and its terms by name, float64 [n] in the order of the images. unit, kind: as in `interfaces.Score`.
    vlb_by_timestep: of a diffusion's bound. probe_variance: float64 [n], of a likelihood by the probability flow: the
    variance of each score that is due to the probes of its trace.
    """

    values: Mapping[str, Float64[Tensor, " n"]]
    unit: str
    kind: str
    vlb_by_timestep: VLBByTimestep | None
    probe_variance: Float64[Tensor, " n"] | None = None

    @property
    def n(self) -> int:
        return len(self.values["score"])

    def mean(self, name: str) -> float:
        return float(self.values[name].mean())

    def standard_error(self, name: str) -> float:
        return float(self.values[name].std()) / math.sqrt(self.n)

    @property
    def probe_error(self) -> float | None:
        """The part of the mean score's standard error that is due to the probes."""
        return None if self.probe_variance is None else float(self.probe_variance.sum().sqrt()) / self.n


def score_images(
    run: Run,
    images: ShardImages | TensorImages,
    seed: int,
    runtime: Runtime,
    label: int | None = None,
    title: str = "score",
    ode: ODESettings | None = None,
) -> Likelihoods:
    """The score of every image, in fixed chunks shared by the ranks. A collective.

    A class-conditional stage gets each image's own label, or `label` for all. Noise is keyed by the image alone, so two
    labels are compared under the same noise. title: the name of the progress bar. ode: score by the probability flow.
    Raises UserError where the stage has no such score.
    """
    score_batch = scoring_stage(run).score if ode is None else partial(ode_stage(run).ode_score, settings=ode)
    conditional = is_conditional(run)
    if ode is None and isinstance(run.stage, CountsEvaluations) and run.stage.score_evaluations() >= _MANY_EVALUATIONS:
        each = f"{run.stage.score_evaluations():,} network evaluations"
        print_on_rank_zero(runtime, f"{title}: {plural(images.n, 'image')}, {each} for each; fewer steps are faster")

    def score(chunk: range) -> Likelihoods:
        positions = torch.tensor(chunk, device=runtime.device)
        labels = None
        if conditional:
            labels = images.labels(chunk) if label is None else torch.full((len(chunk),), label)
            labels = labels.to(runtime.device)
        batch = Batch(images.images(chunk).to(runtime.device), labels, positions, [str(i) for i in chunk])
        return _to_cpu(score_batch(run.nets, batch, KeyedRNG(seed, positions)))

    return _merge(map_over_ranks(images.n, score, runtime, title))


def labelled_images(shards: str, run: Run, n: int | None) -> ShardImages:
    """n images of the shards. Raises UserError where a class-conditional run does not know their labels.

    n: None for 1000, or all where they are fewer.
    """
    loaded, classes = shard_set.load(shards), run.shape.classes
    if is_conditional(run):
        path = loaded.lacking("cls")
        if path is not None:
            raise UserError(f"{path}: the run is class-conditional and some samples have no label; pack them with one")
        if number_of_classes(loaded) > classes:
            raise UserError(
                f"{shards} holds {plural(number_of_classes(loaded), 'class', 'classes')} and the run was trained on "
                f"{classes}"
            )
    n = min(DEFAULT_COUNT, loaded.total) if n is None else n
    return ShardImages(loaded, run.shape.channels, run.shape.resolution, n=n)


def is_conditional(run: Run) -> bool:
    """Whether the run's stage models an image given its class."""
    return getattr(run.experiment.stage, "conditional", False)


def require_scored(run: Run) -> None:
    """Raise UserError where the run's stage says why it scores no images."""
    if isinstance(run.stage, Unscored):
        raise UserError(f"{run.home} {run.stage.no_likelihood}")


def scoring_stage(run: Run, *, likelihood: bool = False) -> Scores:
    """The run's stage, if it scores images. Raises UserError where it does not.

    likelihood: refuse also a stage whose score is no likelihood.
    """
    require_scored(run)
    kind = run.experiment.stage.kind
    if not isinstance(run.stage, Scores):
        raise UserError(f"a run of stage.kind {kind} has no likelihood and no error; give a run of another kind")
    if likelihood and not isinstance(run.stage, Generates):  # without samples there is no distribution
        raise UserError(f"a run of stage.kind {kind} has an error and no likelihood; give a run of another kind")
    return run.stage


def ode_stage(run: Run) -> ScoresByODE:
    """The run's stage, if it has a probability flow. Raises UserError where it has none."""
    if not isinstance(run.stage, ScoresByODE):
        raise UserError(f"ode is for a diffusion, and {run.home} is of stage.kind {run.experiment.stage.kind}")
    return run.stage


def require_likelihood(likelihoods: Likelihoods, run: Run) -> None:
    """Raise UserError where the scores are no likelihoods, or some are not finite."""
    if likelihoods.kind == "error":
        kind = run.experiment.stage.kind
        raise UserError(f"a run of stage.kind {kind} has an error and no likelihood; give a run of another kind")
    infinite = int((~likelihoods.values["score"].isfinite()).sum())
    if infinite:
        raise UserError(
            f"{run.home}: {infinite} of {likelihoods.n} likelihoods are not finite; look at the training's loss"
        )


def _to_cpu(score: Score) -> Likelihoods:
    values = {name: value.double().cpu() for name, value in {"score": score.per_sample, **score.terms}.items()}
    vlb_by_timestep, probe_variance = None, None
    if isinstance(score, ODEScore):
        probe_variance = score.probe_variance.double().cpu()
    if isinstance(score, VLBScore):
        vlb_by_timestep = VLBByTimestep(score.strata, score.by_timestep.double().mean(0).cpu())
    return Likelihoods(values, score.unit, score.kind, vlb_by_timestep, probe_variance)


def _merge(parts: Sequence[Likelihoods]) -> Likelihoods:
    first = parts[0]
    values = {name: torch.cat([part.values[name] for part in parts]) for name in first.values}
    n, vlb_by_timestep = len(values["score"]), None
    if first.vlb_by_timestep:
        terms = [part.n / n * part.vlb_by_timestep.terms for part in parts if part.vlb_by_timestep]
        vlb_by_timestep = VLBByTimestep(first.vlb_by_timestep.strata, torch.stack(terms).sum(0))
    variances = [part.probe_variance for part in parts if part.probe_variance is not None]
    probe_variance = torch.cat(variances) if variances else None
    return Likelihoods(values, first.unit, first.kind, vlb_by_timestep, probe_variance)
