"""Remarks on a score: what it cannot be compared with, and that it is no score of new images."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from diffpipe import output
from diffpipe.experiment.run import Run
from diffpipe.plural import plural
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
        """Whether images, as a protocol describes them, are of these shards: by their fingerprint, or by their names.

        No file is looked at: the config may be somebody else's.
        """
        if self.fingerprint is not None and images.get("fingerprint") == self.fingerprint:
            return True
        words = [self.trained_on] if isinstance(self.trained_on, str) else self.trained_on
        places = {os.path.abspath(word) for word in words}  # noqa: PTH100 (Path.resolve follows links)
        globs = [place for place in places if set(place) & set("*?[")]
        shards = images.get("shards")
        paths = [path for path in shards if isinstance(path, str)] if isinstance(shards, list) else []
        for path in (os.path.abspath(path) for path in paths):  # noqa: PTH100
            if {path, os.path.dirname(path)} & places or any(fnmatch.fnmatchcase(path, g) for g in globs):  # noqa: PTH120
                return True
        return False


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
    """The expected Fréchet distance of N images exceeds that of infinitely many by about c/N (Chong and Forsyth)."""
    known = [n for n in counts if isinstance(n, int)]
    dims: dict[int, list[str]] = {}
    for name in metrics:
        metric = _section(metrics, name)
        dim = metric.get("dim")
        if metric.get("distance") == "frechet" and isinstance(dim, int) and known and min(known) < max(_FEW, dim):
            dims.setdefault(dim, []).append(name)
    return [
        f"{' and '.join(names)} is of {plural(f'{min(known):,}', 'image')} in {dim:,} feature dimensions: the Fréchet "
        "distance of few images is biased upwards, so compare it at equal numbers of images alone (Chong and Forsyth "
        "2020, arXiv:1911.07023)"
        for dim, names in dims.items()
    ]


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping at a key of a protocol, which may be somebody else's; empty where there is none."""
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}
