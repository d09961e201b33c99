"""The transformer: causal, cached as uncached, with GPT-2's initial weights, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffpipe.nn.positions import rotary_angles_at
from diffpipe.nn.transformer import Transformer, TransformerConfig, in_full_precision, token_angles
from tests.support.randomized import normal, randomized

ROW, N = 3, 9
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt": {"mlp": "gelu", "norm": "layer", "qk_norm": True},
    "strided": {"attention": "strided"},
}
each_kind = pytest.mark.parametrize("kind", SETTINGS)


def transformer(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig.model_validate({"width": 16, "depth": 2, "heads": 2, "rope": "1d"} | changes)
    net = randomized(Transformer(config, ROW))
    assert isinstance(net, Transformer)
    return net


def angles() -> Tensor:
    return rotary_angles_at(torch.arange(N, dtype=torch.float64)[:, None], 8).float()


@each_kind
def test_a_token_depends_on_itself_and_those_before(kind: str) -> None:
    net = transformer(**SETTINGS[kind])
    jacobian = torch.autograd.functional.jacobian(lambda h: net(h[None], angles())[0], normal(N, 16))
    depends = jacobian.abs().amax((1, 3)) > 0  # [output token, input token]
    assert torch.equal(depends, torch.ones(N, N).tril().bool())


@each_kind
def test_with_caches_it_reads_the_next_token_alone(kind: str) -> None:
    net, h = transformer(**SETTINGS[kind]), normal(4, N, 16)
    caches = net.caches(N)
    with torch.no_grad():
        tokens = [net(h[:, i : i + 1], angles()[i : i + 1], caches) for i in range(N)]
        torch.testing.assert_close(torch.cat(tokens, dim=1), net(h, angles()), rtol=0, atol=1e-5)


def test_tokens_that_are_read_together_see_each_other() -> None:
    """So a whole scale of tokens can be read at once: the first of three sees the last of them."""
    net, h = transformer(), normal(1, N, 16)
    moved = h.clone()
    moved[:, 5] += 1
    outputs = []
    for tokens in (h, moved):
        caches = net.caches(N)
        with torch.no_grad():
            net(tokens[:, :3], angles()[:3], caches)
            outputs.append(net(tokens[:, 3:6], angles()[3:6], caches))
    assert ((outputs[0] - outputs[1]).abs().amax(2) > 0).all()


def test_two_tokens_are_told_apart_by_their_offset_alone() -> None:
    """A rotation by a constant more changes nothing. Another order of the tokens before changes what one block says."""
    net, h = transformer(depth=1), normal(1, N, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(h, angles() + angles()[3]), net(h, angles()), rtol=0, atol=1e-4)
        order = torch.tensor([1, 0, *range(2, N)])
        assert (net(h[:, order], angles()) - net(h, angles()))[:, -1].abs().max() > 1e-3
        torch.testing.assert_close(net(h[:, order])[:, -1], net(h)[:, -1], rtol=0, atol=1e-5)


def test_initial_weights_are_gpt2s() -> None:
    torch.manual_seed(0)
    net = Transformer(TransformerConfig(width=128, depth=8, heads=4), ROW)
    for name, p in net.named_parameters():
        if "norm" in name or "bias" in name:
            continue
        std = 0.02 / math.sqrt(16) if ".out." in name else 0.02
        assert p.std().item() == pytest.approx(std, rel=0.05), name


def test_dropout_is_of_training_alone_and_leaves_the_mean() -> None:
    net, h = transformer(dropout=0.5), normal(1, N, 16)
    assert torch.equal(net(h), net(h))
    net.train()
    torch.manual_seed(0)
    assert not torch.equal(net(h), net(h))


def test_in_bf16_the_output_is_float32_and_near() -> None:
    net, h = transformer(), normal(2, N, 16)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(h, angles())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, net(h, angles()), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "width 16 must be a multiple of heads 3"),
        ({"heads": 8, "rope": "2d"}, "rope=2d needs width / heads to be a multiple of 4; width 16 and heads 8 give 2"),
        (
            {"heads": 16, "rope": "1d"},
            "rope=1d needs width / heads to be a multiple of 2; width 16 and heads 16 give 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        transformer(**changes)


def test_tokens_are_rotated_by_row_and_column_or_by_their_place_in_the_sequence() -> None:
    places = torch.tensor([[0.0, 0.0], [0.0, 1.5], [2.0, 0.0]], dtype=torch.float64)
    expected = {"2d": places, "1d": torch.arange(3, dtype=torch.float64)[:, None], "none": None}
    for rope, positions in expected.items():
        config = TransformerConfig.model_validate({"width": 16, "heads": 2, "rope": rope})
        rotated = token_angles(config, places, torch.float32)
        if positions is None:
            assert rotated is None
        else:
            torch.testing.assert_close(rotated, rotary_angles_at(positions, 8).float(), rtol=0, atol=0)


def test_the_last_layer_keeps_its_precision_under_autocast() -> None:
    linear, h = torch.nn.Linear(16, 3), normal(2, N, 16)
    expected = linear(h)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(h).dtype == torch.bfloat16
        assert torch.equal(in_full_precision(linear, h), expected)
