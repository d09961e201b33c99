"""How well a score separates abnormal samples from normal ones, and a correction for likelihoods that do not.

A higher score means more anomalous. The known failure: a likelihood can be higher far from the data than on it, since
smooth images are likely under any model (Nalisnick et al. 2019, arXiv:1810.09136). `typicality` is one correction,
`complexity.complexity` another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.rng import KeyedRNG

Scores = Float[np.ndarray, " _"]  # of normal or of abnormal samples, any number


class Interval(NamedTuple):
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Detection(NamedTuple):
    """The figures of a detector; abnormal samples are the positives.

    auroc: the probability that an abnormal sample scores higher than a normal one. fpr95: the share of normal samples
    at or above the threshold that 95% of the abnormal ones reach.
    """

    auroc: Interval
    average_precision: Interval
    fpr95: Interval


def detect(normal: Scores, abnormal: Scores, *, resamples: int = 1000, seed: int = 0) -> Detection:
    """The figures, each with an interval from `resamples` bootstrap draws of both sets. Raises UserError."""
    for name, scores in (("normal", normal), ("abnormal", abnormal)):
        if len(scores) < 2 or not np.isfinite(scores).all():
            raise UserError(
                f"the {name} set has {plural(len(scores), 'score')}; detection needs at least 2, all of them finite"
            )
    figures: tuple[Callable[[Scores, Scores], float], ...] = (auroc, average_precision, fpr_at_tpr)
    values = np.array([figure(normal, abnormal) for figure in figures])
    rng = KeyedRNG(seed, torch.arange(resamples))
    rows = [(rng.bits(name, len(s)).numpy() * len(s)) >> 32 for name, s in (("n", normal), ("a", abnormal))]
    resampled = np.array([[f(normal[i], abnormal[j]) for f in figures] for i, j in zip(*rows, strict=True)])
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return Detection(*(Interval(*map(float, row)) for row in zip(values, low, high, strict=True)))


def auroc(normal: Scores, abnormal: Scores) -> float:
    """The area under the ROC curve: the Mann-Whitney statistic, with ties counted as one half."""
    ordered = np.sort(normal)
    below, up_to = (np.searchsorted(ordered, abnormal, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(normal)))


def average_precision(normal: Scores, abnormal: Scores) -> float:
    """The precision, averaged over the steps of the recall from the highest score down; ties are one step."""
    thresholds = np.unique(abnormal)
    positives = len(abnormal) - np.searchsorted(np.sort(abnormal), thresholds, side="left")
    false_positives = len(normal) - np.searchsorted(np.sort(normal), thresholds, side="left")
    gained = positives - np.append(positives[1:], 0)
    return float((gained / len(abnormal) * positives / (positives + false_positives)).sum())


def fpr_at_tpr(normal: Scores, abnormal: Scores, tpr: float = 0.95) -> float:
    """The share of normal samples at or above the highest threshold that at least `tpr` of the abnormal ones reach."""
    needed = int(np.ceil(tpr * len(abnormal)))
    return float((normal >= np.sort(abnormal)[-needed]).mean())


def typicality(scores: Scores, trained: Scores) -> Scores:
    """How far each score is from its mean over training samples (Nalisnick et al. 2019, arXiv:1906.02994)."""
    return np.abs(scores - trained.mean())
