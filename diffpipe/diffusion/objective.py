"""The loss of a denoising network: its target's square error, weighted by the noise level.

A weight here is one on ||x_0 - x_0_hat||^2, as papers state it, and is turned into one on the error of the network's
own output. With SNR = alpha^2 / sigma^2:

| weighting | on the error of x_0 | on that of eps | source |
|---|---|---|---|
| simple | what makes the output's weight 1 | 1, for eps | Ho et al. 2020, eq. 14; for edm it is EDM's lambda |
| min_snr | min(SNR, gamma) | min(1, gamma / SNR) | Hang et al. 2023, eq. 7 |
| p2 | SNR / (k + SNR)^gamma | 1 / (k + SNR)^gamma | Choi et al. 2022, eq. 8 |
| edm | SNR + 1 / sigma_data^2 | 1 + 1 / (SNR sigma_data^2) | Karras et al. 2022, table 1 |
| learned | simple, divided by a learned exp(u), plus u | | Karras et al. 2024, eq. 14 |
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import reduce
from jaxtyping import Float, Float32
from pydantic import Field, model_validator
from torch import Tensor

from diffpipe.config import Config
from diffpipe.diffusion.parameterization import Parameterization
from diffpipe.diffusion.process import Coefficient, NoiseLevel

_MOST = 1e300
"""In the place of an infinite SNR, whose product with a weight of 0 is no number."""
_MOST_WEIGHT = 1e30  # a loss in float32 has room above it


class WeightingConfig(Config):
    """How much the noise levels count in the loss."""

    kind: Literal["simple", "min_snr", "p2", "edm", "learned"] = "simple"
    """simple: the square error of what the network predicts (Ho et al. 2020). min_snr: Hang et al. 2023. p2: Choi et
    al. 2022. edm: Karras et al. 2022, which is simple for stage.prediction=edm. learned: a small network learns the
    loss at each noise level and evens them out (Karras et al. 2024)."""
    gamma: float | None = Field(default=None, gt=0)
    """min_snr: the SNR above which a sample counts no more; null: 5. p2: the exponent; null: 1."""
    k: float = Field(default=1.0, gt=0)
    """p2: what is added to the SNR."""

    @model_validator(mode="after")
    def _used_by_its_kind(self) -> WeightingConfig:
        if self.gamma is not None and self.kind not in ("min_snr", "p2"):
            raise ValueError(f"gamma belongs to min_snr and p2, and kind is {self.kind}; leave gamma out")
        if self.k != 1.0 and self.kind != "p2":
            raise ValueError(f"k belongs to p2, and kind is {self.kind}; leave k out")
        return self

    @model_validator(mode="after")
    def _weights_are_finite(self) -> WeightingConfig:
        if self.kind == "p2" and -(self.gamma or 1.0) * math.log(self.k) > math.log(_MOST_WEIGHT):
            raise ValueError(
                f"gamma {self.gamma or 1.0} and k {self.k} weight pure noise by over {_MOST_WEIGHT:g}; raise k"
            )
        return self


def simple_loss(target: Float[Tensor, " b *shape"], output: Float[Tensor, " b *shape"]) -> Float32[Tensor, " b"]:
    """The mean over pixels of (target - output)^2 for each sample, float32 (Ho et al. 2020, eq. 14)."""
    return reduce((target.float() - output.float()).square(), "b ... -> b", "mean")


def output_weight(config: WeightingConfig, parameterization: Parameterization, level: NoiseLevel) -> Coefficient:
    """The factor on each sample's `simple_loss`: float64 [b], or 1.0 for the simple and the learned weighting.

    level: with tensors. A weight times SNR on the error of x_0 is that weight on the error of eps. Of the two errors,
    only that of x_0 is infinite without signal, and only that of eps without noise. So each limit is right.
    """
    if config.kind in ("simple", "learned"):
        return 1.0
    one = torch.ones_like(level.sigma)
    x0_error, eps_error = one * parameterization.x0_error(level), one * parameterization.eps_error(level)
    match config.kind:
        case "min_snr":
            return torch.minimum(eps_error, (config.gamma or 5.0) * x0_error)
        case "p2":
            snr = ((level.alpha / level.sigma) ** 2).clamp(max=_MOST)
            return eps_error.clamp(max=_MOST) * (config.k + snr) ** -(config.gamma or 1.0)
        case "edm":
            return eps_error + x0_error * parameterization.sigma_data**-2
    raise AssertionError(config.kind)
