"""The generator of a GAN: its range, its labels, and the size of its signals."""

from __future__ import annotations

import pytest
import torch

from diffpipe.nn.generator import Generator, GeneratorConfig
from diffpipe.resolution import square
from tests.support.randomized import normal, randomized
from tests.support.tiny_gans import NETS, SHAPE, gan_config


def test_a_new_network_neither_swells_nor_fades_its_input_with_depth() -> None:
    for blocks in (1, 12):
        stage = gan_config(generator=NETS | {"latent": 4, "blocks": blocks}).build(SHAPE)
        torch.manual_seed(0)
        nets = stage.networks()
        images = nets["generator"](torch.randn(64, 4)).detach()
        assert 0.02 < float(images.std()) < 2
        assert nets["discriminator"](images).detach().abs().max() < 10


@pytest.mark.parametrize("classes", [0, 3])
def test_an_image_depends_on_its_latent_and_label_alone(classes: int) -> None:
    torch.manual_seed(0)
    config = GeneratorConfig.model_validate(NETS | {"latent": 4})
    net = randomized(Generator(config, 2, square(8), classes), std=0.3)
    z, labels = 3 * normal(4, 4), torch.tensor([0, 1, 2, 0]) if classes else None
    images = net(z, labels)
    assert images.shape == (4, 2, 8, 8)
    assert images.abs().max() <= 1
    few = None if labels is None else labels[1:3]
    torch.testing.assert_close(net(z[1:3], few), images[1:3], rtol=1e-4, atol=1e-5)
    assert (net(z.flip(0), labels) - images).abs().amax((1, 2, 3)).min() > 1e-3
    if labels is not None:
        assert (net(z, (labels + 1) % 3) - images).abs().amax((1, 2, 3)).min() > 1e-3
