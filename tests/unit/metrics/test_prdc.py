"""Precision, recall, density and coverage: against the `prdc` package, and on distributions they should tell apart."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from diffpipe import plugins
from diffpipe.errors import UserError
from diffpipe.metrics import prdc as module
from diffpipe.metrics.evaluate import evaluate
from diffpipe.metrics.features import Extractor
from diffpipe.metrics.image_hashes import image_hashes, split_by_hash
from diffpipe.metrics.names import NEIGHBOURS
from diffpipe.metrics.prdc import prdc


@pytest.fixture(autouse=True)
def _feature_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in of this name: `precision_a` is a metric."""
    monkeypatch.setitem(plugins._parts, "feature_networks", {"a": object})


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Positive and away from the origin, as features after a ReLU are."""
    return torch.from_numpy(np.random.default_rng(seed).gamma(2.0, 1.0, (n, d)).astype(np.float32) + 5 + shift)


def package(real: torch.Tensor, fake: torch.Tensor, k: int) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prdc import compute_prdc
    return compute_prdc(real.double().numpy(), fake.double().numpy(), nearest_k=k)


@pytest.mark.parametrize(("n", "m", "d", "shift"), [(300, 300, 6, 0.0), (200, 350, 40, 1.0), (350, 120, 4, 1.5)])
def test_equals_the_package_at_every_k(n: int, m: int, d: int, shift: float) -> None:
    real, fake = features(n, d, 1), features(m, d, 2, shift)
    ours = prdc(real, fake)
    for name, k in NEIGHBOURS.items():
        assert ours[name] == pytest.approx(package(real, fake, k)[name], rel=1e-12), name
    for k in (1, 8):
        assert prdc(real, fake, dict.fromkeys(NEIGHBOURS, k)) == pytest.approx(package(real, fake, k), rel=1e-12)
    assert 0 < ours["precision"] < 1
    assert 0 < ours["coverage"] < 1


def test_the_size_of_the_blocks_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = features(130, 8, 1), features(90, 8, 2)
    whole = prdc(real, fake)
    monkeypatch.setattr(module, "BLOCK", 1000)  # blocks of 7 and of 11 rows
    assert prdc(real, fake) == whole


def test_dropped_modes_show_in_recall_and_coverage_alone() -> None:
    rng = np.random.default_rng(0)
    modes = rng.normal(size=(10, 8)) * 20

    def drawn(n: int, kinds: int) -> torch.Tensor:
        return torch.from_numpy(modes[np.arange(n) % kinds] + rng.normal(size=(n, 8)))

    real = drawn(1000, 10)
    good, bad = prdc(real, drawn(1000, 10)), prdc(real, drawn(1000, 3))
    assert bad["precision"] == pytest.approx(good["precision"], abs=0.05)
    assert bad["recall"] < 0.31 < 0.6 < good["recall"]
    assert bad["coverage"] < 0.31 < 0.9 < good["coverage"]


def test_one_outlier_among_the_real_images_raises_precision_but_not_density() -> None:
    # The weakness that Naeem et al. 2020 name: its ball is wide and holds everything in between.
    real, fake = features(200, 8, 1), features(200, 8, 2, shift=30.0)
    assert prdc(real, fake)["precision"] == 0
    with_outliers = torch.cat([real, features(1, 8, 3, shift=80.0)])
    assert prdc(with_outliers, fake)["precision"] == 1
    assert prdc(with_outliers, fake)["density"] < 0.25


def test_too_few_or_unfinite_features_are_refused() -> None:
    x = features(10, 4, 1)
    with pytest.raises(UserError, match="need 6 images on each side"):
        prdc(x, x[:5])
    bad = x.clone()
    bad[0, 0] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        prdc(bad, x)


class Points:
    """Images that are their own features: 4 grey pixels."""

    def __init__(self, n: int, seed: int, low: int = 0):
        rng = np.random.default_rng(seed)
        self.n, self.pixels = n, torch.from_numpy(rng.integers(low, 256, (n, 1, 2, 2), dtype=np.uint8))

    def describe(self) -> dict[str, Any]:
        return {"fingerprint": "points"}

    def images(self, indices: range) -> torch.Tensor:
        return self.pixels[indices.start : indices.stop]

    def features(self) -> torch.Tensor:
        return self.pixels.flatten(1).float()


NAMES = [f"{kind}_a" for kind in NEIGHBOURS]
PIXELS = {"a": Extractor("pixels", 4, "hash", "none", lambda x: x[:, 0].flatten(1).float())}


def test_evaluation_scores_generated_images_as_the_fake_ones_with_a_floor_and_k() -> None:
    generated, reference, floor = Points(120, 1, low=128), Points(140, 2), Points(120, 3)
    result = evaluate(generated, reference, floor, NAMES, extractors=PIXELS)
    for scores, fake in ((result.scores, generated), (result.floor, floor)):
        expected = prdc(reference.features(), fake.features())
        assert scores == {f"{kind}_a": value for kind, value in expected.items()}
    # The generated images are like real ones, but only the bright half of them.
    assert result.scores["recall_a"] < 0.5 < 0.7 < result.floor["recall_a"]
    metrics = result.protocol["metrics"]
    assert {name: metrics[name]["k"] for name in NAMES} == dict(zip(NAMES, (3, 3, 5, 5), strict=True))


def test_without_a_floor_the_references_first_half_plays_the_generated_ones() -> None:
    generated, reference = Points(60, 1), Points(101, 2)
    floor = evaluate(generated, reference, None, NAMES, extractors=PIXELS).floor
    first, second = split_by_hash(image_hashes(reference.pixels))
    x = reference.features()
    assert floor == {f"{kind}_a": value for kind, value in prdc(x[second], x[first]).items()}
