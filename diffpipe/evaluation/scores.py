"""Scores on all processes of a job, with a progress bar, and as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffpipe.errors import UserError
from diffpipe.metrics.evaluate import ImageSource, build_extractors, evaluate
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.names import shown_name, shown_value
from diffpipe.metrics.protocol import Result
from diffpipe.progress_bar import progress_bar
from diffpipe.train.runtime import Runtime


def score(
    generated: ImageSource,
    reference: ImageSource,
    floor: ImageSource | None,
    metrics: Sequence[str],
    runtime: Runtime,
    *,
    inception_weights: str | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    on_generated: Callable[[range, Any], object] | None = None,
    on_hashes: Callable[[Mapping[str, Any]], object] | None = None,
) -> Result:
    """Evaluate on all ranks, with a progress bar on rank 0. A collective. Raises UserError on all ranks.

    extractors: from `load_extractors`, where several scores share them. on_hashes: see `evaluate`, and `overlap_check`.
    """
    if isinstance(metrics, str):
        raise UserError(f"metrics is {metrics!r}; give a list of names")
    if generated.n < 2:
        raise UserError(f"n is {generated.n}; a score needs at least 2 images")
    extractors = extractors or load_extractors(metrics, runtime, inception_weights)
    total = generated.n + reference.n + (floor.n if floor else 0)
    with progress_bar("score", "image", total, shown=runtime.main) as bar:

        def progress(done: int, share: int) -> None:
            bar.update(total * done // share - bar.n)

        return evaluate(
            generated,
            reference,
            floor,
            metrics,
            extractors=extractors,
            ranks=runtime.comm,
            device=runtime.device,
            on_generated=on_generated,
            on_hashes=on_hashes,
            progress=progress,
        )


def load_extractors(
    metrics: Sequence[str], runtime: Runtime, inception_weights: str | None = None
) -> dict[str, Extractor]:
    """The feature networks of `metrics`, on this rank's device. A collective. Raises UserError on all ranks."""
    return runtime.comm.raise_on_all_ranks(
        lambda: build_extractors(
            metrics,
            device=runtime.device,
            inception_weights=inception_weights,
            rank=runtime.rank,
            barrier=runtime.comm.barrier,
        )
    )


def table(result: Result) -> str:
    """One line per metric, with the floor beside the score."""
    lines, width = [], max(len(shown_name(name)) for name in result.scores)
    for name, value in result.scores.items():
        shown, floor = (shown_value(name, number) for number in (value, result.floor[name]))
        lines.append(f"{shown_name(name):>{width}}{shown:12.3f}   (real images against the same: {floor:.3f})")
    return "\n".join(lines)
