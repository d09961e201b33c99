"""Glow: its inverse, and its log-determinant against autograd."""

from __future__ import annotations

import pytest
import torch

from diffpipe.errors import UserError
from diffpipe.nn.glow import Glow, GlowConfig
from diffpipe.resolution import square
from tests.support.randomized import normal, randomized


@pytest.mark.parametrize(("channels", "resolution", "levels"), [(1, 28, 2), (3, 16, 3), (1, 6, 1)])
@pytest.mark.parametrize("classes", [0, 3])
def test_glow_is_inverted(channels: int, resolution: int, levels: int, classes: int) -> None:
    torch.manual_seed(0)
    small = GlowConfig(kind="glow", levels=levels, steps=3, hidden=8)
    net = randomized(Glow(small, channels, square(resolution), classes), std=0.05)
    x, labels = normal(4, channels, resolution, resolution), torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        z, log_det = net(x, labels)
        inverse = net.inverse(z, labels)  # pyright: ignore[reportCallIssue]
    assert z.shape == x.shape
    assert log_det.shape == (4,)
    assert (inverse - x).abs().max() < 1e-4
    assert (z - x).abs().max() > 0.1


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("classes", [0, 3])
def test_glows_log_determinant_is_that_of_its_jacobian(levels: int, classes: int) -> None:
    torch.manual_seed(0)
    net = randomized(Glow(GlowConfig(kind="glow", levels=levels, steps=2, hidden=8), 2, square(4), classes)).double()
    x, labels = normal(3, 2, 4, 4).double(), torch.tensor([0, 1, 2])
    _, log_det = net(x, labels)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda one, i=i: net(one[None], labels[i : i + 1])[0][0], x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(32, 32)).logabsdet
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


def test_a_resolution_that_cannot_be_squeezed_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.resolution 12 cannot be squeezed 3 times .*take a multiple of 8"):
        Glow(GlowConfig(kind="glow", levels=3, steps=1, hidden=2), 1, square(12))
