"""Draws of a token's value from its distribution: temperature, top-k, top-p, guidance, and an inverse CDF."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.stages.guidance import MAX_GUIDANCE, check_label_guidance

_LARGEST = 1e35  # of logits that guidance extrapolates: by the largest factor they stay within float32
_COLDEST = 1e-200  # a temperature at which float32 logits stay within float64, and the likeliest value is certain


class TokenSamplerConfig(Config):
    """How a trained model of tokens samples. It may change after training, and no likelihood depends on it."""

    temperature: float = Field(default=1.0, ge=0)
    """Logits are divided by it: 1 samples the model, 0 takes the likeliest value of each token."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw among so many likeliest values of each token; null: among all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the fewest likeliest values that have this probability together (Holtzman et al. 2020, nucleus
    sampling), after temperature and top_k. 1: among all."""
    guidance: float = Field(default=1.0, ge=0, le=MAX_GUIDANCE)
    """Classifier-free guidance on the logits: 1 samples P(X|Y), more exaggerates the label, and each token then costs
    two network evaluations. It needs conditional=true and a label_dropout."""


def check_sampler(sampler: TokenSamplerConfig, levels: int, *, conditional: bool, label_dropout: float) -> None:
    """Raises UserError where a token cannot be drawn like this. levels: the values that it may have."""
    check_label_guidance(sampler.guidance, conditional=conditional, label_dropout=label_dropout)
    if sampler.top_k is not None and sampler.top_k > levels:
        values = plural(levels, "value")
        raise UserError(f"stage.sampler.top_k {sampler.top_k} is more than the {values} of a token; give fewer")


def guided(
    conditional: Float[Tensor, "b levels"], unconditional: Float[Tensor, "b levels"], guidance: float
) -> Float[Tensor, "b levels"]:
    """The logits, extrapolated from those without the label (Ho & Salimans 2022, equation 6): finite ones."""
    conditional, unconditional = (logits.clamp(-_LARGEST, _LARGEST) for logits in (conditional, unconditional))
    return unconditional + guidance * (conditional - unconditional)


def labels_of_copies(
    labels: Int[Tensor, " b"] | None, classes: int, sampler: TokenSamplerConfig
) -> Int[Tensor, " n"] | None:
    """The labels that the network gets: with guidance those of all images, then as many empty ones."""
    if labels is None or sampler.guidance == 1:
        return labels
    return torch.cat([labels, torch.full_like(labels, classes)])


def draw(logits: Float[Tensor, "n levels"], u: Float[Tensor, " b"], sampler: TokenSamplerConfig) -> Int[Tensor, " b"]:
    """A value for each u, in (0, 1), by the inverse CDF there. The CDF is float64.

    logits: a row for each u; with guidance those with the label, then as many without it.
    """
    if len(logits) > len(u):
        conditional, unconditional = logits.chunk(2)
        logits = guided(conditional, unconditional, sampler.guidance)
    if sampler.temperature == 0:
        return logits.argmax(dim=1)
    logits = logits.clamp(max=torch.finfo(logits.dtype).max).double() / max(sampler.temperature, _COLDEST)
    if sampler.top_k is not None:
        order = logits.sort(dim=1, descending=True, stable=True).indices  # equal ones in order
        logits = logits.scatter(1, order[:, sampler.top_k :], -torch.inf)
    probabilities = logits.softmax(dim=1)
    if sampler.top_p < 1:
        probabilities = _nucleus(probabilities, sampler.top_p)
    cdf = probabilities.cumsum(dim=1)
    # The first value whose CDF is above u: none of probability zero.
    return (cdf <= u[:, None] * cdf[:, -1:]).sum(dim=1)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero where likelier values have the probability top_p already."""
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(dim=1) - ordered
    return probabilities.masked_fill(torch.empty_like(before, dtype=torch.bool).scatter(1, order, before >= top_p), 0)
