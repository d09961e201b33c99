"""Local bits-back coding of the layers of a flow (Ho, Lohn & Abbeel 2019, arXiv:1905.08500).

A layer z = f(x) maps integers, the places of x on a fine grid, to the places of z. It takes -log2|det df/dx| bits on
average, which are negative where it expands. The paper draws z from N(f(x), s^2 J J^T) and codes x under
N(f^-1(z), s^2 I). Where J is diagonal, that is done number by number. Where J is triangular with ones on its diagonal,
nothing needs to be coded: the integers are shifted one after the other by what is before them. Every layer of Glow and
of TarFlow is made of these two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from diffpipe.coding.grid import Grid
from diffpipe.coding.message import Message

_BINS = 2.0  # of the grid in the standard deviation of the local noise, on the side where it is narrower
_COEFFICIENT_BITS = 24  # after the binary point of a triangular map's coefficients


class LocalBitsBack(NamedTuple):
    """A flow's numbers on a grid of step 2^-(coarse_bits + fine_bits).

    coarse_bits: of the grid under which latents have a normal distribution. It is uniform over the finer one.
    """

    coarse_bits: int
    fine_bits: int

    @property
    def grid(self) -> Grid:
        return Grid(2.0 ** -(self.coarse_bits + self.fine_bits))

    def values(self, k: Int64[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
        """The numbers, as a network reads them. They are contiguous: a network's bits may depend on the strides."""
        return (k.double() * self.grid.step).float().contiguous()

    def encode_affine(
        self,
        message: Message,
        k: Int64[Tensor, "*shape"],
        scale: Float64[Tensor, "*s"],
        shift: Float64[Tensor, "*t"],
        stream: int,
    ) -> Int64[Tensor, "*shape"]:
        """z of z = scale * x + shift, number by number. scale and shift broadcast; a scale may be negative.

        stream: as of `Grid.pop_sample`, another one for each layer.
        """
        x_std, z_std = self._noise(scale, k)
        mean = (scale * (k.double() * self.grid.step) + shift).numpy()
        z = torch.from_numpy(self.grid.pop_sample(message, mean, z_std, stream))
        self.grid.push(message, k.numpy(), self._undone(z, scale, shift), x_std)
        return z

    def decode_affine(
        self,
        message: Message,
        k: Int64[Tensor, "*shape"],
        scale: Float64[Tensor, "*s"],
        shift: Float64[Tensor, "*t"],
        stream: int,
    ) -> Int64[Tensor, "*shape"]:
        """x of `encode_affine`."""
        x_std, z_std = self._noise(scale, k)
        x = torch.from_numpy(self.grid.pop(message, self._undone(k, scale, shift), x_std))
        mean = (scale * (x.double() * self.grid.step) + shift).numpy()
        self.grid.push_sample(message, k.numpy(), mean, z_std, stream)
        return x

    def push_normal(
        self,
        message: Message,
        k: Int64[Tensor, "*shape"],
        mean: Float64[Tensor, "*shape"],
        std: Float64[Tensor, "*shape"],
    ) -> None:
        """Code latents under normal distributions."""
        message.push_uniform((k & (1 << self.fine_bits) - 1).numpy().ravel(), 1 << self.fine_bits)
        self._coarse.push(message, (k >> self.fine_bits).numpy(), self._coarse_mean(mean), std.numpy())

    def pop_normal(
        self, message: Message, mean: Float64[Tensor, "*shape"], std: Float64[Tensor, "*shape"]
    ) -> Int64[Tensor, "*shape"]:
        """The latents of `push_normal`."""
        high = self._coarse.pop(message, self._coarse_mean(mean), std.numpy())
        low = message.pop_uniform(high.size, 1 << self.fine_bits).reshape(high.shape)
        return torch.from_numpy((high << self.fine_bits) + low)

    @property
    def _coarse(self) -> Grid:
        return Grid(2.0**-self.coarse_bits)

    def _coarse_mean(self, mean: Tensor) -> Float64[np.ndarray, "*shape"]:
        """A coarse bin starts at its multiple of the step, and that of `Grid` has it in the middle."""
        return (mean - (self._coarse.step - self.grid.step) / 2).numpy()

    def _undone(self, z: Tensor, scale: Tensor, shift: Tensor) -> Float64[np.ndarray, "*shape"]:
        return ((z.double() * self.grid.step - shift) / scale).numpy()

    def _noise(self, scale: Tensor, k: Tensor) -> tuple[Float64[np.ndarray, "*shape"], Float64[np.ndarray, "*shape"]]:
        """The standard deviations of x given z and of z given x, neither narrower than `_BINS` bins."""
        gain = scale.abs().expand(k.shape)
        std = _BINS * self.grid.step
        return (std / gain.clamp(max=1)).numpy(), (std * gain.clamp(min=1)).numpy()


def encode_shear(k: Int64[Tensor, "b c h w"], strict: Float64[Tensor, "c c"]) -> Int64[Tensor, "b c h w"]:
    """(1 + strict) x across the channels, rounded, with `strict` above or below the diagonal. It takes no bits."""
    return k + _rounded_product(_fixed_point(strict), k)


def decode_shear(k: Int64[Tensor, "b c h w"], strict: Float64[Tensor, "c c"]) -> Int64[Tensor, "b c h w"]:
    """Undo `encode_shear`, channel by channel: first that which none was added to."""
    coefficients, x = _fixed_point(strict), k.clone()
    lower = not coefficients.triu().any()
    for i in range(len(strict)) if lower else reversed(range(len(strict))):
        x[:, i : i + 1] -= _rounded_product(coefficients[i : i + 1], x)
    return x


def _fixed_point(coefficients: Tensor) -> Int64[Tensor, "c c"]:
    """Coefficients as integers: sums of integers do not depend on their order, as those of floats do."""
    return torch.round(coefficients * 2.0**_COEFFICIENT_BITS).long()


def _rounded_product(coefficients: Int64[Tensor, "d c"], k: Int64[Tensor, "b c h w"]) -> Int64[Tensor, "b d h w"]:
    half = 1 << (_COEFFICIENT_BITS - 1)
    return (torch.einsum("dc,bchw->bdhw", coefficients, k) + half) >> _COEFFICIENT_BITS
