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
from jaxtyping import UInt8
from torch import Tensor


class Ring:
    """So many slots for images uint8 of [n c h w] at most, in channels_last order.

    The memory is anonymous: processes forked later on share it, and no limit of /dev/shm holds for it.
    """

    def __init__(self, slots: int, shape: tuple[int, int, int, int]):
        self.shape = shape
        self._memory = mmap.mmap(-1, max(1, slots * math.prod(shape)))
        self._free = [*range(slots)]  # the last in, whose pages are known, is the first out

    def take(self) -> int | None:
        """A slot that nothing refers to, or None where there is none."""
        return self._free.pop() if self._free else None

    def view(self, slot: int, n: int) -> UInt8[np.ndarray, "n c h w"]:
        """The first n images of a slot."""
        _, c, h, w = self.shape
        start = slot * math.prod(self.shape)
        return np.ndarray((n, c, h, w), np.uint8, self._memory, start, strides=(c * h * w, 1, w * c, c))  # type: ignore[arg-type]

    def tensor(self, slot: int, n: int) -> UInt8[Tensor, "n c h w"]:
        """The first n images of a slot that was taken; it is free again once no tensor refers to them any more."""
        array = self.view(slot, n)
        weakref.finalize(array, self._free.append, slot).atexit = False
        return torch.from_numpy(array)  # whose storage holds on to this very array
