"""The UNet against diffusers' parameter count for the paper's network, and the properties its users rely on."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange

from diffpipe.errors import UserError
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.resolution import square

SMALL = UNetConfig(channels=16, channel_mult=(1, 2), blocks=1, attention=(4,), heads=2, groups=8, dropout=0.0)


def randomized(net: UNet) -> UNet:
    """The network with its zero-initialized outputs made random, so that every path shows in the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return net.eval()


def test_the_default_has_the_size_that_the_paper_gives() -> None:
    # Ho et al. 2020, appendix B: "Our CIFAR10 model has 35.7 million parameters".
    with torch.device("meta"):
        net = UNet(UNetConfig(), channels=3, resolution=square(32))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(35.7e6, rel=2e-3)


def test_a_new_network_predicts_zero() -> None:
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(UNet(SMALL, 3, square(8))(x, torch.tensor([0, 9])), torch.zeros_like(x))


def test_the_output_depends_on_time_and_label_and_each_sample_on_itself_alone() -> None:
    net = randomized(UNet(SMALL, 1, square(8), classes=3))
    x, t, y = torch.randn(3, 1, 8, 8), torch.tensor([1, 5, 9]), torch.tensor([0, 1, 3])
    out = net(x, t, y)
    assert out.shape == x.shape
    torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(x, t + 1, y), out, atol=1e-4)
    assert not torch.allclose(net(x, t, (y + 1) % 3), out, atol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    net = randomized(UNet(SMALL, 1, square(8), classes=3))
    net(torch.randn(4, 1, 8, 8), torch.arange(4), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_channels_last_and_contiguous_agree() -> None:
    net = randomized(UNet(SMALL, 3, square(8)))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 7])
    before = net(x, t)
    last = net.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), t)
    torch.testing.assert_close(last, before, rtol=1e-4, atol=1e-5)


def test_with_patches_it_is_the_network_of_the_patches_pixels() -> None:
    # einops' rearrangement into channels stands beside torch's, which the network uses.
    whole = randomized(UNet(SMALL, 2 * 4, square(8), classes=3, out_channels=3 * 4))
    patched = UNet(SMALL.model_copy(update={"patch": 2}), 2, square(16), classes=3, out_channels=3).eval()
    patched.load_state_dict(whole.state_dict())
    x, t, y = torch.randn(3, 2, 16, 16), torch.tensor([1, 5, 9]), torch.tensor([0, 1, 3])
    channels = rearrange(x, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
    expected = rearrange(whole(channels, t, y), "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)
    torch.testing.assert_close(patched(x, t, y), expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.resolution 9 must be a multiple of stage\.network\.patch 2"):
        UNet(SMALL.model_copy(update={"patch": 2}), channels=3, resolution=square(9))
    with pytest.raises(UserError, match=r"data\.resolution 9 cannot be halved 1 time .* multiple of 2"):
        UNet(SMALL, 1, square(9))
    with pytest.raises(UserError, match=r"stage\.network\.attention names resolutions \[4\].*\[16, 8\]"):
        UNet(SMALL, 1, square(16))
