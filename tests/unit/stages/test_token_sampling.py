"""Draws of values: by the inverse CDF, with temperature, top-k, top-p and guidance, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chisquare
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.rng import KeyedRNG
from diffpipe.stages.token_sampling import TokenSamplerConfig, check_sampler, draw, guided

P = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def counts(n: int, **sampler: Any) -> Tensor:
    """How often each value is among n draws."""
    u = KeyedRNG(0, torch.arange(n)).uniform("value")
    return draw(P.log().expand(n, -1), u, TokenSamplerConfig(**sampler)).bincount(minlength=len(P))


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, P.square() / P.square().sum()),
        ({"top_k": 2}, torch.tensor([0, 4, 0, 3, 0]) / 7),
        ({"top_k": 5}, P),
        ({"top_p": 0.69}, torch.tensor([0, 4, 0, 3, 0]) / 7),
        ({"top_p": 0.71}, torch.tensor([0, 40, 0, 30, 15]) / 85),
        ({"top_p": 0.01}, torch.tensor([0.0, 1, 0, 0, 0])),
        ({"top_k": 3, "top_p": 0.5}, torch.tensor([0, 4, 0, 3, 0]) / 7),  # of 40/85, 30/85 and 15/85
        ({"temperature": 0}, torch.tensor([0.0, 1, 0, 0, 0])),
    ],
)
def test_values_have_the_probabilities_that_they_should(sampler: dict[str, Any], expected: Tensor) -> None:
    measured = counts(20_000, **sampler)
    possible = expected > 0
    assert measured[~possible].sum() == 0
    if possible.sum() > 1:
        wanted = expected[possible].double()
        assert chisquare(measured[possible], 20_000 * wanted / wanted.sum()).pvalue > 1e-3


def test_the_inverse_cdf_is_monotone_and_never_draws_what_cannot_be() -> None:
    u = torch.linspace(1e-7, 1 - 1e-7, 1001)
    values = draw(P.log().expand(1001, -1), u, TokenSamplerConfig())
    assert (values.diff() >= 0).all()
    torch.testing.assert_close((values == 0).float().mean(), torch.tensor(0.1), rtol=0, atol=2e-3)
    certain = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for at in (2.0**-24, 1 - 2.0**-24):
        assert draw(certain, torch.tensor([at]), TokenSamplerConfig()).item() == 1


def test_guidance_extrapolates_the_logits() -> None:
    conditional, unconditional = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.2]])
    assert torch.equal(guided(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guided(conditional, unconditional, 0.0), unconditional)
    torch.testing.assert_close(guided(conditional, unconditional, 3.0), torch.tensor([[2.0, -0.4]]))


def test_a_tiny_temperature_takes_the_likeliest_value() -> None:
    for temperature in (1e-320, 1e-200, 1e-30, 1e-9):
        assert counts(50, temperature=temperature).tolist() == [0, 50, 0, 0, 0]
    logits = torch.tensor([[3e38, -3e38, 2e38], [-1e-45, 0.0, -torch.inf], [0.0, torch.inf, 1.0]])
    for temperature in (0, 1e-320):
        assert draw(logits, torch.full((3,), 0.99), TokenSamplerConfig(temperature=temperature)).tolist() == [0, 1, 1]


def test_top_k_draws_among_so_many_even_of_equal_values() -> None:
    u = torch.linspace(1e-7, 1 - 1e-7, 101)
    logits = torch.tensor([1.0, 2, 2, 2, 0]).expand(101, -1)
    for k, values in ((1, [1]), (2, [1, 2]), (4, [0, 1, 2, 3])):
        assert draw(logits, u, TokenSamplerConfig(top_k=k)).unique().tolist() == values


def test_guidance_of_extreme_logits_takes_what_only_the_label_makes_likely() -> None:
    infinite = torch.inf
    conditional = torch.tensor([[0.0, -infinite, 1.0], [-infinite, 2.0, -infinite], [0.0, 3e38, -3e38]])
    unconditional = torch.tensor([[0.5, -infinite, 0.0], [0.0, -infinite, -infinite], [0.0, -3e38, 3e38]])
    logits = torch.cat([conditional, unconditional])
    for guidance in (1.5, 1000.0):
        assert guided(conditional, unconditional, guidance).isfinite().all()
        for u in (0.01, 0.99):
            sampler = TokenSamplerConfig(guidance=guidance, top_k=1)
            assert draw(logits, torch.full((3,), u), sampler).tolist() == [2, 1, 1]
    assert draw(logits, torch.full((3,), 0.5), TokenSamplerConfig(guidance=0.0)).tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"top_p": 0.0}, "greater than 0"),
        ({"top_p": 1.01}, "less than or equal to 1"),
        ({"top_k": 0}, "greater than or equal to 1"),
        ({"temperature": -0.1}, "greater than or equal to 0"),
        ({"guidance": -1.0}, "greater than or equal to 0"),
        ({"guidance": 1e39}, "less than or equal to 1000"),
    ],
)
def test_numbers_out_of_range_are_refused(sampler: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenSamplerConfig(**sampler)


def test_what_does_not_fit_the_model_is_refused() -> None:
    check_sampler(TokenSamplerConfig(top_k=4, guidance=2.0), 4, conditional=True, label_dropout=0.1)
    with pytest.raises(UserError, match=r"stage\.sampler\.top_k 5 is more than the 4 values of a token; give fewer"):
        check_sampler(TokenSamplerConfig(top_k=5), 4, conditional=False, label_dropout=0.0)
    with pytest.raises(UserError, match=r"stage\.sampler\.guidance needs labels to guide by"):
        check_sampler(TokenSamplerConfig(guidance=2.0), 4, conditional=False, label_dropout=0.1)
    with pytest.raises(UserError, match=r"stage\.label_dropout above 0"):
        check_sampler(TokenSamplerConfig(guidance=2.0), 4, conditional=True, label_dropout=0.0)
