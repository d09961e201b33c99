"""The bytes of one member, read where the index says they lie and held against its crc32."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

from diffpipe.contract import BadSampleError, UserError
from diffpipe.data.index import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.scan import parse_class
from diffpipe.data.table import Sample


class Reader:
    """Reads members by `os.pread`, which has no file position, so forked workers may share what is open.

    At most `open_files` shards are open at a time. A pickled reader opens its own. Not for use by several threads.
    """

    def __init__(self, shard_set: ShardSet, open_files: int = 64):
        self.shard_set = shard_set
        self.open_files = open_files
        self._files: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"shard_set": self.shard_set, "open_files": self.open_files, "_files": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)

    def read(self, shard: int, sample: Sample, extension: str) -> bytes:
        """The member of `sample`. Raises UserError where it is missing, BadSampleError where it is not as indexed."""
        path = self.shard_set.paths[shard]
        member = sample.members.get(extension)
        if member is None:
            raise UserError(f"{path}: {sample.key} has no .{extension} member; pack the shard with one for each sample")
        try:
            data = os.pread(self._file(shard), member.size, member.offset)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
        if len(data) < member.size or zlib.crc32(data) != member.crc32:
            raise BadSampleError(
                f"{path}: {sample.key}.{extension} was changed after indexing (its crc32 differs); restore the shard, "
                f"or run: diffpipe index {Path(path).parent}"
            )
        return data

    def image(self, shard: int, sample: Sample) -> bytes:
        """The encoded image of `sample`, in the first of the image formats that it has."""
        extension = next((e for e in IMAGE_EXTENSIONS if e in sample.members), None)
        if extension is None:
            known = ", ".join(IMAGE_EXTENSIONS)
            raise UserError(
                f"{self.shard_set.paths[shard]}: {sample.key} has no image; each sample needs one of {known}"
            )
        return self.read(shard, sample, extension)

    def label(self, shard: int, sample: Sample) -> int:
        """The class of `sample`, from its `.cls` member."""
        number = parse_class(self.read(shard, sample, "cls"))
        if number is None:
            raise UserError(
                f"{self.shard_set.paths[shard]}: {sample.key}.cls is not an integer ≥ 0; pack integer labels, "
                "or set data.labels=false"
            )
        return number

    def _file(self, shard: int) -> int:
        file = self._files.pop(shard, None)
        if file is None:
            if len(self._files) >= self.open_files:
                os.close(self._files.pop(next(iter(self._files))))
            file = os.open(self.shard_set.paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        self._files[shard] = file  # last in, so the first is the one that was used longest ago
        return file
