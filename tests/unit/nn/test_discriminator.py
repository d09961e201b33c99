"""The discriminator of a GAN: its logits from features, one image at a time."""

from __future__ import annotations

import torch
from torch import nn

from diffpipe.nn.discriminator import Discriminator, DiscriminatorConfig, multiscale_logits
from diffpipe.resolution import square
from tests.support.randomized import normal, randomized
from tests.support.tiny_gans import NETS, SHAPE, gan_config


def test_logits_far_from_zero_keep_their_small_differences_under_autocast() -> None:
    torch.manual_seed(0)
    net = gan_config(loss="hinge").build(SHAPE).networks()["discriminator"]
    assert isinstance(net, Discriminator)
    nn.init.constant_(net.whole.bias, 1000.0)  # bfloat16 knows 1000 and 1004, and nothing between
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = net(torch.randn(64, 1, 8, 8))
    assert logits.dtype == torch.float32
    assert len(logits.unique()) > 32


def test_the_logits_of_all_resolutions_and_of_the_label_are_added() -> None:
    features = [normal(3, 2, 8, 8), normal(3, 2, 4, 4)]
    heads = [nn.Conv2d(2, 1, 1) for _ in features]
    table, whole, labels = nn.Embedding(4, 2), nn.Linear(32, 1), torch.tensor([3, 0, 1])
    expected = torch.zeros(3)
    for h, head in zip(features, heads, strict=True):
        assert head.bias is not None
        expected = expected + 4 * (torch.einsum("bchw,c->bhw", h, head.weight[0, :, 0, 0]) + head.bias).mean((1, 2))
    expected = expected + (table.weight[labels] * features[1].mean((2, 3))).sum(1)
    last = features[1].flatten(1)
    expected = expected + (last * torch.sigmoid(last)) @ whole.weight[0] + whole.bias
    torch.testing.assert_close(multiscale_logits(features, nn.ModuleList(heads), table, labels, whole), expected)


def test_a_logit_depends_on_its_image_and_label_alone() -> None:
    torch.manual_seed(0)
    net = randomized(Discriminator(DiscriminatorConfig.model_validate(NETS), 1, square(8), 3), std=0.3)
    images, labels = normal(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    logits = net(images, labels)
    torch.testing.assert_close(net(images[2:], labels[2:]), logits[2:], rtol=1e-4, atol=1e-5)
    assert (net(images, (labels + 1) % 3) - logits).abs().min() > 1e-4
    assert (net(images.flip(0), labels) - logits).abs().min() > 1e-4
