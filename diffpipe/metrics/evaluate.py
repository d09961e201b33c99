"""From images to scores: processes share the chunks of images, features are reduced once, and every process scores."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.metrics.features import Extractor, build_extractor
from diffpipe.metrics.frechet import frechet_distance
from diffpipe.metrics.kernel import draw_subsets, kernel_distance
from diffpipe.metrics.moments import Moments
from diffpipe.metrics.names import METRICS, NEIGHBOURS, Metric, parse_metric
from diffpipe.metrics.prdc import prdc
from diffpipe.metrics.protocol import Result, provenance

# Fixed, whatever the number of processes: convolutions round differently for another batch size.
CHUNK = 50
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
    rank: int = 0,
    world: int = 1,
    gather: Callable[[Any], Sequence[Any]] = lambda value: [value],
    on_generated: Callable[[range, Tensor], object] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Result:
    """Score `generated` against `reference`, with the floor beside it: real images against the same reference.

    `floor` holds as many real images as `generated`; None splits the reference into its even and its odd indices and
    scores one half against the other. Every rank calls this and returns the same Result; `gather` returns the list of
    all ranks' values in rank order, and is called once. Chunks of 50 consecutive images go to rank (chunk mod world):
    the features do not depend on `world`, and the scores only through the order of float64 sums (less than 1e-9).

    extractors: by name, see `build_extractors`. on_generated: called with the indices and the images uint8 [b c h w] of
    each chunk that this rank generates, which happens once for all metrics. progress: called with the images done and
    the images in all, of this rank. Raises UserError.
    """
    by_name = {name: parse_metric(name) for name in dict.fromkeys(metrics)}
    _check(generated, reference, floor, by_name)
    keep = {metric.extractor: False for metric in by_name.values()}
    keep |= {metric.extractor: True for metric in by_name.values() if metric.kind != "fd"}
    sources = {"generated": generated, "reference": reference} | ({"floor": floor} if floor else {})
    shares = {(key, name): _Share(extractors[name].dim, keep[name]) for key in sources for name in keep}
    try:
        _collect(shares, sources, extractors, rank, world, on_generated, progress)
        failure = None
    except UserError as error:
        failure = error
    # A rank that fails tells the others, which would otherwise wait for it for ever.
    gathered, failures = zip(*gather((shares, failure)), strict=True)
    for error in (failure, *failures):
        if error is not None:
            raise error
    sets = {key: _merge([of_rank[key] for of_rank in gathered]) for key in shares}
    scores, floors, described = {}, {}, {}
    neighbours = functools.cache(prdc)  # its four metrics share one pass over all pairs
    for name, metric in by_name.items():
        real = sets["reference", metric.extractor]
        scores[name] = _score(metric, sets["generated", metric.extractor].all, real.all, neighbours)
        pair = (sets["floor", metric.extractor].all, real.all) if floor else (real.even, real.odd)
        floors[name] = _score(metric, *pair, neighbours)
        described[name] = _describe(metric, extractors[metric.extractor], min(generated.n, reference.n))
    return Result(scores, floors, {"metrics": described, **_describe_sources(sources), **provenance()})


def _collect(
    shares: Mapping[tuple[str, str], _Share],
    sources: Mapping[str, ImageSource],
    extractors: Mapping[str, Extractor],
    rank: int,
    world: int,
    on_generated: Callable[[range, Tensor], object] | None,
    progress: Callable[[int, int], object] | None,
) -> None:
    """Fill `shares`, keyed by source and extractor, with this rank's chunks of every source."""
    work = [(key, chunk) for key, source in sources.items() for chunk in chunks(source.n, rank, world)]
    done, total = 0, sum(len(chunk) for _, chunk in work)
    for key, chunk in work:
        images = sources[key].images(chunk)
        if key == "generated" and on_generated:
            on_generated(chunk, images)
        for (source, name), share in shares.items():
            if source == key:
                share.add(chunk, extractors[name](images))
        done += len(chunk)
        if progress:
            progress(done, total)


def chunks(n: int, rank: int = 0, world: int = 1) -> list[range]:
    """This rank's chunks of range(n). The chunks of all ranks together are those of one process."""
    return [range(start, min(start + CHUNK, n)) for start in range(rank * CHUNK, n, world * CHUNK)]


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


class _Features(NamedTuple):
    """Moments, and for all but the Fréchet distance the features themselves in the order of their indices."""

    moments: Moments
    features: Float[Tensor, "n d"] | None


class _Set(NamedTuple):
    all: _Features
    even: _Features
    odd: _Features


@dataclass
class _Share:
    """One rank's features of one source: moments of its even and its odd indices, and features by chunk.

    keep: whether the features themselves are needed.
    """

    dim: int
    keep: bool
    features: dict[int, Tensor] = field(default_factory=dict)
    moments: list[Moments] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = [Moments.of(torch.zeros(0, self.dim)) for _ in range(2)]

    def add(self, chunk: range, features: Float[Tensor, "b d"]) -> None:
        assert chunk.start % 2 == 0
        self.moments = [total + Moments.of(features[i::2]) for i, total in enumerate(self.moments)]
        if self.keep:
            self.features[chunk.start] = features


def _merge(shares: Sequence[_Share]) -> _Set:
    even, odd = (functools.reduce(operator.add, parity) for parity in zip(*(s.moments for s in shares), strict=True))
    by_start = {start: features for share in shares for start, features in share.features.items()}
    x = torch.cat([by_start[start] for start in sorted(by_start)]) if by_start else None
    halves = (None, None) if x is None else (x[0::2], x[1::2])
    return _Set(_Features(even + odd, x), _Features(even, halves[0]), _Features(odd, halves[1]))


def _score(
    metric: Metric, a: _Features, b: _Features, neighbours: Callable[[Tensor, Tensor], Mapping[str, float]]
) -> float:
    """The metric of `a` against the real images `b`."""
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


def _describe_sources(sources: Mapping[str, ImageSource]) -> dict[str, Any]:
    described: dict[str, Any] = {key: {"n": source.n, **source.describe()} for key, source in sources.items()}
    if "floor" not in described:
        n = sources["reference"].n
        described["floor"] = {"n": [(n + 1) // 2, n // 2], "images": "the reference's even against its odd indices"}
    return described
