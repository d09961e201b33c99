"""Samples of any source as one zip archive, in the form of StyleGAN's and EDM's dataset_tool.

`00000/img00000000.png` … in the order of the source, and `dataset.json` with the labels. Source:
https://github.com/NVlabs/edm/blob/main/dataset_tool.py
"""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffpipe.data.index.scan import parse_class
from diffpipe.data.packing.choose import choose
from diffpipe.data.packing.dataset_json import NAME, dataset_json
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.source import Source
from diffpipe.data.packing.write import BadSampleLimit, encoded
from diffpipe.errors import UserError
from diffpipe.files import atomic_file
from diffpipe.plural import plural

_CHUNK = 1000  # images in a folder


class EdmZip:
    """A zip archive that is filled one image after the other. Raises UserError for an image that does not fit it."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        self.form: tuple[tuple[int, int], str] | None = None  # the size and mode of every image
        self.labels: list[tuple[str, int | None]] = []

    def add(self, members: dict[str, bytes], where: str) -> None:
        """Add a sample: a PNG, and its class where it has one."""
        if "png" not in members:
            raise UserError(f"{where}: has no image; pack images")
        with Image.open(io.BytesIO(members["png"])) as image:
            form = image.size, image.mode
        self.form = self.form or form
        (width, height), _ = form
        if width != height or form != self.form:
            raise UserError(
                f"{where}: {width} x {height} pixels in mode {form[1]}, and the first image has {self.form[0][0]} x "
                f"{self.form[0][1]} in mode {self.form[1]}; dataset_tool's archives hold square images of one "
                "size, all grey or all in colour: give --resolution, or pack the others alone"
            )
        name = f"{len(self.labels) // _CHUNK:05d}/img{len(self.labels):08d}.png"
        self._write(name, members["png"])
        self.labels.append((name, parse_class(members["cls"]) if "cls" in members else None))

    def finish(self) -> None:
        """Write the labels: none, where an image has none."""
        labels = [(name, label) for name, label in self.labels if label is not None]
        self._write(NAME, dataset_json(labels if len(labels) == len(self.labels) else None))

    def _write(self, name: str, data: bytes) -> None:
        self.archive.writestr(zipfile.ZipInfo(name), data)  # uncompressed, of 1980: the same input gives the same bytes


def pack_edm_zip(
    source: Source,
    out: Path,
    *,
    encoding: Encoding = Encoding(),  # noqa: B008 (it cannot change)
    only: Collection[int] = (),
    leave_out: Collection[int] = (),
    per_class: int | None = None,
    seed: int = 0,
    workers: int = 0,
    max_bad_samples: int = 0,
) -> tuple[str, list[str]]:
    """Write the archive `out`, which appears whole or not at all. Every image becomes a PNG. Arguments: as of `pack`.

    Returns a line on the archive, and the reason for each bad sample that was skipped. Raises UserError.
    """
    if encoding.format not in ("keep", "png"):
        raise UserError(f"--format {encoding.format}: the archive holds PNGs; leave it out")
    if encoding.resolution is not None and not encoding.resolution.is_square:
        raise UserError(f"--resolution {encoding.resolution}: the archive holds square images; give one side")
    if out.exists():
        raise UserError(f"{out} exists already; remove it or give another name")
    indices = np.sort(choose(source, only, leave_out, per_class, seed))
    limit = BadSampleLimit(max_bad_samples)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out) as file, zipfile.ZipFile(file, "w") as archive:
            edm = EdmZip(archive)
            with contextlib.closing(encoded(source, replace(encoding, format="png"), indices, workers)) as samples:
                for i, members in samples:
                    if isinstance(members, str):
                        limit.count(members)
                    else:
                        edm.add(members, f"image {i} of the source")
            if not edm.labels:
                raise UserError("no samples are left to pack; give some that are good")
            edm.finish()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free some space or change the rights") from error
    assert edm.form is not None
    (width, height), mode = edm.form
    return f"{out}: {plural(len(edm.labels), 'image')} of {width} x {height} pixels, mode {mode}", limit.reasons
