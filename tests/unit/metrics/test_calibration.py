"""Calibration against a case worked by hand, scikit-learn, and a temperature that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss

from diffpipe.metrics.calibration import fit_temperature, log_loss, reliability, wilson


def logits(n: int = 2000, k: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax: they are calibrated as they are."""
    generator = torch.Generator().manual_seed(seed)
    values = 1.5 * torch.randn(n, k, dtype=torch.float64, generator=generator)
    return values, torch.multinomial(values.softmax(1), 1, generator=generator)[:, 0]


def test_the_calibration_error_of_a_case_worked_by_hand() -> None:
    # Of four bins: (0.5, 0.75] has 0.6 right and 0.7 wrong, accuracy 1/2 and confidence 0.65; (0.75, 1] has 0.9 right,
    # 0.8 right and 1.0 wrong, accuracy 2/3 and confidence 0.9. ECE = 2/5 · 0.15 + 3/5 · (0.9 − 2/3) = 0.2.
    first = torch.tensor([0.6, 0.3, 0.9, 0.2, 1.0], dtype=torch.float64)
    found = reliability(torch.stack([first, 1 - first], 1), torch.tensor([0, 0, 0, 1, 1]), bins=4)
    assert found.count.tolist() == [0, 0, 2, 3]
    assert found.accuracy.tolist() == pytest.approx([0, 0, 1 / 2, 2 / 3])
    assert found.confidence.tolist() == pytest.approx([0, 0, 0.65, 0.9])
    assert found.error == pytest.approx(0.2)


def test_the_diagram_is_scikit_learns() -> None:
    values, labels = logits()
    probabilities = (2 * values).softmax(1)
    found = reliability(probabilities, labels)
    confidence, predicted = probabilities.max(1)
    accuracy, mean = calibration_curve((predicted == labels).numpy(), confidence.numpy(), n_bins=15)
    there = found.count > 0
    np.testing.assert_allclose(found.accuracy[there], accuracy, rtol=1e-12)
    np.testing.assert_allclose(found.confidence[there], mean, rtol=1e-12)
    assert found.count.sum() == len(labels)


def test_the_log_loss_is_scikit_learns() -> None:
    values, labels = logits(50)
    assert log_loss(values, labels) == pytest.approx(sklearn_log_loss(labels, values.softmax(1)), rel=1e-12)


def test_a_known_temperature_is_found_and_repairs_the_calibration() -> None:
    values, labels = logits()
    assert reliability((7 * values).softmax(1), labels).error > 0.15
    temperature = fit_temperature(7 * values, labels)
    assert temperature == pytest.approx(7, rel=0.06)
    assert reliability((7 * values / temperature).softmax(1), labels).error < 0.03
    for other in (0.9, 1.1):  # it is the least of all, by the very loss that it is chosen by
        assert log_loss(7 * values / temperature, labels) < log_loss(7 * values / temperature / other, labels)


def test_temperatures_without_a_least_loss_end_at_the_bounds() -> None:
    values, _ = logits(50)
    assert fit_temperature(values, values.argmax(1)) == pytest.approx(1e-3)
    assert fit_temperature(values, values.argmin(1)) == pytest.approx(1e6)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (10, 10), (333, 1000)])
def test_the_interval_is_scipys(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-7)
    assert math.isclose(sum(wilson(n - successes, n)), 2 - sum(wilson(successes, n)))
