"""Pickles of plain data and numpy arrays, read without running anything that they name.

A pickle is a program that may call whatever can be imported. Here its few permitted names are mapped to classes of this
module, which record the arguments that numpy would get. So not even numpy's own unpickling is trusted.
"""

from __future__ import annotations

import io
import itertools
import math
import pickle
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffpipe.errors import UserError
from diffpipe.plural import plural

_MOST_VALUES = 1_000_000
_NUMBERS = re.compile(r"[biu][1248]")
_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AssertionError,
    struct.error,
    MemoryError,
    RecursionError,
)


def load_plain(data: bytes, where: str) -> Any:
    """The content of a pickle: dicts, lists, tuples, numbers, bytes, text, and numpy arrays of integers.

    Strings of Python 2 become bytes. Raises UserError, which begins with `where`, before anything is called, if the
    pickle names a function or class that numpy arrays do not need.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="bytes").load(), itertools.count())
    except _ForbiddenError as error:
        raise UserError(
            f"{where}: its pickle would call {error}, which plain data does not need; nothing was run: remove the "
            "file, and download it from its original publisher"
        ) from error
    except _BROKEN as error:
        raise UserError(f"{where}: not a pickle of plain data and arrays ({error}); download it again") from error


class _ForbiddenError(Exception):
    """The pickle names something that is not permitted."""


class _Type:
    """A numpy dtype: its code, such as u1, and its byte order."""

    def __init__(self, code: str | bytes, *_: Any):
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = _text(state[1])

    def numpy(self) -> np.dtype:
        if not _NUMBERS.fullmatch(self.code) or self.order not in "<>|=":
            raise ValueError(f"an array of {self.order}{self.code}")
        return np.dtype(self.order + self.code)


class _Array:
    """A numpy array, whose content is in its state."""

    def __init__(self, *_: Any):
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class _Buffer(_Array):
    """A numpy array as protocol 5 writes it."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any):
        super().__init__()
        self.value = _array(data, dtype, shape, order)


class _Nothing:
    """`numpy.ndarray`, which the pickle names but does not call."""


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _Type):
        raise TypeError("an array of something other than numbers")
    kind = dtype.numpy()
    if math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} in {plural(len(data), 'byte')}")
    return np.frombuffer(bytes(data), kind).reshape(shape, order="F" if _text(order) == "F" else "C")


def _bytes(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them in protocol 2: `_codecs.encode(text, "latin1")`."""
    if _text(encoding) not in ("latin1", "latin-1"):
        raise ValueError(f"bytes as {encoding}")
    return text.encode("latin-1")


_PERMITTED = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Nothing,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _Buffer,
    ("numpy._core.numeric", "_frombuffer"): _Buffer,
}


class _Unpickler(pickle._Unpickler):
    """Python's own implementation: that in C makes room for as many values as a pickle of ten bytes says."""

    def find_class(self, module: str, name: str) -> Any:
        permitted = _PERMITTED.get((module, name))
        if permitted is None:
            raise _ForbiddenError(f"{module}.{name}")
        return permitted


def _plain(value: Any, count: Iterator[int]) -> Any:
    """The value with numpy arrays in place of the recorded ones.

    count: numbers the values, since a list that is in several others is copied for each. Raises TypeError for other
    objects, and ValueError for too many.
    """
    if next(count) >= _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    if isinstance(value, dict):
        return {_plain(key, count): _plain(entry, count) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(entry, count) for entry in value)
    if isinstance(value, _Array):
        return value.value
    if value is None or isinstance(value, bytes | str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__}")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
