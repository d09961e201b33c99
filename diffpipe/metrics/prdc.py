"""Precision and recall, density and coverage: separate measures of fidelity and of diversity.

All four count features in balls around other features. A ball's radius is the distance to the k-th nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.metrics.names import NEIGHBOURS

BLOCK = 2**22  # distances held at a time: 32 MB in float64


def prdc(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], neighbours: Mapping[str, int] = NEIGHBOURS
) -> dict[str, float]:
    """All four by name, each with its own k of `neighbours`, from one pass over all pairs, in float64.

    precision: the share of the fake features in some real feature's ball. recall: of the real ones in some fake one's
    ball. density: the mean over fake features of how many real balls hold each, over k; it can exceed 1. coverage: the
    share of the real balls that hold some fake feature. The balls are open.

    Raises UserError for sets of no more than k features, and for features that are not finite.
    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 to 3; Naeem et al. 2020, arXiv:2002.09797, eqs. 3 and 4.
    """
    needed = max(neighbours.values()) + 1
    if min(len(real), len(fake)) < needed:
        raise UserError(f"precision, recall, density and coverage need {needed} images on each side; give a larger n")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise UserError("features hold NaN or infinity; look at the images and the extractor")
    # Distances do not change with the origin, and their rounding error is least where the features lie around it.
    origin = real.double().mean(0)
    x, y = real.double() - origin, fake.double() - origin
    real_radius, fake_radius = (_radii(z, neighbours) for z in (x, y))
    fake_inside = torch.zeros(len(y), dtype=torch.bool)
    real_inside = torch.zeros(len(x), dtype=torch.bool)
    covered = torch.zeros(len(x), dtype=torch.bool)
    held = 0
    for rows, distance in _blocks(y, x):
        fake_inside[rows] = (distance < real_radius["precision"]).any(1)
        real_inside |= (distance < fake_radius["recall"][rows, None]).any(0)
        held += int((distance < real_radius["density"]).sum())
        covered |= (distance < real_radius["coverage"]).any(0)
    return {
        "precision": float(fake_inside.double().mean()),
        "recall": float(real_inside.double().mean()),
        "density": held / (neighbours["density"] * len(y)),
        "coverage": float(covered.double().mean()),
    }


def _radii(x: Float64[Tensor, "n d"], neighbours: Mapping[str, int]) -> dict[str, Float64[Tensor, " n"]]:
    """The squared distance of each row to its k-th nearest other row, for each k by its name."""
    nearest = []
    for rows, distance in _blocks(x, x):
        distance[torch.arange(len(distance)), torch.arange(len(x))[rows]] = torch.inf
        nearest.append(distance.topk(max(neighbours.values()), largest=False).values)
    by_rank = torch.cat(nearest)
    return {name: by_rank[:, k - 1] for name, k in neighbours.items()}


def _blocks(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Iterator[tuple[slice, Float64[Tensor, "rows m"]]]:
    """The squared distances of some rows of x to all of y, block by block."""
    height = max(1, BLOCK // len(y))
    squares = y.square().sum(1)
    for start in range(0, len(x), height):
        rows = slice(start, start + height)
        yield rows, (x[rows].square().sum(1, keepdim=True) + squares - 2 * x[rows] @ y.T).clamp(min=0)
