"""Scores that are not measured twice: existing score files are reused, and features of the same images are cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.score_files import score_file
from diffpipe.evaluation.scores import load_extractors, score
from diffpipe.experiment.run import Run
from diffpipe.metrics import protocol
from diffpipe.metrics.evaluate import ImageSource, describe_sources
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.protocol import Result
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


class CachedScore(NamedTuple):
    """A score, its file, and whether the file existed already."""

    result: Result
    path: Path
    reused: bool


class Scorer:
    """Scores of several runs against the same real images, whose features are computed once.

    fresh: measure also scores that have a file. inception_weights: as in `scores.score`.
    """

    def __init__(
        self,
        reference: ImageSource,
        floor: ImageSource | None,
        metrics: Sequence[str],
        runtime: Runtime,
        *,
        fresh: bool = False,
        inception_weights: str | None = None,
    ):
        self.reference, self.floor, self.metrics, self.runtime = reference, floor, tuple(metrics), runtime
        self.fresh, self._inception_weights = fresh, inception_weights
        self._extractors: dict[str, Extractor] = {}

    def score(self, run: Run, generated: ImageSource) -> CachedScore:
        """The score of the run's images, in a file in its scores/ where that can be written. A collective.

        Raises UserError.
        """
        sources = {"generated": generated, "reference": self.reference}
        sources |= {} if self.floor is None else {"floor": self.floor}
        plan = ScorePlan.of(run, sources, self.metrics)
        existing = self.runtime.comm.gather(plan.existing() if self.runtime.main and not self.fresh else None)[0]
        if existing is not None:
            return CachedScore(_select(existing[0], self.metrics), existing[1], reused=True)
        if not self._extractors:
            loaded = load_extractors(self.metrics, self.runtime, self._inception_weights)
            self._extractors = {name: cache_features(extractor) for name, extractor in loaded.items()}
        result = score(generated, self.reference, self.floor, self.metrics, self.runtime, extractors=self._extractors)
        if self.runtime.main:
            try:
                protocol.write(result, plan.path)
            except UserError as error:  # the comparison has the scores
                print_on_rank_zero(self.runtime, f"warning: {error.__cause__ or error}: the score is not kept there")
        return CachedScore(result, plan.path, reused=False)


class ScorePlan(NamedTuple):
    """The protocol and the metrics of a score, and its file in the run's scores/, which may not exist yet."""

    protocol: dict[str, Any]
    metrics: Sequence[str]
    path: Path

    @classmethod
    def of(cls, run: Run, sources: Mapping[str, ImageSource], metrics: Sequence[str]) -> ScorePlan:
        """sources: `generated`, `reference` and, unless it is of the reference's halves, `floor`."""
        defining = _defining(describe_sources(sources) | {"versions": protocol.versions()})
        named = defining | {"metrics": sorted(metrics)}
        path = score_file(run.home, "compare", run.checkpoint.step, sources["generated"].n, named)
        return cls(defining, metrics, path)

    def existing(self) -> tuple[Result, Path] | None:
        """A score file of the run with this protocol and these metrics, whichever command wrote it."""
        for path in [self.path, *sorted(self.path.parent.glob("*.json"))]:
            try:
                result = protocol.read(path)
                defining = _defining(result.protocol)
            except (ValueError, TypeError):
                continue  # no score file, such as that of another command
            if defining == self.protocol and result.scores.keys() >= set(self.metrics):
                return result, path
        return None


def _defining(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that define a score: not the paths of the shards, because their fingerprints are there."""
    parts = {key: dict(protocol.get(key, {})) for key in ("generated", "reference", "floor", "versions")}
    for part in parts.values():
        part.pop("shards", None)
        part.pop("folder", None)
    return json.loads(json.dumps(parts))


def _select(result: Result, metrics: Sequence[str]) -> Result:
    """The score with these metrics only."""
    protocol = result.protocol | {"metrics": {name: result.protocol["metrics"][name] for name in metrics}}
    return Result({m: result.scores[m] for m in metrics}, {m: result.floor[m] for m in metrics}, protocol)


def cache_features(extractor: Extractor) -> Extractor:
    """The extractor, with a cache of features by the content of each chunk of images."""
    cache: dict[str, Tensor] = {}

    def network(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        key = f"{tuple(images.shape)} {hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()}"
        if key not in cache:
            cache[key] = extractor.network(images).float().cpu()
        return cache[key]

    return dataclasses.replace(extractor, network=network)
