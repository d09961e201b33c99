"""The Fréchet distance between two sets of features, each modelled as a Gaussian."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.metrics.moments import Moments
from diffpipe.plural import plural


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μa - μb|² + tr Σa + tr Σb - 2 tr (Σa Σb)^{1/2}, the squared Fréchet distance between N(μa, Σa) and N(μb, Σb).

    With Σ = L Lᵀ, the eigenvalues of Σa Σb are the squared singular values of Laᵀ Lb, so the last trace is the sum of
    these. This needs no matrix square root, drops no imaginary part and adds nothing to a diagonal. L comes from the
    symmetric eigendecomposition, without the eigenvalues that are rounding noise: with fewer features than dimensions
    most eigenvalues are zero and come out near 1e-16. Each would add about 1e-8 under the square root, differently for
    each order of summation, and the score must agree to 1e-9 between process counts.

    Raises UserError for fewer than 2 features or features that are not finite.
    Source: Dowson and Landau 1982 (the distance); Heusel et al. 2017, arXiv:1706.08500, eq. 6 (as a score: FID).
    """
    for moments in (a, b):
        if moments.n < 2:
            raise UserError(
                f"a Fréchet distance needs at least 2 images on each side, not {moments.n}; give a larger n"
            )
        if not (moments.total.isfinite().all() and moments.outer.isfinite().all()):
            raise UserError(
                f"features of {plural(moments.n, 'image')} hold NaN or infinity; look at the images and the extractor"
            )
    shift = (a.mean - b.mean).square().sum()
    cross = torch.linalg.svdvals(_factor(a).T @ _factor(b)).sum()
    return float(shift + a.covariance.trace() + b.covariance.trace() - 2 * cross)


def _factor(moments: Moments) -> Float64[Tensor, "d r"]:
    """L with L Lᵀ = Σ: one column for each eigenvalue above the rounding error.

    Σ is a difference of Σxxᵀ and its mean's part, so its error is relative to the larger of the two: λmax + |μ|².
    """
    values, vectors = torch.linalg.eigh(moments.covariance)
    scale = values[-1] + moments.mean.square().sum()
    kept = values > torch.finfo(values.dtype).eps * len(values) * scale
    return vectors[:, kept] * values[kept].sqrt()
