"""The normalizations: against torch's, and with parameters of fewer digits than their input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.nn.norms import LayerNorm, RMSNorm, learned_norm
from tests.support.randomized import normal, randomized


def test_they_are_torchs() -> None:
    x = normal(2, 3, 4)
    torch.testing.assert_close(RMSNorm(4)(x), nn.RMSNorm(4, eps=1e-6)(x))
    torch.testing.assert_close(LayerNorm(4)(x), nn.LayerNorm(4)(x))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_parameters_of_bfloat16_leave_the_inputs_precision(kind: str) -> None:
    """Those of a sharded block are gathered in bfloat16."""
    norm = randomized(learned_norm(kind, 4))  # pyright: ignore[reportArgumentType]
    x, expected = normal(2, 3, 4), norm(normal(2, 3, 4))
    out = norm.bfloat16()(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0.02)
