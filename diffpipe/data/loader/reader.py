"""The bytes of one member, read where the index says they lie and held against its crc32."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable
from typing import Any

from diffpipe.data.index.scan import parse_class
from diffpipe.data.index.shard_index import Sample
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.remote.cache import use
from diffpipe.data.remote.prefetch import Ahead
from diffpipe.errors import BadSampleError, UserError
from diffpipe.files import open_regular

_TIDY = 30.0


class Reader:
    """Reads members by `os.pread`, which has no file position, so forked workers may share what is open.

    At most `open_files` shards are open at a time. A remote one is read in its cache: opening it fetches it. A pickled
    reader opens its own. Not for use by several threads.
    """

    def __init__(self, shard_set: ShardSet, open_files: int = 64):
        self.shard_set = shard_set
        self.open_files = open_files
        self.remote = any(shard.remote is not None for shard in shard_set.shards)
        self._files: dict[int, int] = {}
        self._read: set[int] = set()
        self._tidied = time.monotonic()
        self._ahead: Ahead | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.shard_set, self.open_files)

    def __del__(self) -> None:
        if os is None:  # the interpreter is ending, and the files with it
            return
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)
        ahead = self.__dict__.get("_ahead")
        if ahead is not None:
            ahead.close()

    def expect(self, shards: Iterable[int], due: bool) -> None:
        """Have the remote ones of these shards fetched in the background, at once or after those that are due."""
        wanted = [self.shard_set.shards[shard].remote for shard in dict.fromkeys(shards) if shard not in self._files]
        remotes = [remote for remote in wanted if remote is not None]
        if not remotes:
            return
        if self._ahead is None or self._ahead.pid != os.getpid():  # threads do not outlive a fork
            self._ahead = Ahead()
        self._ahead.ask(remotes, due)

    def read(self, shard: int, sample: Sample, extension: str) -> bytes:
        """The member of `sample`. Raises UserError where it is missing, BadSampleError where it is not as indexed."""
        path = self.shard_set.paths[shard]
        member = sample.members.get(extension)
        if member is None:
            raise UserError(f"{path}: {sample.key} has no .{extension} member; pack the shard with one for each sample")
        remote = self.shard_set.shards[shard].remote
        data = self.at(shard, *member)
        if data is None and remote is not None:  # what was whole when it was fetched has been damaged since
            os.close(self._files.pop(shard))
            remote.cache.drop(remote.item)
            data = self.at(shard, *member)
        if data is None:
            raise BadSampleError(
                f"{path}: {sample.key}.{extension} was changed after indexing (its crc32 differs); restore the shard, "
                f"or run: diffpipe index {path.rpartition('/')[0] or '.'}"
            )
        return data

    def at(self, shard: int, offset: int, size: int, crc32: int) -> bytes | None:
        """The bytes of a member, or None where they are not those that were indexed."""
        try:
            data = os.pread(self._file(shard), size, offset)
        except OSError as error:
            path = self.shard_set.paths[shard]
            raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
        return data if len(data) == size and zlib.crc32(data) == crc32 else None

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
        remote = self.shard_set.shards[shard].remote
        file = self._files.pop(shard, None)
        if remote is not None:
            if file is None or time.monotonic() > self._tidied + _TIDY:
                self._tidy()
            self._read.add(shard)
        if file is None:
            if len(self._files) >= self.open_files:
                os.close(self._files.pop(next(iter(self._files))))
            path = self.shard_set.paths[shard]
            file = open_regular(path, follow_links=True) if remote is None else remote.open()
        self._files[shard] = file  # last in, so the first is the one that was used longest ago
        return file

    def _tidy(self) -> None:
        """Tell the cache which of its files were read of late, and let go of those that made room for others."""
        for shard, file in list(self._files.items()):
            if self.shard_set.shards[shard].remote is None:
                continue
            if os.fstat(file).st_nlink == 0:
                os.close(self._files.pop(shard))
            elif shard in self._read:
                use(file)
        self._read.clear()
        self._tidied = time.monotonic()
