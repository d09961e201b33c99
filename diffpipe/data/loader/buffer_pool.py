"""Memory for batches of images that this process shares with its loader workers and reuses.

If each batch were handed over in memory of its own, both processes would have to map its pages every time. At 256x256
that costs as much as half of decoding the JPEGs. The training process assigns the slots, so no locking is needed.
"""

from __future__ import annotations

import math
import mmap
import weakref

import numpy as np
import torch
from jaxtyping import Num
from numpy.typing import DTypeLike
from torch import Tensor


def empty_batch(
    shape: tuple[int, ...], dtype: DTypeLike, memory: mmap.mmap | None = None, start: int = 0
) -> Num[np.ndarray, "n c h w"]:
    """An uninitialised array for images or latents, in new memory or in `memory` from byte `start` on.

    Images (uint8) are laid out channels last, as they are decoded.
    """
    n, c, h, w = shape
    if dtype == np.uint8:
        return np.ndarray((n, h, w, c), dtype, memory, start).transpose(0, 3, 1, 2)
    return np.ndarray(shape, dtype, memory, start)


class BufferPool:
    """`slots` buffers, each for one batch of at most `shape` [n c h w].

    The memory is anonymous: processes forked later share it, and the size of /dev/shm does not limit it.
    """

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: DTypeLike):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.bytes = math.prod(shape) * self.dtype.itemsize
        self._memory = mmap.mmap(-1, slots * self.bytes)
        self._free = [*range(slots)]  # last in, first out: the pages of that slot are mapped already

    def take(self) -> int | None:
        """A free slot, or None where there is none."""
        return self._free.pop() if self._free else None

    def view(self, slot: int, n: int) -> Num[np.ndarray, "n c h w"]:
        """The first n rows of a slot."""
        return empty_batch((n, *self.shape[1:]), self.dtype, self._memory, slot * self.bytes)

    def tensor(self, slot: int, n: int) -> Num[Tensor, "n c h w"]:
        """The first n rows of a slot that was taken. The slot is free again when no tensor refers to them any more."""
        array = self.view(slot, n)
        weakref.finalize(array, self._free.append, slot).atexit = False
        return torch.from_numpy(array)  # its storage keeps a reference to this very array
