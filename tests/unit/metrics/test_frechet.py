"""The Fréchet distance against closed forms, clean-fid's own number, and itself over other shares."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import linalg

from diffpipe.errors import UserError
from diffpipe.metrics.frechet import frechet_distance
from diffpipe.metrics.moments import Moments


def features(n: int, d: int, seed: int) -> torch.Tensor:
    """Correlated, non-negative, of unequal scales and with dead dimensions, as pooled ReLU features are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) * np.geomspace(1, 1e-3, d)
    x = np.maximum(rng.normal(size=(n, d)) @ mix.T + 0.3 * seed, 0)
    x[:, ::17] = 0
    return torch.from_numpy(x.astype(np.float32))


def gaussian(mean: np.ndarray, covariance: np.ndarray, n: int = 1000) -> Moments:
    """The moments that a sample of exactly this mean and covariance has."""
    outer = covariance * (n - 1) + n * np.outer(mean, mean)
    return Moments(n, torch.from_numpy(n * mean), torch.from_numpy(outer))


def cleanfid_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """clean-fid's `fid_from_feats` in float64, or its formula where scipy's sqrtm has lost the `disp` it asks for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cleanfid import fid

        x, y = a.double().numpy(), b.double().numpy()
        try:
            return float(fid.fid_from_feats(x, y))
        except TypeError:
            root = linalg.sqrtm(np.cov(x, rowvar=False) @ np.cov(y, rowvar=False))
            shift = np.square(x.mean(0) - y.mean(0)).sum()
            return float(shift + x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() - 2 * np.trace(root).real)


def test_gaussians_with_diagonal_covariances_have_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 12))
    a, b = rng.uniform(0.1, 4.0, (2, 12))
    expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    distance = frechet_distance(gaussian(mean_a, np.diag(a)), gaussian(mean_b, np.diag(b)))
    assert distance == pytest.approx(expected, rel=1e-12)


def test_covariances_that_commute_have_a_closed_form_in_any_basis() -> None:
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.normal(size=(9, 9)))
    a, b = rng.uniform(0.1, 4.0, (2, 9))
    zero = np.zeros(9)
    distance = frechet_distance(gaussian(zero, basis * a @ basis.T), gaussian(zero, basis * b @ basis.T))
    assert distance == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


def test_of_a_set_to_itself_is_zero_and_of_a_translation_its_square() -> None:
    x = features(300, 40, 1)
    shift = torch.linspace(0, 1, 40)
    a = Moments.of(x)
    assert abs(frechet_distance(a, a)) < 1e-9
    moved = Moments.of(x.double() + shift.double())
    assert frechet_distance(a, moved) == pytest.approx(shift.double().square().sum().item(), rel=1e-9)


def test_is_symmetric() -> None:
    a, b = Moments.of(features(120, 30, 1)), Moments.of(features(90, 30, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize(("n", "m"), [(500, 400), (40, 400), (40, 50)])
def test_equals_cleanfid(n: int, m: int) -> None:
    a, b = features(n, 64, 1), features(m, 64, 2)
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(cleanfid_distance(a, b), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 600), (600, 60), (600, 600)])
def test_shares_of_the_images_give_the_same_distance(n: int, m: int) -> None:
    a, b = features(n, 256, 1), features(m, 256, 2)
    whole = frechet_distance(Moments.of(a), Moments.of(b))
    shares = [sum((Moments.of(x[i::3]) for i in (1, 2)), Moments.of(x[0::3])) for x in (a, b)]
    assert frechet_distance(*shares) == pytest.approx(whole, abs=1e-9)


def test_too_few_or_unfinite_features_are_refused() -> None:
    good = Moments.of(features(10, 5, 1))
    with pytest.raises(UserError, match="at least 2 images"):
        frechet_distance(good, Moments.of(features(1, 5, 1)))
    bad = features(10, 5, 1)
    bad[3, 2] = float("nan")
    with pytest.raises(UserError, match="NaN or infinity"):
        frechet_distance(Moments.of(bad), good)
