"""Memory for batches of images that this process shares with its loader processes, and that is used again and again.

A batch that is handed over in memory of its own costs both processes its pages anew: at 256x256 as much as half of the
decoding of its JPEGs. The process that trains deals the slots out, so that nothing has to be agreed on.
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


def room(
    shape: tuple[int, ...], dtype: DTypeLike, memory: mmap.mmap | None = None, start: int = 0
) -> Num[np.ndarray, "n c h w"]:
    """An array for images or latents, in new memory or there: bytes in channels_last order, as pixels are decoded."""
    n, c, h, w = shape
    if dtype == np.uint8:
        return np.ndarray((n, h, w, c), dtype, memory, start).transpose(0, 3, 1, 2)
    return np.ndarray(shape, dtype, memory, start)


class Ring:
    """So many slots for batches of at most this shape [n c h w].

    The memory is anonymous: processes forked later on share it, and no limit of /dev/shm holds for it.
    """

    def __init__(self, slots: int, shape: tuple[int, ...], dtype: DTypeLike):
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.bytes = math.prod(shape) * self.dtype.itemsize
        self._memory = mmap.mmap(-1, slots * self.bytes)
        self._free = [*range(slots)]  # the last in, whose pages are known, is the first out

    def take(self) -> int | None:
        """A slot that nothing refers to, or None where there is none."""
        return self._free.pop() if self._free else None

    def view(self, slot: int, n: int) -> Num[np.ndarray, "n c h w"]:
        """The first n of a slot."""
        return room((n, *self.shape[1:]), self.dtype, self._memory, slot * self.bytes)

    def tensor(self, slot: int, n: int) -> Num[Tensor, "n c h w"]:
        """The first n of a slot that was taken; it is free again once no tensor refers to them any more."""
        array = self.view(slot, n)
        weakref.finalize(array, self._free.append, slot).atexit = False
        return torch.from_numpy(array)  # whose storage holds on to this very array
