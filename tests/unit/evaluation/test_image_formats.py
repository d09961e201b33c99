"""The sizes in other formats: those of files that Pillow writes and reads back without loss."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diffpipe.evaluation.image_formats import _OPTIONS, JPEG_XL, PNG, WEBP, format_sizes
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.train.runtime import Runtime
from tests.support.stage_cases import real_batch


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sizes_are_those_of_lossless_files(runtime: Runtime, channels: int) -> None:
    images = real_batch(60).images.expand(-1, channels, -1, -1)
    sizes = format_sizes(TensorImages(images), runtime)
    assert list(sizes.bytes) == [PNG, WEBP, JPEG_XL]
    assert sizes.dims == images.numel()
    assert not sizes.missing
    for name, options in _OPTIONS.items():
        total = 0
        for image in images.numpy():
            array, buffer = image[0] if channels == 1 else image.transpose(1, 2, 0), io.BytesIO()
            Image.fromarray(array).save(buffer, **options)
            total += len(buffer.getvalue())
            mode = "L" if channels == 1 else "RGB"
            assert np.array_equal(np.asarray(Image.open(buffer).convert(mode)), array)
        assert sizes.bytes[name] == total
        assert sizes.bits_per_dim()[name] == pytest.approx(8 * total / images.numel())


def test_a_format_that_is_not_installed_is_said(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    sizes = format_sizes(TensorImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)), runtime)
    assert list(sizes.bytes) == [PNG, WEBP]
    assert "diffpipe[jxl]" in sizes.missing[JPEG_XL]
