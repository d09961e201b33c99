"""Encoded images as one tensor: the pixels of PIL, and images of unlike sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffpipe.data.decode.stack import png_bytes, stack_images
from diffpipe.errors import UserError
from diffpipe.resolution import square


def test_pixels_come_back_as_they_were() -> None:
    arrays = np.random.default_rng(0).integers(0, 256, (3, 5, 6, 3), dtype=np.uint8)
    stacked = stack_images(((str(i), png_bytes(x)) for i, x in enumerate(arrays)), None, 3)
    assert torch.equal(stacked, torch.from_numpy(arrays.transpose(0, 3, 1, 2)))
    grey = stack_images([("grey", png_bytes(arrays[0, ..., :1]))], None, 1)
    assert np.array_equal(grey[0, 0].numpy(), arrays[0, ..., 0])


def test_unlike_sizes_are_refused_with_the_option_that_helps() -> None:
    images = [(f"{side}.png", png_bytes(np.zeros((side, 4), np.uint8))) for side in (4, 6)]
    with pytest.raises(
        UserError,
        match=r"6\.png: it has 6x4 pixels \(height x width\) and the images before it 4x4; pack them with --resolution",
    ):
        stack_images(images, None, 3)
    assert stack_images(images, square(2), 3).shape == (2, 3, 2, 2)
