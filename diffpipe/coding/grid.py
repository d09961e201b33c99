"""Real numbers as integers on a grid, coded under normal distributions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from diffpipe.coding.message import Message

_REACH = 6.5  # standard deviations on either side of the mean
_WIDEST = 1 << 18  # bins on either side of the mean
_HALF = 1 << 16


class Grid(NamedTuple):
    """The multiples of `step`. A number is coded as the integer k of k · step.

    Encoder and decoder share the grid, whatever distribution they know: bits-back coding draws a number from q and
    codes it under p, and the width of the bins cancels. A distribution reaches 6.5 standard deviations to either side
    of its mean, so that few bins share the least frequency. A number further out is coded by an escape of about 24 bits
    and 32 bits for its place.

    A bin's middle has the bin's mass, which adds step^2 / 12 to the variance of what is drawn. That is taken off
    beforehand (Sheppard's correction): otherwise each of a diffusion's 1000 steps would cost 0.004 bits for each pixel
    on a grid of a quarter of a standard deviation.
    """

    step: float

    def values(self, k: Int64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
        """The numbers."""
        return k * self.step

    def pop_sample(
        self, message: Message, mean: Float64[np.ndarray, "*shape"], std: Float64[np.ndarray, "*shape"], stream: int = 0
    ) -> Int64[np.ndarray, "*shape"]:
        """Draw numbers from normal distributions by the message's bits, scrambled. They are within reach."""
        centre, offset, width, reach = self._window(mean, std)
        message.scramble(mean.size, stream)
        return (message.pop_normal(offset, width, reach) + centre).reshape(mean.shape)

    def push_sample(
        self,
        message: Message,
        k: Int64[np.ndarray, "*shape"],
        mean: Float64[np.ndarray, "*shape"],
        std: Float64[np.ndarray, "*shape"],
        stream: int = 0,
    ) -> None:
        """Undo `pop_sample` of the same stream."""
        centre, offset, width, reach = self._window(mean, std)
        message.push_normal(k.ravel() - centre, offset, width, reach)
        message.scramble(k.size, stream)

    def push(
        self,
        message: Message,
        k: Int64[np.ndarray, "*shape"],
        mean: Float64[np.ndarray, "*shape"],
        std: Float64[np.ndarray, "*shape"],
    ) -> None:
        """Code numbers under normal distributions, wherever they are."""
        centre, offset, width, reach = self._window(mean, std)
        place = k.ravel() - centre
        near = np.clip(place, -reach - 1, reach + 1)
        far = place[np.abs(near) > reach]
        if len(far):
            high, low = np.divmod(far, _HALF)
            assert np.abs(far).max() < _HALF * _HALF // 2, "a number is 2^31 bins from its mean"
            message.push_uniform(low, _HALF)
            message.push_uniform(high + _HALF // 2, _HALF)
        message.push_normal(near, offset, width, reach + 1)

    def pop(
        self, message: Message, mean: Float64[np.ndarray, "*shape"], std: Float64[np.ndarray, "*shape"]
    ) -> Int64[np.ndarray, "*shape"]:
        """The numbers of `push`."""
        centre, offset, width, reach = self._window(mean, std)
        place = message.pop_normal(offset, width, reach + 1)
        far = np.abs(place) > reach
        if far.any():
            high = message.pop_uniform(int(far.sum()), _HALF) - _HALF // 2
            place[far] = high * _HALF + message.pop_uniform(int(far.sum()), _HALF)
        return (place + centre).reshape(mean.shape)

    def _window(
        self, mean: np.ndarray, std: np.ndarray
    ) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"], Float64[np.ndarray, " n"], int]:
        """The bin of each mean, the mean within it, the standard deviation in bins, and the reach in bins."""
        mean, variance = mean.ravel() / self.step, np.broadcast_to(std, mean.shape).ravel() ** 2 / self.step**2
        width = np.sqrt(np.maximum(variance - 1 / 12, variance / 4))
        finite = np.nan_to_num(mean, posinf=0, neginf=0)  # the message refuses what is not finite
        centre = np.rint(finite).astype(np.int64)
        widest = np.nan_to_num(width.max(initial=0), posinf=0)
        reach = min(int(np.ceil(_REACH * widest)) + 1, _WIDEST)
        return centre, mean - centre, width, reach
