"""The encoder and the decoder: their shapes, and the labels' effect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.nn.autoencoder import CoderConfig, Decoder, Encoder
from diffpipe.resolution import square
from tests.support.randomized import normal, randomized

NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}


@pytest.mark.parametrize(("latent", "shape"), [("spatial", (3, 2, 2)), ("vector", (3, 1, 1))])
def test_the_decoder_undoes_the_encoders_shapes(latent: str, shape: tuple[int, int, int]) -> None:
    config = CoderConfig.model_validate(NETWORK | {"channel_mult": (1, 2, 2), "latent": latent})
    assert config.latent_shape(square(8)) == shape
    x = torch.zeros(5, 2, 8, 8)
    z = Encoder(config, 2, square(8), outputs=3)(x)
    assert z.shape == (5, *shape)
    assert Decoder(config, square(8), outputs=2)(z).shape == x.shape


def test_labels_change_the_output_of_a_class_conditional_coder() -> None:
    config = CoderConfig.model_validate(NETWORK)
    encoder, decoder = Encoder(config, 2, square(8), 3, classes=4), Decoder(config, square(8), 2, classes=4)
    for net, x in ((encoder, torch.ones(2, 2, 8, 8)), (decoder, torch.ones(2, 3, 4, 4))):
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        first, second = net(x, torch.tensor([0, 3]))
        assert not torch.allclose(first, second)


def test_latents_too_small_for_the_levels_are_refused() -> None:
    config = CoderConfig.model_validate(NETWORK | {"channel_mult": (1, 1, 1)})
    assert config.latent_shape(square(8)) == (3, 2, 2)
    with pytest.raises(
        UserError, match=r"data\.resolution 6 cannot be halved 2 times for stage\.network\.channel_mult"
    ):
        config.latent_shape(square(6))


def test_an_image_is_encoded_and_decoded_by_itself() -> None:
    config = CoderConfig.model_validate(NETWORK | {"latent": "vector"})
    encoder, decoder = randomized(Encoder(config, 2, square(8), 3)), randomized(Decoder(config, square(8), 2))
    x = normal(5, 2, 8, 8)
    z = encoder(x)
    torch.testing.assert_close(encoder(x[3:]), z[3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder(z[3:]), decoder(z)[3:], rtol=1e-4, atol=1e-5)
    assert (z[0] - z[1]).abs().max() > 1e-3
