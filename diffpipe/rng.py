"""Random numbers as a pure function of (seed, purpose, position).

No generator is ever advanced, so no generator state has to be saved. The noise of sample 12,345 is the same on every
rank, worker, micro-batch and device, however often the run was killed before.

The bits come from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), in int64
arithmetic that numpy arrays and torch tensors share. Uniforms and normals are computed from the bits with sums,
products, quotients and square roots only, one rounding each. IEEE 754 defines each of these exactly, so the floats are
bit-identical, too, on every device and for every split into batches. `torch.randn` and even `torch.log` do not promise
that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_BLOCK = 2**16  # entries of a permutation at a time: about 6 MB


def fold_in(*parts: int | str) -> int:
    """A 63-bit integer that depends on all `parts`, as a seed for a purpose, step or rank."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def philox(c0: Any, c1: Any, c2: Any, c3: Any, key: int) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of the 128-bit counters (c0, c1, c2, c3) under a 64-bit key.

    The counter words are int64 arrays (numpy or torch, of one shape) with values in [0, 2^32), and so are the four
    words that it returns. The tests compare it with the known answers published with Random123.
    """
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(_ROUNDS):
        # The product of two 32-bit words overflows int64 into its sign bit. Two's complement keeps all 64 bits right,
        # and the mask after the arithmetic shift drops the copies of the sign.
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def permutation(n: int, *parts: int | str) -> np.ndarray:
    """A uniformly random permutation of range(n), int64 [n], that depends on `parts` alone.

    It sorts by 64 random bits per entry. Numpy's own shuffle may change between releases.
    """
    return np.argsort(_sort_keys(0, n, fold_in(*parts)), kind="stable")


def permutation_start(size: int, n: int, *parts: int | str) -> np.ndarray:
    """The first `size` entries of `permutation(n, *parts)`, in memory for `size` entries instead of n."""
    key, kept, entries = fold_in(*parts), np.empty(0, np.int64), np.empty(0, np.int64)
    pending, limit = [(kept, entries)], np.iinfo(np.int64).max
    for start in range(0, n, _BLOCK):
        keys = _sort_keys(start, min(start + _BLOCK, n), key)
        candidates = np.flatnonzero(keys <= limit)
        pending.append((keys[candidates], candidates + start))
        if start + _BLOCK < n and sum(len(part) for part, _ in pending) < 2 * size + _BLOCK:
            continue
        kept, entries = (np.concatenate(parts) for parts in zip(*pending, strict=True))
        order = np.argsort(kept, kind="stable")[:size]
        pending = [(kept[order], entries[order])]
        limit = kept[order[-1]] if 0 < len(order) == size else limit
    return pending[0][1][:size]


def _sort_keys(start: int, stop: int, key: int) -> np.ndarray:
    """64 random bits for each of the entries start to stop - 1 of a permutation, int64."""
    i = np.arange(start, stop, dtype=np.int64)
    zero = np.zeros_like(i)
    high, low, _, _ = philox(i & _WORD, i >> 32, zero, zero, key)
    return (high << 32) | low


@runtime_checkable
class RNG(Protocol):
    """The random numbers of one batch, as a stage draws them to generate; see `KeyedRNG` for the methods."""

    positions: Tensor

    def bits(self, purpose: str, n: int, stream: int = 0) -> Tensor: ...

    def uniform(self, purpose: str, shape: Sequence[int] = (), stream: int = 0) -> Tensor: ...

    def integers(self, purpose: str, high: int, stream: int = 0) -> Tensor: ...

    def normal(self, purpose: str, shape: Sequence[int], stream: int = 0) -> Tensor: ...


class KeyedRNG:
    """The random numbers of one batch. Those of a row depend only on the seed, the purpose and the row's position.

    positions: int64 [b], positions in the data stream or indices of samples to generate. The argument `stream` of each
    method distinguishes draws for one purpose at one position, such as the noise of each reverse step.
    """

    def __init__(self, seed: int, positions: Int[Tensor, " b"]):
        self.seed = seed
        self.positions = positions

    def bits(self, purpose: str, n: int, stream: int = 0) -> Int[Tensor, "b n"]:
        """n random 32-bit words per row, int64 [b, n] in [0, 2^32)."""
        blocks = -(-n // 4)
        block = torch.arange(blocks, device=self.positions.device).expand(len(self.positions), blocks)
        low = (self.positions & _WORD)[:, None].expand_as(block)
        high = ((self.positions >> 32) & _WORD)[:, None].expand_as(block)
        words = philox(block, torch.full_like(block, stream & _WORD), low, high, fold_in(self.seed, purpose))
        return torch.stack(words, dim=-1).flatten(1)[:, :n]

    def uniform(self, purpose: str, shape: Sequence[int] = (), stream: int = 0) -> Float[Tensor, "b ..."]:
        """Uniform float32 [b, *shape] in the open interval (0, 1), on a grid of 2^23 values."""
        words = self.bits(purpose, math.prod(shape), stream).reshape(len(self.positions), *shape)
        return ((words >> 9).float() + 0.5) * 2.0**-23

    def integers(self, purpose: str, high: int, stream: int = 0) -> Int[Tensor, " b"]:
        """One int64 per row, uniform in [0, high), for high ≤ 2^31."""
        return (self.bits(purpose, 1, stream)[:, 0] * high) >> 32

    def normal(self, purpose: str, shape: Sequence[int], stream: int = 0) -> Float[Tensor, "b ..."]:
        """Standard normal float32 [b, *shape]."""
        words = self.bits(purpose, math.prod(shape), stream)
        return inverse_normal_cdf(words).reshape(len(self.positions), *shape)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's rule: one rounded multiplication and one rounded addition per coefficient, never fused."""
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value.mul_(x).add_(c)
    return value


def _log(x: Tensor) -> Tensor:
    """log x of positive floats, from exactly rounded operations: log(m 2^e) = e log 2 + 2 artanh((m-1)/(m+1))."""
    m, e = torch.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = torch.where(low, m * 2, m), e.to(x.dtype) - low.to(x.dtype)
    s = (m - 1) / (m + 1)
    return _polynomial(s * s, (2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)) * s + e * math.log(2)


def inverse_normal_cdf(words: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard normal float32 from 32-bit words: the quantile of (low 31 bits + 1/2) / 2^32, signed by the top bit.

    The quantile is PPND7 of Wichura 1988 (algorithm AS 241), accurate to about one part in 10^7; the tails end at 6.3.
    """
    p = ((words & 0x7FFFFFFF).float() + 0.5) * 2.0**-32  # in (0, 1/2]
    q = 0.5 - p
    r = 0.180625 - q * q
    centre = q * _polynomial(r, (5.9109374720e1, 1.5929113202e2, 5.0434271938e1, 3.3871327179e0))
    centre = centre / _polynomial(r, (6.7187563600e1, 7.8757757664e1, 1.7895169469e1, 1.0))
    s = torch.sqrt(-_log(p))
    near = _polynomial(s - 1.6, (1.7023821103e-1, 1.3067284816e0, 2.7568153900e0, 1.4234372777e0))
    near = near / _polynomial(s - 1.6, (1.2021132975e-1, 7.3700164250e-1, 1.0))
    z = torch.where(q <= 0.425, centre, near)
    return torch.where(words > 0x7FFFFFFF, z, -z)
