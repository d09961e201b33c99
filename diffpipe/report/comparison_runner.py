"""The measurements of a comparison: every run on the same real images, with the same seed and numbers of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.data import own_places
from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.counts import DEFAULT_COUNT, note_count
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.evaluation.overlap import check_floor, floor_or_halves
from diffpipe.evaluation.score_cache import CachedScore, Scorer
from diffpipe.evaluation.score_remarks import TrainingData, score_remarks
from diffpipe.evaluation.score_sources import SPLIT
from diffpipe.experiment.run import Run, generated_images
from diffpipe.interfaces import Generates, Reconstructs
from diffpipe.metrics.names import parse_metric
from diffpipe.metrics.protocol import require_alike
from diffpipe.report import run_summary
from diffpipe.report.image_rows import images_per_row
from diffpipe.report.run_summary import RunSummary
from diffpipe.resolution import Resolution
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

SEARCHED_IMAGES = 2000  # reference images, drawn at random, among which those to show of each class are found


@dataclass(frozen=True)
class ComparisonSettings:
    """The settings that all rows of a comparison share.

    reference: shards of the real images. n: generated images per run to score; None for 1000, or as many as the floor
    has where these are fewer. nll_n: reference images for the likelihood and the reconstruction. floor: shards of other
    real images to score, by default local ones that a run of this user was trained on; `split` for the halves of the
    reference. inception: the weights for FID and KID, by default downloaded once. fresh: measure scores that the runs
    hold already. raw: the trained weights, not their moving average. ema: the length of the
    average. compress: compress the images of the likelihood, by each run that can and as PNG, WebP and JPEG XL.
    """

    reference: str
    metrics: Sequence[str]
    n: int | None = None
    nll_n: int = 500
    seed: int = 0
    floor: str | None = None
    inception: str | None = None
    fresh: bool = False
    raw: bool = False
    ema: float | None = None
    compress: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def check(self) -> None:
        """Raise UserError for an unknown metric or fewer than two images."""
        for name in self.metrics:
            parse_metric(name)
        for option, value in (("--n", self.n), ("--nll-n", self.nll_n)):
            if value is not None and value < 2:
                raise UserError(f"{option} {value}: give 2 or more")


class MeasuredRun(NamedTuple):
    """A run's summary, its row of images with their caption, its score file and remarks on it.

    images, scored: None where it has none.
    """

    summary: RunSummary
    images: UInt8[Tensor, "k c h w"] | None
    caption: str
    scored: CachedScore | None
    remarks: Sequence[str] = ()


class ComparisonRunner(NamedTuple):
    """Measures runs on the same real images.

    n: generated images per run to score. likelihood_images: reference images drawn at random, for the likelihood and
    the reconstruction. real: the images of the real row, [k c h w]. classes: the number of classes of the run that has
    most, 0 without labels.
    """

    settings: ComparisonSettings
    n: int
    runtime: Runtime
    reference: ShardImages
    likelihood_images: ShardImages
    scorer: Scorer | None
    real: UInt8[Tensor, "k c h w"]
    classes: int

    @classmethod
    def prepare(cls, settings: ComparisonSettings, runs: Sequence[Run], runtime: Runtime) -> ComparisonRunner:
        """Open the real images. A collective. Raises UserError where they cannot be read."""
        channels, resolution, _ = runs[0].shape
        classes = max(run.shape.classes for run in runs)

        def reference_images(n: int | None = None) -> ShardImages:
            shards = shard_set.load(settings.reference)
            return ShardImages(shards, channels, resolution, n=n if n is None else min(n, shards.total))

        any_generates = any(isinstance(run.stage, Generates) for run in runs)

        def load() -> tuple[ShardImages, ShardImages, ShardImages | None, Tensor]:
            floor = _floor_images(settings, runs) if any_generates and settings.floor != SPLIT else None
            real = select_by_class(reference_images(SEARCHED_IMAGES), images_per_row(classes), classes)
            return reference_images(), reference_images(settings.nll_n), floor, real

        reference, likelihood_images, floor, real = runtime.comm.raise_on_all_ranks(load)
        n = settings.n or (DEFAULT_COUNT if floor is None else floor.n)
        note_count(settings.n, n, settings.floor or "the training data of the floor", runtime)
        scorer = None
        if any_generates:
            if settings.floor is not None:
                check_floor(floor, reference, settings.floor, runtime)
            elif floor is not None:
                floor = floor_or_halves(floor, reference, runtime)
            options = {"fresh": settings.fresh, "inception_weights": settings.inception}
            scorer = Scorer(reference, floor, settings.metrics, runtime, **options)
        return cls(settings, n, runtime, reference, likelihood_images, scorer, real, classes)

    def measure(self, name: str, path: str, run: Run) -> MeasuredRun:
        """The summary and the images of one run. A collective. Raises UserError."""
        kind, missing = run.experiment.stage.kind, dict[str, str]()
        measured = self._training_and_likelihood(run, missing)
        images, caption, scored = None, "", None
        if isinstance(run.stage, Generates):
            print_on_rank_zero(self.runtime, "  sampling speed")
            images, measured["sampling"] = run_summary.time_sampling(run, self.runtime, self.settings.seed)
            images, caption = images[: len(self.real)], "samples"
            if not measured["sampling"]["evaluations"]:
                missing["evaluations"] = "it generates without calling its network's forward pass"
            scored = self._score(run)
            measured |= {"scores": scored.result.scores, "score_file": str(scored.path), "reused": scored.reused}
        else:
            missing |= dict.fromkeys(("scores", "sampling", "evaluations"), f"stage.kind {kind} generates no images")
            if isinstance(run.stage, Reconstructs):
                positions = range(len(self.real))
                images = run_summary.reconstruct(run, self.real, positions, self.settings.seed, self.runtime)
                caption = "reconstructions"
        about = run.describe()
        summary = RunSummary(
            name=name,
            run=path,
            stage=run.experiment.stage.describe(),
            conditional=is_conditional(run),
            parameters=run_summary.count_parameters(run),
            missing=missing,
            **{key: about[key] for key in ("checkpoint", "step", "images_seen", "weights", "sampler")},
            **measured,
        )
        remarks = () if scored is None else score_remarks(scored.result.protocol, TrainingData.of(run))
        return MeasuredRun(summary, images, caption, scored, remarks)

    def _training_and_likelihood(self, run: Run, missing: dict[str, str]) -> dict[str, Any]:
        """The training speed, the likelihood and the reconstruction error; reasons for absent ones go to `missing`."""
        runtime, seed, measured = self.runtime, self.settings.seed, dict[str, Any]()
        measured["training"] = run_summary.training_speed(run)
        if measured["training"] is None:
            missing["training"] = "its metrics.jsonl has no second log line to compute the speed from"
        reference, images = self.settings.reference, self.likelihood_images
        measures = {
            "bits_per_dim": lambda: run_summary.mean_likelihood(run, reference, images.n, seed, runtime),
            "compressed": lambda: run_summary.compressed_size(run, reference, images.n, seed, runtime),
            "reconstruction": lambda: run_summary.reconstruction_error(run, images, seed, runtime),
        }
        if not self.settings.compress:
            del measures["compressed"]
        for field, measure in measures.items():
            try:
                measured[field] = measure()
            except UserError as error:
                missing[field] = str(error).partition("; ")[0]  # after the semicolon: advice for another command
        return measured

    def _score(self, run: Run) -> CachedScore:
        assert self.scorer is not None, "prepare makes one where any run generates"
        n, seed = self.n, self.settings.seed
        scored = self.scorer.score(run, generated_images(run, self.runtime, n=n, seed=seed, label=None))
        print_on_rank_zero(self.runtime, f"  {scored.path}{' was there already' if scored.reused else ''}")
        return scored


def select_by_class(images: ShardImages, k: int, classes: int) -> UInt8[Tensor, "k c h w"]:
    """k images to show: image i is of class i mod classes. Without labels, or images of a class: the first k."""
    selected = list(range(min(k, images.n)))
    if classes and images.shards.lacking("cls") is None:
        of_class: dict[int, list[int]] = {}
        for i, label in enumerate(images.labels(range(images.n)).tolist()):
            of_class.setdefault(label, []).append(i)
        columns = [(i // classes, of_class.get(i % classes, [])) for i in range(k)]
        if all(nth < len(candidates) for nth, candidates in columns):
            selected = [candidates[nth] for nth, candidates in columns]
    return torch.cat([images.images(range(i, i + 1)) for i in selected])


def _floor_images(settings: ComparisonSettings, runs: Sequence[Run]) -> ShardImages:
    """As many real images as are scored: those of `floor`, else of the first of this user's runs trained on images."""
    channels, resolution, _ = runs[0].shape
    trained_on = [(run.home, run.experiment.data.trained_on) for run in runs]
    sources = [settings.floor] if settings.floor else [s for home, s in trained_on if own_places.may_read(home, s)]
    errors = []
    for source in sources:
        try:
            shards = shard_set.load(source)
            n = min(DEFAULT_COUNT, shards.total) if settings.n is None else settings.n
            return ShardImages(shards, channels, resolution, n=n)
        except UserError as error:
            errors.append(str(error))
    raise UserError(
        f"the floor needs real images that are not in the reference, by default those a run was trained on: "
        f"{errors[0] if errors else own_places.NOT_OWN}; give --floor"
    )


def require_one_size(sizes: Mapping[str, tuple[int, Resolution]]) -> None:
    """Raise UserError unless all runs make images of the same channels and resolution."""
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            first_size, other_size = (f"{channels}×{side.height}×{side.width}" for channels, side in (size, other))
            raise UserError(
                f"{first} makes images of {first_size} and {name} of {other_size}; compare runs of one size"
            )


def require_comparable(scored: Mapping[str, CachedScore | None]) -> None:
    """Raise UserError unless all scores follow one protocol."""
    results = [(name, score.result) for name, score in scored.items() if score is not None]
    for (a, first), (b, second) in combinations(results, 2):
        try:
            require_alike(first, second, (a, b))
        except UserError as error:
            raise UserError(f"{error}, with --fresh") from error
