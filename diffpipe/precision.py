"""The precision of float32 products on GPUs: IEEE float32, or TF32, which keeps 10 of its 23 mantissa bits.

torch's own default is TF32 for convolutions, also where autocast is off and algorithms are deterministic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def set_float32_products(*, tf32: bool) -> None:
    """Let the convolutions and matrix products of this process use TF32, or make them IEEE float32."""
    _set(tf32, tf32)
    for product in _cpu_products():
        product.fp32_precision = "ieee"


@contextlib.contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """Within it, float32 products are IEEE float32, or TF32. Regions nest.

    Backward passes that run after the region has ended are not within it. A compiled block must be called within the
    region, since the region cannot be entered in compiled code.
    """
    backends: Any = torch.backends
    before = [product.fp32_precision == "tf32" for product in (backends.cudnn.conv, backends.cuda.matmul)]
    cpu_before = [product.fp32_precision for product in _cpu_products()]
    try:
        set_float32_products(tf32=tf32)
        yield
    finally:
        _set(*before)
        for product, precision in zip(_cpu_products(), cpu_before, strict=True):
            product.fp32_precision = precision


def _set(convolutions: bool, matmul: bool) -> None:
    backends: Any = torch.backends
    # torch has two interfaces, and reading the first, as torch.compile does, fails where the second disagrees with it.
    backends.cudnn.allow_tf32 = convolutions
    backends.cuda.matmul.allow_tf32 = matmul
    for product, allowed in (
        (backends.cudnn.conv, convolutions),
        (backends.cudnn.rnn, convolutions),
        (backends.cuda.matmul, matmul),
    ):
        product.fp32_precision = "tf32" if allowed else "ieee"


def _cpu_products() -> list[Any]:
    backends: Any = torch.backends
    return [backends.mkldnn.conv, backends.mkldnn.matmul]
