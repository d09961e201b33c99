"""The diffusion transformer against diffusers' with the same weights, its options, and how it starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from pydantic import ValidationError
from torch.nn import functional as F

from diffpipe.errors import UserError
from diffpipe.nn.dit import DiT, DiTConfig, SwiGLU
from diffpipe.resolution import square
from tests.support.diffusers_weights import dit_weights
from tests.support.randomized import normal, randomized

TINY = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}
OPTIONS = [{}, {"mlp": "swiglu"}, {"norm": "rms"}, {"qk_norm": True}, {"rope": True}]


def config(**changes: Any) -> DiTConfig:
    return DiTConfig.model_validate(TINY | changes)


@pytest.mark.parametrize("t", [torch.tensor([0, 17, 999]), torch.tensor([0.5, 17.25, 998.75])])
def test_with_the_weights_of_diffusers_it_is_the_same_function(t: torch.Tensor) -> None:
    theirs = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=5,
    )
    randomized(theirs)
    weights = theirs.state_dict()
    for name in weights:
        if ".norm1.emb." in name:  # each block has a copy
            weights[name] = weights[name.replace("blocks.1.", "blocks.0.")]
    theirs.load_state_dict(weights)
    ours = DiT(config(mlp_norm_eps=1e-5), 3, square(8), classes=5, out_channels=6)
    ours.load_state_dict(dit_weights(weights, depth=2))
    x, labels = normal(3, 3, 8, 8), torch.tensor([0, 4, 5])
    with torch.no_grad():
        expected = theirs(x, t, labels, return_dict=False)[0]
        torch.testing.assert_close(ours(x, t, labels), expected, rtol=1e-5, atol=1e-5)


def test_the_large_network_has_the_size_that_the_paper_gives() -> None:
    # Peebles & Xie 2023, table 4: DiT-XL/2 has 675 million parameters.
    with torch.device("meta"):
        net = DiT(config(width=1152, depth=28, heads=16), 4, square(32), classes=1000, out_channels=8)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(675e6, rel=2e-3)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity(options: dict[str, Any]) -> None:
    net, x = DiT(config(**options), 3, square(8), classes=2), normal(2, 3, 8, 8)
    assert torch.equal(net(x, torch.tensor([0, 9]), torch.tensor([0, 2])), torch.zeros_like(x))
    h = normal(2, 16, 16)
    assert torch.equal(net.layers[0](h, normal(2, 16)), h)
    assert net.label is not None
    assert net.label.weight.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_output_depends_on_time_label_and_place_and_each_sample_on_itself_alone(options: dict[str, Any]) -> None:
    net = randomized(DiT(config(**options), 1, square(8), classes=3), std=0.3)
    x, t, y = normal(3, 1, 8, 8), torch.tensor([1, 5, 9]), torch.tensor([0, 1, 3])
    out = net(x, t, y)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x, t + 1, y), out, atol=1e-4)
    assert not torch.allclose(net(x, t, (y + 1) % 3), out, atol=1e-4)
    assert not torch.allclose(net(x.roll(2, 3), t, y), out.roll(2, 3), atol=1e-4)
    assert net(normal(1, 1, 8, 12), t[:1], y[:1]).shape == (1, 1, 8, 12)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_gets_a_gradient(options: dict[str, Any]) -> None:
    net = randomized(DiT(config(**options), 1, square(8), classes=3))
    net(normal(4, 1, 8, 8), torch.arange(4), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_the_gated_unit_is_as_its_paper_writes_it() -> None:
    unit = SwiGLU(4, 6)
    x = normal(2, 3, 4)
    w1, w2 = unit.gate_and_value.weight.chunk(2)
    b1, b2 = unit.gate_and_value.bias.chunk(2)
    expected = F.linear(F.silu(F.linear(x, w1, b1)) * F.linear(x, w2, b2), unit.out.weight, unit.out.bias)
    torch.testing.assert_close(unit(x), expected)
    (layer,) = DiT(config(mlp="swiglu", width=24, depth=1), 1, square(8)).layers
    mlp = layer.mlp
    assert isinstance(mlp, SwiGLU)
    assert mlp.out.in_features == 64  # two thirds of 96


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.network\.patch 3 must divide the resolution 8; take one of \[1, 2, 4"):
        DiT(config(patch=3), 1, square(8))
    for changes, message in (
        ({"heads": 3}, "width 16 must be a multiple of heads 3"),
        ({"width": 18, "heads": 3}, "width 18 must be a multiple of 4"),
        ({"heads": 8, "rope": True}, "width / heads must be a multiple of 4; width 16 and heads 8 give 2"),
    ):
        with pytest.raises(ValidationError, match=message):
            config(**changes)
