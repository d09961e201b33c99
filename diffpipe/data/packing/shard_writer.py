"""Samples written into tars: the same samples give the same bytes."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path


class TarWriter:
    """One tar of samples. Owners and times of its members are zero. Use it as a context manager. Raises OSError.

    format: `tarfile.USTAR_FORMAT`, or `tarfile.GNU_FORMAT` for keys that may be longer than 100 characters.
    """

    def __init__(self, path: Path, format: int = tarfile.USTAR_FORMAT):  # noqa: A002 (as tarfile calls it)
        self._tar = tarfile.open(path, "w", format=format)  # noqa: SIM115 (closed by `close`)

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """Append a sample: its members by extension, in this order."""
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))

    def close(self) -> None:
        self._tar.close()


class ShardWriter:
    """The shards of a folder, filled one after the other. samples: how many have been written."""

    def __init__(self, folder: Path, prefix: str, shard_samples: int):
        self.folder, self.prefix, self.shard_samples = folder, prefix, shard_samples
        self.samples = 0
        self._tar: TarWriter | None = None

    def add(self, key: str, members: dict[str, bytes]) -> None:
        if self.samples % self.shard_samples == 0:
            self.close()
            self._tar = TarWriter(self.folder / f"{self.prefix}-{self.samples // self.shard_samples:06d}.tar")
        assert self._tar is not None
        self._tar.add(key, members)
        self.samples += 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()
