"""The distributions of a token's values: they sum to one, and all values at once are the product of one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from diffpipe.stages.pixel_heads import Categorical, Head, LogisticMixture
from tests.support.randomized import normal

LEVELS = 4


def heads(channels: int, levels: int = LEVELS) -> list[Head]:
    return [Categorical(channels, levels), LogisticMixture(channels, levels, mixtures=3)]


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("which", [0, 1])
def test_a_token_has_the_probabilities_of_its_values_in_turn(channels: int, which: int) -> None:
    head = heads(channels)[which]
    per_token = channels // head.parts
    tokens = torch.tensor([*itertools.product(range(LEVELS), repeat=per_token)])
    parameters = normal(1, head.out).expand(len(tokens), -1)
    together = head.log_likelihood(parameters[:, None], tokens[:, None])[:, 0]
    assert together.exp().sum().item() == pytest.approx(1, abs=1e-5)
    in_turn = torch.zeros(len(tokens))
    for i in range(per_token):
        log_probs = head.log_probs(parameters, tokens[:, :i])
        assert log_probs.shape == (len(tokens), LEVELS)
        torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(len(tokens)), rtol=0, atol=1e-5)
        in_turn += log_probs.gather(1, tokens[:, i : i + 1])[:, 0]
    torch.testing.assert_close(in_turn, together, rtol=0, atol=1e-5)
    # The values of one pixel depend on each other.
    if per_token > 1:
        first, second = head.log_probs(parameters[:1], tokens[:1, :1]), head.log_probs(parameters[:1], tokens[-1:, :1])
        assert (first - second).abs().max() > 0.1


def test_a_pixels_mixture_is_that_of_pixelcnn() -> None:
    """Salimans et al. 2017, equations 2 and 3, written out for one pixel of three channels, in float64."""
    head, k = LogisticMixture(3, 256, mixtures=2), 2
    raw = normal(1, 1, head.out).double()
    weights, means, scales, slopes = (part.flatten().tolist() for part in raw.split([k, 3 * k, 3 * k, 3 * k], dim=-1))
    pixel = [10, 0, 255]
    x = [2 * value / 255 - 1 for value in pixel]
    total = 0.0
    for i in range(k):
        start = (-1 / 3, 1 / 3)[i]
        slope = [math.tanh(slopes[pair * k + i]) for pair in range(3)]
        mean = [means[c * k + i] + start for c in range(3)]
        mean = [mean[0], mean[1] + slope[0] * x[0], mean[2] + slope[1] * x[0] + slope[2] * x[1]]
        probability = math.exp(weights[i]) / sum(map(math.exp, weights))
        for c in range(3):
            scale = math.exp(-7 + math.log1p(math.exp(scales[c * k + i] + 5)))
            above = 1.0 if pixel[c] == 255 else 1 / (1 + math.exp(-(x[c] - mean[c] + 1 / 255) / scale))
            below = 0.0 if pixel[c] == 0 else 1 / (1 + math.exp(-(x[c] - mean[c] - 1 / 255) / scale))
            probability *= above - below
        total += probability
    log_likelihood = head.log_likelihood(raw, torch.tensor([[pixel]]))
    assert log_likelihood.item() == pytest.approx(math.log(total), abs=1e-9)


def test_a_fresh_mixture_expects_every_value() -> None:
    """No value of an untrained model is so unlikely that its loss is far above that of a uniform distribution."""
    log_probs = LogisticMixture(1, 256, mixtures=10).log_probs(torch.zeros(1, 30), torch.zeros(1, 0, dtype=torch.long))
    assert log_probs.min() > math.log(1 / 256) - 3
    assert log_probs.max() < math.log(1 / 256) + 3


@pytest.mark.parametrize("which", [0, 1])
def test_gradients_are_finite_at_the_first_and_the_last_value(which: int) -> None:
    head = heads(1, 256)[which]
    parameters: Tensor = (10 * normal(1, 3, head.out)).requires_grad_()
    head.log_likelihood(parameters, torch.tensor([[[0], [255], [7]]])).sum().backward()
    assert parameters.grad is not None
    assert torch.isfinite(parameters.grad).all()
