"""Evaluation: the same scores on any number of processes, from features that do not know how many there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.metrics.evaluate import build_extractors, evaluate
from diffpipe.metrics.feature_sets import CHUNK, Ranks
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.frechet import frechet_distance
from diffpipe.metrics.image_hashes import image_hashes
from diffpipe.metrics.kernel import draw_subsets, kernel_distance
from diffpipe.metrics.moments import Moments
from diffpipe.metrics.protocol import Result
from tests.support import thread_ranks

LITE0 = ["fd_efficientnet_lite0", "kid_efficientnet_lite0"]


@pytest.fixture(autouse=True)
def _feature_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins of these names: `fd_a` is a metric."""
    monkeypatch.setitem(plugins._parts, "feature_networks", {"a": object, "c": object})


class Blobs:
    """Soft random images, each from its own seed; lists the indices that were asked for."""

    def __init__(self, n: int, channels: int = 3, seed: int = 0, brightness: float = 0.0):
        self.n, self.channels, self.seed, self.brightness = n, channels, seed, brightness
        self.indices: list[int] = []

    def describe(self) -> dict[str, Any]:
        return {"fingerprint": f"blobs {self.seed}"}

    def images(self, indices: range) -> torch.Tensor:
        self.indices += indices
        coarse = [np.random.default_rng((self.seed, i)).normal(size=(self.channels, 4, 4)) for i in indices]
        x = torch.nn.functional.interpolate(torch.from_numpy(np.stack(coarse)), (16, 16), mode="bilinear")
        return (x * 60 + 128 + self.brightness).clamp(0, 255).to(torch.uint8)


def pixels(name: str = "pixels") -> Extractor:
    """A cheap network of 12 features."""
    weights = torch.from_numpy(np.random.default_rng(5).normal(size=(768, 12)).astype(np.float32)) / 100
    return Extractor(name, 12, "hash", "none", lambda x: torch.relu((x.float() - 128).flatten(1) @ weights + 1))


@pytest.fixture(scope="module")
def lite0() -> dict[str, Extractor]:
    return build_extractors(LITE0)


def on_ranks(world: int, run: Callable[..., Result]) -> list[Result]:
    """The results of `run` on `world` threads, each of which is a rank."""
    return thread_ranks.on_ranks(world, lambda runtime: run(ranks=runtime.comm))


def without_date(result: Result) -> dict[str, Any]:
    return {key: value for key, value in result.protocol.items() if key != "date"}


@pytest.mark.slow
def test_one_and_two_processes_agree_on_every_score(lite0: dict[str, Extractor]) -> None:
    def run(**ranks: Any) -> Result:
        return evaluate(Blobs(55), Blobs(60, channels=1, seed=1), None, LITE0, extractors=lite0, **ranks)

    one, both = run(), on_ranks(2, run)
    for other in both:
        assert other.scores == pytest.approx(one.scores, rel=0, abs=1e-9)
        assert other.floor == pytest.approx(one.floor, rel=0, abs=1e-9)
        assert without_date(other) == without_date(one)
    assert one.scores["fd_efficientnet_lite0"] > 1


@pytest.mark.parametrize("world", [2, 3, 5])
def test_features_do_not_depend_on_the_number_of_processes(world: int) -> None:
    def run(**ranks: Any) -> Result:
        sources = Blobs(170), Blobs(203, seed=1), Blobs(170, seed=2)
        return evaluate(*sources, ["fd_a", "kid_a"], extractors={"a": pixels()}, **ranks)

    one = run()
    for other in on_ranks(world, run):
        for ours, theirs in ((one.scores, other.scores), (one.floor, other.floor)):
            # The kernel distance sees the features themselves, so they are the same bits in the same order.
            assert theirs["kid_a"] == ours["kid_a"]
            assert theirs["fd_a"] == pytest.approx(ours["fd_a"], rel=0, abs=1e-9)


def features_by_hash(extractor: Extractor, source: Blobs) -> torch.Tensor:
    """The features of a source's images, one image at a time, in the order of the hashes."""
    x = torch.cat([extractor(source.images(range(i, i + 1))) for i in range(source.n)])
    return x[image_hashes(source.images(range(source.n))).argsort()]


def test_scores_are_the_distances_of_the_features_in_the_order_of_hashes() -> None:
    extractor, generated, reference, floor = pixels(), Blobs(120), Blobs(140, seed=1), Blobs(120, seed=2)
    g, r, f = (features_by_hash(extractor, source) for source in (generated, reference, floor))
    result = evaluate(generated, reference, floor, ["fd_a", "kid_a"], extractors={"a": extractor})
    for scores, x in ((result.scores, g), (result.floor, f)):
        assert scores["fd_a"] == pytest.approx(frechet_distance(Moments.of(x), Moments.of(r)), rel=1e-5)
        assert scores["kid_a"] == pytest.approx(kernel_distance(x, r, draw_subsets(120, 140)), rel=1e-4)


def test_without_a_floor_the_references_halves_are_scored() -> None:
    extractor, reference = pixels(), Blobs(141, seed=1)
    result = evaluate(Blobs(60, brightness=-40), reference, None, ["fd_a"], extractors={"a": extractor})
    x = features_by_hash(extractor, reference)
    expected = frechet_distance(Moments.of(x[:71]), Moments.of(x[71:]))
    assert result.floor["fd_a"] == pytest.approx(expected, rel=1e-5)
    assert result.protocol["floor"]["n"] == [71, 70]
    assert result.floor["fd_a"] < result.scores["fd_a"]


class Shuffled(Blobs):
    """The same images in another order."""

    def images(self, indices: range) -> torch.Tensor:
        order = np.random.default_rng(7).permutation(self.n)
        return super().images(range(self.n))[order[indices.start : indices.stop]]


@pytest.mark.parametrize("with_floor", [False, True])
def test_the_order_of_the_images_does_not_matter(with_floor: bool) -> None:
    def score(kind: type[Blobs]) -> Result:
        floor = kind(120, seed=2) if with_floor else None
        names = ["fd_a", "kid_a", "recall_a"]
        return evaluate(kind(120), kind(143, seed=1), floor, names, extractors={"a": pixels()})

    ordered, shuffled = score(Blobs), score(Shuffled)
    assert shuffled.scores == pytest.approx(ordered.scores, rel=1e-5, abs=1e-9)
    assert shuffled.floor == pytest.approx(ordered.floor, rel=1e-5, abs=1e-9)
    assert without_date(shuffled) == without_date(ordered)


@pytest.mark.parametrize("world", [1, 3])
def test_hashes_are_handed_over_before_images_are_generated(world: int) -> None:
    def run(ranks: Ranks) -> Result:
        generated, reference, floor = Blobs(60), Blobs(70, seed=1), Blobs(60, seed=2)
        calls: list[dict[str, torch.Tensor]] = []

        def check(hashes: Mapping[str, torch.Tensor]) -> None:
            calls.append(dict(hashes))
            if "generated" not in hashes:
                assert not generated.indices
            for source, values in hashes.items():
                images = {"generated": generated, "reference": reference, "floor": floor}[source]
                assert torch.equal(values, image_hashes(Blobs(images.n, seed=images.seed).images(range(images.n))))

        result = evaluate(
            generated, reference, floor, ["fd_a"], extractors={"a": pixels()}, ranks=ranks, on_hashes=check
        )
        assert [set(call) for call in calls] == [{"reference", "floor"}, {"reference", "floor", "generated"}]
        return result

    on_ranks(world, run)


def test_worse_images_score_worse() -> None:
    def score(brightness: float) -> dict[str, float]:
        generated = Blobs(200, seed=9, brightness=brightness)
        names = ["fd_a", "kid_a"]
        return evaluate(generated, Blobs(200, seed=1), None, names, extractors={"a": pixels()}).scores

    like, darker, dark = score(0), score(-20), score(-40)
    for name in like:
        assert like[name] < darker[name] < dark[name]


def test_images_are_made_once_for_all_metrics_and_handed_over_once() -> None:
    generated = Blobs(130)
    handed: dict[int, torch.Tensor] = {}
    steps: list[tuple[int, int]] = []

    def keep(indices: range, images: torch.Tensor) -> None:
        assert len(indices) == len(images)
        assert not handed.keys() & set(indices)
        handed.update(zip(indices, images, strict=True))

    evaluate(
        generated,
        Blobs(60, seed=1),
        None,
        ["fd_a", "kid_a", "fd_c"],
        extractors={"a": pixels(), "c": pixels("other")},
        on_generated=keep,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert generated.indices == list(range(130))
    assert sorted(handed) == list(range(130))
    assert torch.equal(handed[77], Blobs(130).images(range(77, 78))[0])
    assert steps == [(50, 190), (60, 190), (110, 190), (160, 190), (190, 190)]


def test_each_chunk_is_whole_and_on_one_rank() -> None:
    seen: list[tuple[int, range]] = []

    def run(ranks: Ranks) -> Result:
        note = lambda indices, images: seen.append((ranks.rank, indices))  # noqa: E731
        extractors = {"a": pixels()}
        return evaluate(Blobs(130), Blobs(60), None, ["fd_a"], extractors=extractors, ranks=ranks, on_generated=note)

    on_ranks(2, run)
    assert CHUNK == 50
    assert sorted(seen, key=lambda s: s[1].start) == [(0, range(50)), (1, range(50, 100)), (0, range(100, 130))]


def test_the_protocol_says_what_the_score_depends_on() -> None:
    extractor = pixels()
    names = ["fd_a", "kid_a"]
    protocol = evaluate(Blobs(10), Blobs(12, seed=1), None, names, extractors={"a": extractor}).protocol
    assert protocol["generated"] == {"n": 10, "fingerprint": "blobs 0"}
    assert protocol["reference"] == {"n": 12, "fingerprint": "blobs 1"}
    for name in names:
        metric = protocol["metrics"][name]
        assert (metric["extractor"], metric["sha256"], metric["resize"]) == ("pixels", "hash", "none")
    kid = protocol["metrics"]["kid_a"]
    assert (kid["subsets"], kid["subset_size"], kid["seed"]) == (100, 10, 0)
    assert protocol["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("generated", "reference", "floor", "metrics", "message"),
    [
        (1, 50, None, ["fd_a"], "n is 1"),
        (50, 3, None, ["fd_a"], "reference has 3 images"),
        (50, 50, 40, ["fd_a"], "floor has 40 images and 50 are generated"),
        (50, 50, None, ["fd"], "unknown metric"),
        (50, 50, None, [], "no metric"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    generated: int, reference: int, floor: int | None, metrics: list[str], message: str
) -> None:
    real = None if floor is None else Blobs(floor)
    with pytest.raises(UserError, match=message):
        evaluate(Blobs(generated), Blobs(reference), real, metrics, extractors={"a": pixels()})


def test_a_failure_on_one_rank_is_raised_on_all_of_them() -> None:
    class Broken(Blobs):
        def images(self, indices: range) -> torch.Tensor:
            if 77 in indices:
                raise UserError("image 77 is broken")
            return super().images(indices)

    failures: list[UserError] = []

    def run(**ranks: Any) -> Result:
        with pytest.raises(UserError, match="image 77 is broken") as caught:
            evaluate(Blobs(100), Broken(150), None, ["fd_a"], extractors={"a": pixels()}, **ranks)
        failures.append(caught.value)
        return Result({}, {}, {})

    on_ranks(2, run)
    assert len(failures) == 2
