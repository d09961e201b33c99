"""What every family of a comparison is measured with, and the measuring of one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.evaluation.score_cache import Scored, Scorer
from diffpipe.experiment.run import Run, generated_images
from diffpipe.interfaces import Generates, Reconstructs
from diffpipe.metrics.protocol import require_alike
from diffpipe.report import run_summary
from diffpipe.report.image_rows import images_per_row
from diffpipe.report.run_summary import RunSummary
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

LOOKED_THROUGH = 2000  # reference images, for some of each class to show


class MeasuredRun(NamedTuple):
    """A family, a row of images to show, what these are, and the score file."""

    summary: RunSummary
    shown: UInt8[Tensor, "k c h w"] | None
    label: str
    scored: Scored | None


class ComparisonRunner(NamedTuple):
    """What every family is measured with: the same real images, seed and numbers of images.

    explained: the images of the likelihood and the reconstruction. real: those that are shown, [k c h w].
    """

    args: argparse.Namespace
    runtime: Runtime
    reference: ShardImages
    explained: ShardImages
    scorer: Scorer | None
    real: UInt8[Tensor, "k c h w"]
    classes: int

    @classmethod
    def prepare(
        cls, args: argparse.Namespace, metrics: list[str], runs: Sequence[Run], runtime: Runtime
    ) -> ComparisonRunner:
        """A collective. Raises UserError where the real images cannot be had."""
        channels, resolution, _ = runs[0].shape
        classes = max(each.shape.classes for each in runs)

        def real(place: str | list[str], n: int | None = None) -> ShardImages:
            loaded = shard_set.load(place)
            return ShardImages(loaded, channels, resolution, n=n if n is None else min(n, loaded.total))

        def load() -> tuple[ShardImages, ShardImages, ShardImages | None, Tensor]:
            generating = any(isinstance(each.stage, Generates) for each in runs)
            floor = _floor(args, runs) if generating else None
            shown = choose(real(args.reference, LOOKED_THROUGH), images_per_row(classes), classes)
            return real(args.reference), real(args.reference, args.nll_n), floor, shown

        reference, explained, floor, shown = runtime.comm.raise_on_all_ranks(load)
        options = {"fresh": args.fresh, "inception_weights": args.inception}
        scorer = Scorer(reference, floor, metrics, runtime, **options) if floor else None
        return cls(args, runtime, reference, explained, scorer, shown, classes)

    def measure(self, name: str, path: str, opened: Run) -> MeasuredRun:
        """All there is to know of one run. A collective. Raises UserError."""
        runtime, seed, stage = self.runtime, self.args.seed, opened.stage
        kind = opened.experiment.stage.kind
        missing: dict[str, str] = {}
        known: dict[str, Any] = {"training": run_summary.training_speed(opened)}
        if known["training"] is None:
            missing["training"] = "its metrics.jsonl has no second log line to tell its speed by"
        measures = {
            "bits_per_dim": lambda: run_summary.mean_likelihood(
                opened, self.args.reference, self.explained.n, seed, runtime
            ),
            "reconstruction": lambda: run_summary.reconstruction_error(opened, self.explained, seed, runtime),
        }
        for what, measure in measures.items():
            try:
                known[what] = measure()
            except UserError as error:
                missing[what] = str(error).partition("; ")[0]  # the rest is what to do about it
        shown, label, scored = None, "", None
        if isinstance(stage, Generates):
            print_on_rank_zero(runtime, "  how fast it samples")
            shown, known["sampling"] = run_summary.sampled(opened, runtime, seed)
            shown, label = shown[: len(self.real)], "samples"
            if not known["sampling"]["evaluations"]:
                missing["evaluations"] = "it generates by other ways through its network than evaluating it"
            assert self.scorer is not None
            scored = self.scorer.score(opened, generated_images(opened, runtime, n=self.args.n, seed=seed, label=None))
            said = f"{scored.path}{' was there already' if scored.reused else ''}"
            print_on_rank_zero(runtime, f"  {said}")
            known |= {"scores": scored.result.scores, "score_file": str(scored.path), "reused": scored.reused}
        else:
            missing |= dict.fromkeys(("scores", "sampling", "evaluations"), f"stage.kind {kind} generates no images")
            if isinstance(stage, Reconstructs):
                shown = run_summary.reconstruct(opened, self.real, range(len(self.real)), seed, runtime)
                label = "reconstructions"
        about = opened.describe()
        summary = RunSummary(
            name=name,
            run=path,
            stage=opened.experiment.stage.describe(),
            conditional=is_conditional(opened),
            parameters=run_summary.parameters(opened),
            missing=missing,
            **{key: about[key] for key in ("checkpoint", "step", "images_seen", "weights", "sampler")},
            **known,
        )
        return MeasuredRun(summary, shown, label, scored)


def choose(images: ShardImages, k: int, classes: int) -> UInt8[Tensor, "k c h w"]:
    """The first k of the images, image i of class i mod classes where there are labels."""
    chosen = list(range(min(k, images.n)))
    if classes and images.shards.lacking("cls") is None:
        of_class: dict[int, list[int]] = {}
        for i, label in enumerate(images.labels(range(images.n)).tolist()):
            of_class.setdefault(label, []).append(i)
        turns = [(i // classes, of_class.get(i % classes, [])) for i in range(k)]
        if all(turn < len(there) for turn, there in turns):
            chosen = [there[turn] for turn, there in turns]
    return torch.cat([images.images(range(i, i + 1)) for i in chosen])


def _floor(args: argparse.Namespace, runs: Sequence[Run]) -> ShardImages:
    """As many real images as are scored: those of --floor, else of the first run that was trained on images."""
    channels, resolution, _ = runs[0].shape
    places = [args.floor] if args.floor else [each.experiment.data.trained_on for each in runs]
    complaints = []
    for place in places:
        try:
            return ShardImages(shard_set.load(place), channels, resolution, n=args.n)
        except UserError as error:
            complaints.append(str(error))
    raise UserError(
        f"the floor takes real images beside the reference, by default what a run was trained on: {complaints[0]}; "
        f"give --floor"
    )


def require_one_size(sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless all runs make images of the same channels and resolution."""
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            there, here = (f"{channels}×{side}×{side}" for channels, side in (size, other))
            raise UserError(f"{first} makes images of {there} and {name} of {here}; compare runs of one size")


def require_comparable(scored: Mapping[str, Scored | None]) -> None:
    """Raise UserError unless all scores follow one protocol."""
    results = [(name, each.result) for name, each in scored.items() if each is not None]
    for (a, first), (b, second) in combinations(results, 2):
        try:
            require_alike(first, second, (a, b))
        except UserError as error:
            raise UserError(f"{error}, with --fresh") from error
