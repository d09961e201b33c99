"""Strips: images so long and thin that they are cropped before they are enlarged.

157 bytes of PNG can hold 1 x 20,000 pixels. Enlarged whole to a width of 64, these are 82 million pixels, of which a
square of 64 x 64 is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

_ASPECT = 32
_PIXELS = 1 << 22
_REACH = 3  # pixels that an enlarged one may depend on, to either side, and one to spare


class Window(NamedTuple):
    """The part of a strip's long side to enlarge.

    begin, end: its pixels. size: how many they become. offset: where the square begins among those.
    """

    begin: int
    end: int
    size: int
    offset: int


def is_strip(width: int, height: int, resolution: int) -> bool:
    """Whether an image is enlarged to much more than is kept of it: over 4 million pixels, at over 32 to 1.

    Over 32 million, where `strip_window` does not give the bits of the whole.
    """
    short, long = sorted((width, height))
    enlarged = resolution * (long * resolution // short)
    most = _PIXELS if long * resolution % short == 0 else 8 * _PIXELS
    return short < resolution and long > _ASPECT * short and enlarged > most


def strip_window(long: int, short: int, resolution: int, start: int) -> Window:
    """The window for the square that begins at `start` on the long side of the enlarged strip.

    It begins where a pixel of the strip and one of the enlarged strip do. So the bits are those of the whole strip
    where its enlarged length, `long * resolution / short`, is a whole number. Otherwise the whole is enlarged by a
    slightly rounded factor, and the square differs by less than a pixel's shift.
    """
    divisor = math.gcd(short, resolution)
    period, enlarged = short // divisor, resolution // divisor  # so many pixels become so many
    margin = -(-_REACH // period)
    first = max(0, start // enlarged - margin)
    last = -(-(start + resolution) // enlarged) + margin
    begin, end = first * period, min(long, last * period)
    size = round((end - begin) * resolution / short)
    return Window(begin, end, size, min(start - first * enlarged, size - resolution))
