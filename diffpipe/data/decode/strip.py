"""Strips: images so long and thin that they are cropped before they are enlarged.

157 bytes of PNG can hold 1 x 20,000 pixels. Enlarged whole to a width of 64, these are 82 million pixels, of which a
square of 64 x 64 is kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from diffpipe.resolution import Resolution

_ASPECT = 32
_PIXELS = 1 << 22
_REACH = 3  # pixels that an enlarged one may depend on, to either side, and one to spare


class Window(NamedTuple):
    """The part of a strip's long side to enlarge.

    begin, end: its pixels. size: how many they become. offset: where the kept part begins among those.
    """

    begin: int
    end: int
    size: int
    offset: int


def is_narrow(width: int, height: int, resolution: Resolution) -> bool:
    """Whether an image is narrower for its height than the resolution is, so that its top or bottom is cropped."""
    return width * resolution.height < height * resolution.width


def is_strip(width: int, height: int, resolution: Resolution) -> bool:
    """Whether an image is enlarged to much more than is kept of it: over 4 million pixels, at over 32 to 1.

    Over 32 million, where `strip_window` does not give the bits of the whole.
    """
    narrow = is_narrow(width, height, resolution)
    long, short = (height, width) if narrow else (width, height)
    kept, side = resolution if narrow else reversed(resolution)
    enlarged = side * (long * side // short)
    most = _PIXELS if long * side % short == 0 else 8 * _PIXELS
    return short < side and long * side > _ASPECT * short * kept and enlarged > most


def strip_window(long: int, short: int, side: int, kept: int, start: int) -> Window:
    """The window for the part that begins at `start` on the long side of the enlarged strip, `kept` pixels long.

    side: the short side, enlarged. The window begins where a pixel of the strip and one of the enlarged strip do. So
    the bits are those of the whole strip where its enlarged length, `long * side / short`, is a whole number. Otherwise
    the whole is enlarged by a slightly rounded factor, and the part differs by less than a pixel's shift.
    """
    divisor = math.gcd(short, side)
    period, enlarged = short // divisor, side // divisor  # so many pixels become so many
    margin = -(-_REACH // period)
    first = max(0, start // enlarged - margin)
    last = -(-(start + kept) // enlarged) + margin
    begin, end = first * period, min(long, last * period)
    size = round((end - begin) * side / short)
    return Window(begin, end, size, min(start - first * enlarged, size - kept))
