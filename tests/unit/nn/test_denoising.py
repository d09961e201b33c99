"""The networks of a denoising diffusion GAN, and their start from a trained UNet."""

from __future__ import annotations

import pytest
import torch

from diffpipe.nn.denoising import DenoisingDiscriminator, DenoisingGenerator, start_from
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.resolution import square
from tests.support.randomized import normal, randomized
from tests.support.tiny_gans import UNET, trained_unet


def test_a_generator_that_starts_from_a_ddpm_is_its_unet_whatever_the_latent() -> None:
    unet, generator = trained_unet(), DenoisingGenerator(UNetConfig.model_validate(UNET), 4, 1, square(8), 3)
    start_from(generator, unet.state_dict())
    x, t, z, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 3]), torch.randn(2, 4), torch.tensor([0, 2])
    assert torch.equal(generator(x, t, z, labels), unet(x, t, labels))


@pytest.mark.parametrize("patch", [1, 2])
def test_a_discriminator_that_starts_from_a_ddpm_has_its_features_of_x_prev(patch: int) -> None:
    config = UNetConfig.model_validate({**UNET, "patch": patch})
    size = 8 * patch
    unet, discriminator = UNet(config, 1, square(size), 3), DenoisingDiscriminator(config, 1, square(size), 3)
    randomized(unet)
    start_from(discriminator, unet.state_dict())
    x_prev, x_t = torch.randn(2, 2, 1, size, size)
    emb = unet.embed(torch.tensor([0, 3]), torch.tensor([0, 2]))
    theirs, _ = unet.encode(x_prev, emb)
    ours, _ = discriminator.encode(torch.cat([x_prev, x_t], dim=1), emb)
    torch.testing.assert_close(ours, theirs)


def test_a_latent_has_no_effect_at_first_and_one_once_trained() -> None:
    torch.manual_seed(0)
    generator = DenoisingGenerator(UNetConfig.model_validate(UNET), 4, 1, square(8))
    inputs = normal(2, 1, 8, 8), torch.tensor([0, 3])
    for moved in (False, True):
        if moved:
            randomized(generator)
        first, second = (generator(*inputs, z) for z in (torch.zeros(2, 4), torch.ones(2, 4)))
        assert torch.equal(first, second) == (not moved)


def test_a_discriminator_sees_both_images_the_time_and_the_label_of_each_pair_alone() -> None:
    torch.manual_seed(0)
    net = randomized(DenoisingDiscriminator(UNetConfig.model_validate(UNET), 1, square(8), 3), std=0.3)
    x_prev, x_t, t, labels = normal(3, 1, 8, 8), normal(3, 1, 8, 8).flip(3), torch.tensor([0, 2, 3]), torch.arange(3)
    logits = net(x_prev, x_t, t, labels)
    assert logits.shape == (3,)
    torch.testing.assert_close(net(x_prev[1:], x_t[1:], t[1:], labels[1:]), logits[1:], rtol=1e-4, atol=1e-5)
    for changed in ((x_t, x_t, t, labels), (x_prev, x_prev, t, labels), (x_prev, x_t, t + 1, labels)):
        assert (net(*changed) - logits).abs().min() > 1e-4
    assert (net(x_prev, x_t, t, labels.flip(0)) - logits)[[0, 2]].abs().min() > 1e-4
