"""Scores that need not be measured twice: score files found again, and features of the same images kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffpipe import __version__
from diffpipe.errors import UserError
from diffpipe.evaluation.scores import load_extractors, score
from diffpipe.experiment.run import Run
from diffpipe.metrics import protocol
from diffpipe.metrics.evaluate import ImageSource
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.protocol import Result
from diffpipe.train.runtime import Runtime


class Scored(NamedTuple):
    """A score, the file that holds it, and whether that was there already."""

    result: Result
    path: Path
    reused: bool


class Scorer:
    """Scores of several runs against the same real images, whose features are found once.

    fresh: measure also what a file says already. inception_weights: see `scoring.score`.
    """

    def __init__(
        self,
        reference: ImageSource,
        floor: ImageSource,
        metrics: Sequence[str],
        runtime: Runtime,
        *,
        fresh: bool = False,
        inception_weights: str | None = None,
    ):
        self.reference, self.floor, self.metrics, self.runtime = reference, floor, tuple(metrics), runtime
        self.fresh, self._inception_weights = fresh, inception_weights
        self._extractors: dict[str, Extractor] = {}

    def score(self, run: Run, generated: ImageSource) -> Scored:
        """The score of what the run generates, in a file in its scores/. A collective. Raises UserError."""
        sources = {"generated": generated, "reference": self.reference, "floor": self.floor}
        plan = Plan.of(run, sources, self.metrics)
        made = self.runtime.comm.gather(plan.made() if self.runtime.main and not self.fresh else None)[0]
        if made is not None:
            return Scored(_only(made[0], self.metrics), made[1], reused=True)
        if not self._extractors:
            loaded = load_extractors(self.metrics, self.runtime, self._inception_weights)
            self._extractors = {name: remembering(extractor) for name, extractor in loaded.items()}
        result = score(generated, self.reference, self.floor, self.metrics, self.runtime, extractors=self._extractors)
        self.runtime.comm.raise_on_all_ranks(lambda: protocol.write(result, plan.path) if self.runtime.main else None)
        return Scored(result, plan.path, reused=False)


class Plan(NamedTuple):
    """A score to be made, and the file in the run's scores/ that holds it or one day will."""

    said: dict[str, Any]
    metrics: Sequence[str]
    path: Path

    @classmethod
    def of(cls, run: Run, sources: Mapping[str, ImageSource], metrics: Sequence[str]) -> Plan:
        """sources: `generated`, `reference` and `floor`, as `evaluate` takes them."""
        said: dict[str, Any] = {key: {"n": source.n, **source.describe()} for key, source in sources.items()}
        said["versions"] = {"diffpipe": __version__, "torch": str(torch.__version__)}
        said = _identity(said)
        digest = hashlib.sha256(json.dumps([said, sorted(metrics)], sort_keys=True).encode()).hexdigest()
        name = f"compare-step-{run.checkpoint.step:08d}-n{sources['generated'].n}-{digest[:12]}.json"
        return cls(said, metrics, run.home / "scores" / name)

    def made(self) -> tuple[Result, Path] | None:
        """A score file of the run that was made by this very plan, whichever command made it."""
        for path in [self.path, *sorted(self.path.parent.glob("*.json"))]:
            try:
                result = protocol.read(path)
            except UserError:
                continue  # another command's file, or none
            if _identity(result.protocol) == self.said and result.scores.keys() >= set(self.metrics):
                return result, path
        return None


def _identity(said: Mapping[str, Any]) -> dict[str, Any]:
    """What of a protocol makes a score what it is: not where the shards lie, whose fingerprints are in it."""
    parts = {key: dict(said.get(key, {})) for key in ("generated", "reference", "floor", "versions")}
    for part in parts.values():
        part.pop("shards", None)
    return json.loads(json.dumps(parts))


def _only(result: Result, metrics: Sequence[str]) -> Result:
    """The same score without further metrics."""
    said = result.protocol | {"metrics": {name: result.protocol["metrics"][name] for name in metrics}}
    return Result({m: result.scores[m] for m in metrics}, {m: result.floor[m] for m in metrics}, said)


def remembering(extractor: Extractor) -> Extractor:
    """The extractor, which finds the features of one chunk of images once, however often the chunk comes."""
    kept: dict[str, Tensor] = {}

    def network(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        key = f"{tuple(images.shape)} {hashlib.sha256(images.cpu().contiguous().numpy().tobytes()).hexdigest()}"
        if key not in kept:
            kept[key] = extractor.network(images).float().cpu()
        return kept[key]

    return dataclasses.replace(extractor, network=network)
