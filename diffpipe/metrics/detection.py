"""How well a score tells abnormal samples from normal ones, and what repairs a likelihood that cannot.

A score is the higher, the more anomalous. The known failure: a likelihood can be higher far from the data than on it,
since smooth images are likely under any model (Nalisnick et al. 2019, arXiv:1810.09136). `typicality` is
one answer to it, and `complexity.complexity` another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from diffpipe.errors import UserError
from diffpipe.rng import KeyedRNG

Scores = Float[np.ndarray, " _"]  # of normal or of abnormal samples, as many as there are


class Interval(NamedTuple):
    """A figure and its 95% bootstrap interval."""

    value: float
    low: float
    high: float


class Detection(NamedTuple):
    """What a score detects, the abnormal samples being the positives.

    auroc: the chance that an abnormal sample scores higher than a normal one. fpr95: the share of normal samples that
    the threshold flags which flags 95% of the abnormal ones.
    """

    auroc: Interval
    average_precision: Interval
    fpr95: Interval


def detect(normal: Scores, abnormal: Scores, *, resamples: int = 1000, seed: int = 0) -> Detection:
    """Figures of a score, each with the interval of `resamples` bootstrap draws of both sets. Raises UserError."""
    for name, scores in (("normal", normal), ("abnormal", abnormal)):
        if len(scores) < 2 or not np.isfinite(scores).all():
            raise UserError(
                f"the {name} set has {len(scores)} scores, of which all must be finite and at least 2 there"
            )
    figures: tuple[Callable[[Scores, Scores], float], ...] = (auroc, average_precision, fpr_at_tpr)
    values = np.array([figure(normal, abnormal) for figure in figures])
    rng = KeyedRNG(seed, torch.arange(resamples))
    rows = [(rng.bits(name, len(s)).numpy() * len(s)) >> 32 for name, s in (("n", normal), ("a", abnormal))]
    again = np.array([[f(normal[i], abnormal[j]) for f in figures] for i, j in zip(*rows, strict=True)])
    low, high = np.percentile(again, [2.5, 97.5], axis=0)
    return Detection(*(Interval(*map(float, row)) for row in zip(values, low, high, strict=True)))


def auroc(normal: Scores, abnormal: Scores) -> float:
    """The area under the ROC curve: the Mann-Whitney statistic, with ties counted as one half."""
    ordered = np.sort(normal)
    below, up_to = (np.searchsorted(ordered, abnormal, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / (2 * len(normal)))


def average_precision(normal: Scores, abnormal: Scores) -> float:
    """The precision averaged over the recall's steps, from the highest score down; equal scores are taken together."""
    thresholds = np.unique(abnormal)
    found = len(abnormal) - np.searchsorted(np.sort(abnormal), thresholds, side="left")
    wrong = len(normal) - np.searchsorted(np.sort(normal), thresholds, side="left")
    gained = found - np.append(found[1:], 0)
    return float((gained / len(abnormal) * found / (found + wrong)).sum())


def fpr_at_tpr(normal: Scores, abnormal: Scores, tpr: float = 0.95) -> float:
    """The share of normal samples at or above the highest threshold that at least `tpr` of the abnormal ones reach."""
    needed = int(np.ceil(tpr * len(abnormal)))
    return float((normal >= np.sort(abnormal)[-needed]).mean())


def typicality(scores: Scores, trained: Scores) -> Scores:
    """How far each score is from its mean over training samples (Nalisnick et al. 2019, arXiv:1906.02994)."""
    return np.abs(scores - trained.mean())
