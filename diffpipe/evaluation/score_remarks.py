"""Remarks on a score: what it cannot be compared with, and that it is no score of new images."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffpipe import output
from diffpipe.experiment.run import Run
from diffpipe.train.runtime import Runtime

_FEW = 1000
"""Fewer images than this, or than there are feature dimensions, are few for a Fréchet distance."""


class TrainingData(NamedTuple):
    """The shards that a run was trained on: their fingerprint, where it is known, and their names in the config."""

    fingerprint: str | None
    trained_on: str | Sequence[str]

    @classmethod
    def of(cls, run: Run) -> TrainingData:
        """The data of a run."""
        return cls(run.checkpoint.state.fingerprint, run.experiment.data.trained_on)

    def holds(self, images: Mapping[str, Any]) -> bool:
        """Whether images, as a protocol describes them, are of these shards, by their fingerprint or their paths."""
        if self.fingerprint is not None and images.get("fingerprint") == self.fingerprint:
            return True
        patterns = [self.trained_on] if isinstance(self.trained_on, str) else self.trained_on
        shards = images.get("shards")
        paths = [path for path in shards if isinstance(path, str)] if isinstance(shards, list) else []
        return any(_matches(path, pattern) for path in paths for pattern in patterns)


def score_remarks(protocol: Mapping[str, Any], trained: TrainingData | None = None) -> list[str]:
    """Sentences on a score with this protocol, of a run that was trained on this data."""
    generated, reference = (_section(protocol, key) for key in ("generated", "reference"))
    remarks = _on_few_images(_section(protocol, "metrics"), generated.get("n"), reference.get("n"))
    if trained is not None and trained.holds(reference):
        remarks.append(
            "the reference holds shards that the run was trained on, so copies of training images score best; give "
            "images that it has not seen"
        )
    return remarks


def print_remarks(remarks: Iterable[str], runtime: Runtime) -> None:
    """Print remarks on rank zero. They are among the notes of a command's JSON."""
    if runtime.main:
        for remark in remarks:
            output.current.note(remark)


def _on_few_images(metrics: Mapping[str, Any], *counts: Any) -> list[str]:
    """Chong and Forsyth 2020: the expected Fréchet distance of N images is that of endless ones and about c/N more."""
    known = [n for n in counts if isinstance(n, int)]
    dims: dict[int, list[str]] = {}
    for name in metrics:
        metric = _section(metrics, name)
        dim = metric.get("dim")
        if metric.get("distance") == "frechet" and isinstance(dim, int) and known and min(known) < max(_FEW, dim):
            dims.setdefault(dim, []).append(name)
    return [
        f"{' and '.join(names)} is of {min(known):,} images in {dim:,} feature dimensions: the Fréchet distance of few "
        "images is biased upwards, so compare it at equal numbers of images alone (Chong and Forsyth 2020, "
        "arXiv:1911.07023)"
        for dim, names in dims.items()
    ]


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key of a protocol, which may be somebody else's; empty where there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _matches(path: str, pattern: str) -> bool:
    """Whether a folder, path or glob names a shard, by its words alone."""
    shard, name = (Path(os.path.abspath(word)) for word in (path, pattern))  # noqa: PTH100 (no file is looked at)
    return name in (shard, shard.parent) or fnmatch.fnmatchcase(str(shard), str(name))
