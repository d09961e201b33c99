"""From images to scores: processes share the chunks of images, features are reduced once, and every process scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.metrics.feature_sets import Features, FeatureShares, Needs, OneRank, Ranks, chunks, gather_chunks
from diffpipe.metrics.features import Extractor, build_extractor
from diffpipe.metrics.frechet import frechet_distance
from diffpipe.metrics.image_hashes import image_hashes
from diffpipe.metrics.kernel import draw_subsets, kernel_distance
from diffpipe.metrics.names import METRICS, NEIGHBOURS, Metric, parse_metric
from diffpipe.metrics.prdc import prdc
from diffpipe.metrics.protocol import Result, provenance
from diffpipe.plural import plural

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
    on_hashes: Callable[[Mapping[str, Int64[Tensor, " n"]]], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Score `generated` against `reference`, with the floor beside it: real images against the same reference.

    `floor` holds as many real images as `generated`; None splits the reference into halves by the hashes of its images
    (`split_by_hash`) and scores one against the other. The order of the images of a set does not matter. Every rank
    calls this and returns the same Result. Chunks of 50 consecutive images go to rank (chunk mod world): the features
    do not depend on the number of ranks, and the scores only through the order of float64 sums (less than 1e-9).

    extractors: by name, see `build_extractors`. ranks: the processes that share the images. device: where sums of
    features are reduced, this rank's device. on_generated: called with the indices and the images uint8 [b c h w] of
    each chunk that this rank generates, which happens once for all metrics. on_hashes: called on all ranks with the
    hashes of all images, by source: of the real ones before any is generated, and of all at the end. progress: called
    with the images done and the images in all, of this rank. Raises UserError, on all ranks.
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
    collector = _Collector(
        sources, extractors, ranks, FeatureShares(needs, torch.device(device)), bool(on_hashes), on_generated, progress
    )
    hashes: dict[str, Tensor] = {}
    for keys in ([key for key in sources if key != "generated"], ["generated"]):
        for key in keys:
            hashes |= collector.collect(key)
        if on_hashes:
            on_hashes(hashes)
    sets = collector.shares.reduce(ranks, hashes)
    scores, floors, described = {}, {}, {}
    about = describe_sources(sources)
    size = about["generated"].get("size")
    neighbours = functools.cache(prdc)  # its four metrics share one pass over all pairs
    for name, metric in by_name.items():
        real = sets["reference", metric.extractor]
        scores[name] = _score(metric, sets["generated", metric.extractor].all, real.all, neighbours)
        pair = real.halves or (sets["floor", metric.extractor].all, real.all)
        floors[name] = _score(metric, *pair, neighbours)
        described[name] = _describe(metric, extractors[metric.extractor], min(generated.n, reference.n), size)
    return Result(scores, floors, {"metrics": described, **about, **provenance()})


@dataclass
class _Collector:
    """Collects the features of the sources, each rank those of its chunks.

    hash_all: whether to hash the images of all sources, and not only of those whose features need it. done: this rank's
    images so far.
    """

    sources: Mapping[str, ImageSource]
    extractors: Mapping[str, Extractor]
    ranks: Ranks
    shares: FeatureShares
    hash_all: bool
    on_generated: Callable[[range, Tensor], object] | None
    progress: Callable[[int, int], object] | None
    done: int = 0

    def collect(self, key: str) -> dict[str, Int64[Tensor, " n"]]:
        """Add the features of a source to `shares`. Returns the hashes of its images by its key, where needed.

        A collective. Raises UserError on all ranks.
        """
        # A rank that fails tells the others, which would otherwise wait for it for ever.
        own = self.ranks.raise_on_all_ranks(lambda: self._collect_own(key))
        if not self._hashes(key):
            return {}
        one = torch.zeros((), dtype=torch.int64)
        return {key: gather_chunks(own, self.sources[key].n, one, self.ranks, self.shares.sums.device)}

    def _hashes(self, key: str) -> bool:
        return self.hash_all or any(need.hashes for (source, _), need in self.shares.needs.items() if source == key)

    def _own(self, source: ImageSource) -> list[range]:
        return chunks(source.n, self.ranks.rank, self.ranks.world)

    def _collect_own(self, key: str) -> list[Int64[Tensor, " b"]]:
        """Take this rank's chunks. Returns their hashes, where needed."""
        hashes = []
        total = sum(len(chunk) for source in self.sources.values() for chunk in self._own(source))
        for chunk in self._own(self.sources[key]):
            images = self.sources[key].images(chunk)
            if key == "generated" and self.on_generated:
                self.on_generated(chunk, images)
            if self._hashes(key):
                hashes.append(image_hashes(images))
            for source, name in self.shares.needs:
                if source == key:
                    self.shares.add((source, name), self.extractors[name](images))
            self.done += len(chunk)
            if self.progress:
                self.progress(self.done, total)
        return hashes


def _check(
    generated: ImageSource, reference: ImageSource, floor: ImageSource | None, metrics: Mapping[str, Metric]
) -> None:
    if not metrics:
        raise UserError(f"no metric was asked for; known: {', '.join(METRICS)}")
    if generated.n < 2:
        raise UserError(f"n is {generated.n}, and a score needs at least 2 generated images; give a larger n")
    if reference.n < (2 if floor else 4):
        raise UserError(
            f"the reference has {plural(reference.n, 'image')}, which is too few for a score; give a larger one"
        )
    if floor and floor.n != generated.n:
        raise UserError(
            f"the floor has {plural(floor.n, 'image')} and {generated.n} are generated: at unequal n they cannot be "
            "compared; give as many, or leave the floor out to score the reference's halves"
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


def _describe(metric: Metric, extractor: Extractor, n: int, size: Sequence[int] | None) -> dict[str, Any]:
    """size: height and width of the images, where they are known."""
    stretched = "" if size is None or size[0] == size[1] else f"; height and width each by its own factor from {size}"
    network = {
        "extractor": extractor.name,
        "sha256": extractor.sha256,
        "resize": extractor.resize + stretched,
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
        "order": "by the hashes of the images",
    }


def describe_sources(sources: Mapping[str, ImageSource]) -> dict[str, Any]:
    """The part of a protocol about `generated`, `reference` and `floor`; without a floor, the reference's halves."""
    described: dict[str, Any] = {key: {"n": source.n, **source.describe()} for key, source in sources.items()}
    if "floor" not in described:
        n = sources["reference"].n
        described["floor"] = {
            "n": [(n + 1) // 2, n // 2],
            "images": "the halves of the reference by the hashes of its images",
        }
    return described
