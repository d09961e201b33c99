"""Types of command-line arguments: each turns a word into a value, or says what is wrong with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.files import url_scheme, user_path
from diffpipe.resolution import MAX_SIDE, Resolution, parse_resolution


def local_path(text: str) -> Path:
    """A path on this machine."""
    if scheme := url_scheme(text):
        raise argparse.ArgumentTypeError(
            f"an address of {scheme} is no path on this machine; give a file or folder here"
        )
    return user_path(text)


def natural(text: str) -> int:
    """An integer, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """An integer, 1 or more."""
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def resolution(text: str) -> Resolution:
    """The height and width of images: a side, such as 64, or 48x64."""
    height, x, width = text.partition("x")
    try:
        if not (height.isdecimal() and (not x or width.isdecimal())):
            raise ValueError
        return parse_resolution([int(height), int(width or height)])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is no size in pixels; give one side, such as 64, or height x width, such as 48x64, each from 1 to "
            f"{MAX_SIDE}"
        ) from None


def quality(text: str) -> int:
    """The quality of a JPEG or WebP, 1 to 100."""
    value = natural(text)
    if not 1 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{value} is not 1 to 100")
    return value


def fraction(text: str) -> float:
    """A number between 0 and 1, both excluded."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def labels(text: str) -> list[int]:
    """Labels, such as 0,1,2."""
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of labels; they are numbers, such as 0,1,2")
    return [int(word) for word in words]


def words(text: str) -> list[str]:
    """Words separated by commas."""
    return text.split(",") if text else []


def colour(text: str) -> str:
    """An opaque colour, as PIL names it."""
    from PIL import ImageColor

    try:
        if len(ImageColor.getrgb(text)) == 3:
            return text
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no opaque colour; give a name such as black, or #rrggbb")
