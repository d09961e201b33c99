"""The images of a folder, as a source of images to score."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.files import sha256_of


class FolderImages:
    """The first n images (all without n) of a folder's PNG and JPEG files in the order of their names.

    Raises UserError for a missing folder, fewer than n images, unequal sizes, and files that hold no 8-bit image.
    """

    def __init__(self, path: str | Path, n: int | None = None):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"{path}: no such folder; give one that holds PNG or JPEG files")
        files = sorted(p for p in self.path.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg"})
        if not files or len(files) < (n or 0):
            raise UserError(
                f"{path} holds {len(files)} PNG or JPEG images and {n or 'some'} are asked for; give a smaller n"
            )
        self._files = files if n is None else files[:n]
        headers = [self._header(file) for file in self._files]
        for file, (size, _) in zip(self._files, headers, strict=True):
            if size != headers[0][0]:
                raise UserError(f"{file} is {size} and {self._files[0]} is {headers[0][0]}; images need one size")
        # A folder of gray images is read as gray, any other as RGB.
        self._mode = "L" if all(mode in {"1", "L"} for _, mode in headers) else "RGB"

    @property
    def n(self) -> int:
        return len(self._files)

    def describe(self) -> dict[str, Any]:
        """The folder's path and a sha256 over its files' names and contents."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.name}\0{sha256_of(file)}\n".encode())
        return {"folder": str(self.path), "fingerprint": digest.hexdigest()}

    def images(self, indices: range) -> UInt8[Tensor, "b c h w"]:
        return torch.stack([self._read(self._files[i]) for i in indices])

    @staticmethod
    def _header(file: Path) -> tuple[tuple[int, int], str]:
        try:
            with Image.open(file) as image:
                size, mode = image.size, image.mode
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise UserError(f"{file}: cannot read it as an image ({error}); remove or replace it") from error
        if mode.startswith(("I", "F")):
            raise UserError(f"{file}: {mode} pixels have more than 8 bits; convert it to 8-bit gray or RGB")
        return size, mode

    def _read(self, file: Path) -> UInt8[Tensor, "c h w"]:
        try:
            with Image.open(file) as image:
                pixels = np.array(image.convert(self._mode))
        except (OSError, SyntaxError) as error:
            raise UserError(f"{file}: cannot read it as an image ({error}); remove or replace it") from error
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))
