"""The pixel codec: exact for every byte, and clipped outside of [-1, 1]."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.stages.codec import Codec, PixelCodec, VAECodecConfig


def test_pixels_make_the_round_trip() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x = PixelCodec().encode(images)
    assert x.min() == -1
    assert x.max() == 1
    assert torch.equal(PixelCodec().decode(x), images)


def test_decoding_takes_the_nearest_byte_and_clips() -> None:
    x = torch.linspace(-3, 3, 1200).reshape(2, 3, 10, 20)
    expected = np.rint((x.double().numpy() + 1) / 2 * 255).clip(0, 255)
    distance = np.abs(PixelCodec().decode(x).numpy() - expected)
    assert distance.max() <= 1  # float32 falls on the other side of a half at times
    assert (distance == 0).mean() > 0.99
    assert PixelCodec().decode(torch.tensor([-7.0, 7.0]).reshape(1, 2, 1, 1)).flatten().tolist() == [0, 255]


def test_the_pixel_codec_has_no_networks_and_keeps_the_shape() -> None:
    codec = PixelCodec()
    assert isinstance(codec, Codec)
    assert not codec.latent
    assert (len(codec.nets), len(codec.decoding), codec.scale) == (0, 0, None)
    assert codec.shape(ImageShape(channels=3, resolution=square(16), classes=5)) == (3, 16, 16)


@pytest.mark.parametrize("sha256", ["0" * 63, "A" * 64, "0" * 65])
def test_a_hash_of_a_codec_is_64_hexadecimal_digits(sha256: str) -> None:
    assert VAECodecConfig(kind="vae", run="vae", sha256="0a" * 32).sha256 == "0a" * 32
    with pytest.raises(ValidationError, match="sha256"):
        VAECodecConfig(kind="vae", run="vae", sha256=sha256)
