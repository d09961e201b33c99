"""The encoded images of anything that `pack` reads, by index, without labels: for scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from diffpipe.data.decode.image_files import IMAGE_SUFFIXES
from diffpipe.data.decode.stack import png_bytes
from diffpipe.data.packing.folder import image_paths
from diffpipe.data.packing.open_source import open_source
from diffpipe.data.packing.source import Source
from diffpipe.data.packing.tree import Folder, Zip
from diffpipe.errors import UserError
from diffpipe.files import open_regular

_ANY_RATIO = 1 << 30  # bytes of an array that may be compressed to however few
_MOST_RATIO = 100


@runtime_checkable
class ImageFiles(Protocol):
    """Encoded images by index."""

    def __len__(self) -> int: ...

    def encoded(self, i: int) -> tuple[str, bytes]:
        """The name of image i in messages, and its bytes. Raises UserError where it cannot be read."""
        ...

    def name(self, i: int) -> str:
        """The name of image i in the folder or archive, which does not depend on where that lies."""
        ...


def open_image_files(place: str) -> ImageFiles:
    """The images of a folder (with all folders in it), a zip archive, an npz file, or another source of `pack`.

    Raises UserError where there are none.
    """
    path = Path(place)
    if path.is_dir():
        files = _open_folder(place)
    elif path.suffix.lower() == ".zip":
        files = _TreeFiles(Zip(path))
    elif path.suffix.lower() == ".npz":
        files = _ArrayFiles(place)
    else:
        files = _SourceFiles(place, open_source(place))
    if not len(files):
        raise UserError(f"{place}: it has no images; give a folder or an archive of {', '.join(IMAGE_SUFFIXES)}")
    return files


def _open_folder(place: str) -> ImageFiles:
    files = _TreeFiles(Folder(Path(place)))
    if len(files):
        return files
    try:
        return _SourceFiles(place, open_source(place))  # a folder of idx files, a saved dataset
    except UserError:
        return files


class _TreeFiles:
    """The images among the files of a folder or a zip archive, sorted by the parts of their paths."""

    def __init__(self, tree: Folder | Zip):
        self._tree, self._paths = tree, image_paths(tree)

    def __len__(self) -> int:
        return len(self._paths)

    def encoded(self, i: int) -> tuple[str, bytes]:
        return self._tree.where(self._paths[i]), self._tree.read(self._paths[i])

    def name(self, i: int) -> str:
        return self._paths[i]


class _SourceFiles:
    """The images of a source, in its order."""

    def __init__(self, place: str, source: Source):
        self._place, self._source = place, source

    def __len__(self) -> int:
        return len(self._source)

    def encoded(self, i: int) -> tuple[str, bytes]:
        item = self._source.item(i)
        if item.image is None:
            raise UserError(f"{item.where}: it has no image; give images")
        return item.where, item.image if isinstance(item.image, bytes) else png_bytes(item.image)

    def name(self, i: int) -> str:
        return str(i)


class _ArrayFiles:
    """The pixels in an npz file: one array uint8 [n h w] or [n h w c] of 1 or 3 channels, as ADM's evaluations have."""

    def __init__(self, place: str):
        self._place = place
        self._array = _pixels(place)

    def __len__(self) -> int:
        return len(self._array)

    def encoded(self, i: int) -> tuple[str, bytes]:
        return f"{self._place}: image {i}", png_bytes(self._array[i])

    def name(self, i: int) -> str:
        return str(i)


def _pixels(place: str) -> UInt8[np.ndarray, "n h w *c"]:
    try:
        with os.fdopen(open_regular(place, follow_links=True), "rb") as file:
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            names: Sequence[str] = arrays.files
            images = [name for name in names if name in ("arr_0", "images") or len(names) == 1]
            array = _array(arrays, images[0]) if images else None
    except Exception as error:  # numpy evaluates a header as Python: OverflowError, TokenError, MemoryError, …
        raise UserError(
            f"{place}: not a readable npz file ({str(error)[:200]}); write it again with numpy.savez"
        ) from error
    if array is None:
        raise UserError(
            f"{place}: it holds {', '.join(names)[:200] or 'no arrays'} and no images; statistics are not enough, "
            "because scores need the images themselves: give a folder, an archive or shards of them"
        )
    known = array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3))
    if array.dtype != np.uint8 or not known or 0 in array.shape[1:]:
        raise UserError(
            f"{place}: its {images[0]} is {array.dtype} {list(array.shape)}; images are uint8 [n, h, w] or [n, h, w, 3]"
        )
    return array


def _array(arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of the file. Raises ValueError where it is none, and where a few bytes hold gigabytes."""
    for info in arrays.zip.infolist() if arrays.zip is not None else ():
        if info.file_size > max(_ANY_RATIO, _MOST_RATIO * info.compress_size):
            raise ValueError(f"{info.compress_size} bytes hold {info.file_size}, more than images compress to")
    array = arrays[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    return array
