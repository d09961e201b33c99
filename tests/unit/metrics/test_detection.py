"""Detection figures against scikit-learn, and the bootstrap against what it estimates."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn

from diffpipe.errors import UserError
from diffpipe.metrics.detection import auroc, average_precision, detect, fpr_at_tpr, typicality


@pytest.mark.parametrize("decimals", [0, 1, 8])  # few decimals make many ties
def test_the_figures_are_scikit_learns(decimals: int) -> None:
    rng = np.random.default_rng(3)
    normal, abnormal = rng.normal(0, 1, 211).round(decimals), rng.normal(0.8, 1.5, 97).round(decimals)
    truth, scores = np.r_[np.zeros(211), np.ones(97)], np.r_[normal, abnormal]
    assert auroc(normal, abnormal) == pytest.approx(sklearn.roc_auc_score(truth, scores), rel=1e-12)
    assert average_precision(normal, abnormal) == pytest.approx(
        sklearn.average_precision_score(truth, scores), rel=1e-12
    )
    fpr, tpr, _ = sklearn.roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at_tpr(normal, abnormal) == pytest.approx(fpr[np.argmax(tpr >= 0.95)], rel=1e-12)


def test_the_interval_has_the_width_of_the_sampling_error() -> None:
    # Of AUROC 1/2 for n samples each, the standard error is sqrt((2 n + 1) / 12) / n (Mann-Whitney).
    rng = np.random.default_rng(5)
    n = 150
    found = detect(rng.normal(size=n), rng.normal(size=n)).auroc
    width = 2 * 1.96 * np.sqrt((2 * n + 1) / 12) / n
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    assert found.low < found.value < found.high


def test_the_bootstrap_is_the_same_each_time_and_another_for_another_seed() -> None:
    normal, abnormal = np.arange(20.0), np.arange(10.0, 25.0)
    assert detect(normal, abnormal, resamples=50) == detect(normal, abnormal, resamples=50)
    assert detect(normal, abnormal, resamples=50) != detect(normal, abnormal, resamples=50, seed=1)


def test_typicality_counts_both_sides() -> None:
    assert typicality(np.array([1.0, 3.0, 6.0]), np.array([2.0, 4.0])).tolist() == [2.0, 0.0, 3.0]


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="the abnormal set has 2 scores"):
        detect(np.arange(3.0), np.array([1.0, np.nan]))
    with pytest.raises(UserError, match="the normal set has 1 score;"):
        detect(np.arange(1.0), np.arange(3.0))
