"""From images to scores: processes share the chunks of images, features are reduced once, and every process scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.metrics.feature_sets import Features, FeatureShares, Needs, OneRank, Ranks, chunks
from diffpipe.metrics.features import Extractor, build_extractor
from diffpipe.metrics.frechet import frechet_distance
from diffpipe.metrics.kernel import draw_subsets, kernel_distance
from diffpipe.metrics.names import METRICS, NEIGHBOURS, Metric, parse_metric
from diffpipe.metrics.prdc import prdc
from diffpipe.metrics.protocol import Result, provenance

ONE_RANK = OneRank()
SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 0


@runtime_checkable
class ImageSource(Protocol):
    """Images by index: generated from seeds or read from disk."""

    @property
    def n(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """JSON values that say where the images come from; with `fingerprint` for images that exist already."""
        ...

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        """The images of these indices within range(n): a pure function of the indices."""
        ...


def build_extractors(metrics: Sequence[str], **options: Any) -> dict[str, Extractor]:
    """The extractors that `metrics` need, by name. `options` are those of `build_extractor`. Raises UserError."""
    names = dict.fromkeys(parse_metric(name).extractor for name in metrics)
    return {name: build_extractor(name, **options) for name in names}


def evaluate(
    generated: ImageSource,
    reference: ImageSource,
    floor: ImageSource | None,
    metrics: Sequence[str],
    *,
    extractors: Mapping[str, Extractor],
    ranks: Ranks = ONE_RANK,
    device: str | torch.device = "cpu",
    on_generated: Callable[[range, Tensor], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Score `generated` against `reference`, with the floor beside it: real images against the same reference.

    `floor` holds as many real images as `generated`; None splits the reference into its even and its odd indices and
    scores one half against the other. Every rank calls this and returns the same Result. Chunks of 50 consecutive
    images go to rank (chunk mod world): the features do not depend on the number of ranks, and the scores only through
    the order of float64 sums (less than 1e-9).

    extractors: by name, see `build_extractors`. ranks: the processes that share the images. device: where sums of
    features are reduced, this rank's device. on_generated: called with the indices and the images uint8 [b c h w] of
    each chunk that this rank generates, which happens once for all metrics. progress: called with the images done and
    the images in all, of this rank. Raises UserError, on all ranks.
    """
    by_name = {name: parse_metric(name) for name in dict.fromkeys(metrics)}
    _check(generated, reference, floor, by_name)
    keep = {metric.extractor: False for metric in by_name.values()}
    keep |= {metric.extractor: True for metric in by_name.values() if metric.kind != "fd"}
    sources = {"generated": generated, "reference": reference} | ({"floor": floor} if floor else {})
    needs = {
        (key, name): Needs(source.n, extractors[name].dim, halves=key == "reference" and floor is None, features=kept)
        for key, source in sources.items()
        for name, kept in keep.items()
    }
    shares = FeatureShares(needs, torch.device(device))
    # A rank that fails tells the others, which would otherwise wait for it for ever.
    ranks.raise_on_all_ranks(lambda: _collect(shares, sources, extractors, ranks, on_generated, progress))
    sets = shares.reduce(ranks)
    scores, floors, described = {}, {}, {}
    neighbours = functools.cache(prdc)  # its four metrics share one pass over all pairs
    for name, metric in by_name.items():
        real = sets["reference", metric.extractor]
        scores[name] = _score(metric, sets["generated", metric.extractor].all, real.all, neighbours)
        pair = (real.even, real.odd) if floor is None else (sets["floor", metric.extractor].all, real.all)
        floors[name] = _score(metric, *pair, neighbours)
        described[name] = _describe(metric, extractors[metric.extractor], min(generated.n, reference.n))
    return Result(scores, floors, {"metrics": described, **describe_sources(sources), **provenance()})


def _collect(
    shares: FeatureShares,
    sources: Mapping[str, ImageSource],
    extractors: Mapping[str, Extractor],
    ranks: Ranks,
    on_generated: Callable[[range, Tensor], object] | None,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Fill `shares`, keyed by source and extractor, with this rank's chunks of every source."""
    work = [(key, chunk) for key, source in sources.items() for chunk in chunks(source.n, ranks.rank, ranks.world)]
    done, total = 0, sum(len(chunk) for _, chunk in work)
    for key, chunk in work:
        images = sources[key].images(chunk)
        if key == "generated" and on_generated:
            on_generated(chunk, images)
        for source, name in shares.needs:
            if source == key:
                shares.add((source, name), extractors[name](images))
        done += len(chunk)
        if progress:
            progress(done, total)


def _check(
    generated: ImageSource, reference: ImageSource, floor: ImageSource | None, metrics: Mapping[str, Metric]
) -> None:
    if not metrics:
        raise UserError(f"no metric was asked for; known: {', '.join(METRICS)}")
    if generated.n < 2:
        raise UserError(f"n is {generated.n}, and a score needs at least 2 generated images; give a larger n")
    if reference.n < (2 if floor else 4):
        raise UserError(f"the reference has {reference.n} images, which is too few for a score; give a larger one")
    if floor and floor.n != generated.n:
        raise UserError(
            f"the floor has {floor.n} images and {generated.n} are generated: at unequal n they cannot be compared; "
            "give as many, or leave the floor out to score the reference's halves"
        )


def _score(
    metric: Metric, a: Features | None, b: Features | None, neighbours: Callable[[Tensor, Tensor], Mapping[str, float]]
) -> float:
    """The metric of `a` against the real images `b`."""
    assert a is not None
    assert b is not None
    if metric.kind == "fd":
        return frechet_distance(a.moments, b.moments)
    assert a.features is not None
    assert b.features is not None
    if metric.kind in NEIGHBOURS:
        return neighbours(b.features, a.features)[metric.kind]
    subsets = draw_subsets(len(a.features), len(b.features), SUBSETS, SUBSET_SIZE, SUBSET_SEED)
    return kernel_distance(a.features, b.features, subsets)


def _describe(metric: Metric, extractor: Extractor, n: int) -> dict[str, Any]:
    network = {
        "extractor": extractor.name,
        "sha256": extractor.sha256,
        "resize": extractor.resize,
        "dim": extractor.dim,
    }
    if metric.kind == "fd":
        return network | {"distance": "frechet"}
    if metric.kind in NEIGHBOURS:
        return network | {"distance": "euclidean", "k": NEIGHBOURS[metric.kind]}
    return network | {
        "distance": "unbiased MMD^2, kernel (x.y/d + 1)^3",
        "subsets": SUBSETS,
        "subset_size": min(n, SUBSET_SIZE),
        "seed": SUBSET_SEED,
    }


def describe_sources(sources: Mapping[str, ImageSource]) -> dict[str, Any]:
    """The part of a protocol about `generated`, `reference` and `floor`; without a floor, the reference's halves."""
    described: dict[str, Any] = {key: {"n": source.n, **source.describe()} for key, source in sources.items()}
    if "floor" not in described:
        n = sources["reference"].n
        described["floor"] = {"n": [(n + 1) // 2, n // 2], "images": "the reference's even against its odd indices"}
    return described
