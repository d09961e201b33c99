"""The bytes of single members, read at the offset that the index gives and checked against its crc32."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Iterable
from typing import Any

from diffpipe.data.index.scan import parse_class
from diffpipe.data.index.shard_index import Sample
from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.remote.cache import mark_used
from diffpipe.data.remote.prefetch import Prefetcher
from diffpipe.errors import BadSampleError, UserError, shell_command
from diffpipe.files import open_regular

_TIDY_EVERY = 30.0  # seconds


class Reader:
    """Members read by `os.pread`, which needs no file position: forked workers may share the open files.

    At most `open_files` shards are open at a time. A remote shard is read in its cache, and opening it fetches it. A
    pickled reader opens its own files. Not for use by several threads.
    """

    def __init__(self, shard_set: ShardSet, open_files: int = 64):
        self.shard_set = shard_set
        self.open_files = open_files
        self.remote = any(shard.remote is not None for shard in shard_set.shards)
        self._files: dict[int, int] = {}  # descriptors by shard; the least recently used first
        self._used: set[int] = set()  # remote shards that were read since the last tidying
        self._tidied = time.monotonic()
        self._prefetcher: Prefetcher | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Reader, (self.shard_set, self.open_files)

    def __del__(self) -> None:
        if os is None:  # the interpreter is shutting down and closes the files itself
            return
        for file in self.__dict__.get("_files", {}).values():
            os.close(file)
        prefetcher = self.__dict__.get("_prefetcher")
        if prefetcher is not None:
            prefetcher.close()

    def prefetch(self, shards: Iterable[int], due: bool) -> None:
        """Fetch the remote ones of these shards in the background; those that are due come first."""
        closed = [self.shard_set.shards[shard].remote for shard in dict.fromkeys(shards) if shard not in self._files]
        remotes = [remote for remote in closed if remote is not None]
        if not remotes:
            return
        if self._prefetcher is None or self._prefetcher.pid != os.getpid():  # threads do not survive a fork
            self._prefetcher = Prefetcher()
        self._prefetcher.request(remotes, due)

    def read(self, shard: int, sample: Sample, extension: str) -> bytes:
        """A member of `sample`. Raises UserError where it is missing, BadSampleError where its bytes have changed."""
        path = self.shard_set.paths[shard]
        member = sample.members.get(extension)
        if member is None:
            raise UserError(f"{path}: {sample.key} has no .{extension} member; pack the shard with one for each sample")
        remote = self.shard_set.shards[shard].remote
        data = self.at(shard, *member)
        if data is None and remote is not None:  # damaged in the cache, since it was whole when it was fetched
            os.close(self._files.pop(shard))
            remote.cache.drop(remote.file)
            data = self.at(shard, *member)
        if data is None:
            raise BadSampleError(
                f"{path}: {sample.key}.{extension} was changed after indexing (its crc32 differs); restore the shard, "
                f"or run: {shell_command('diffpipe', 'index', path.rpartition('/')[0] or '.')}"
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
        """The encoded image of `sample`, in the first of `IMAGE_EXTENSIONS` that it has."""
        extension = next((e for e in IMAGE_EXTENSIONS if e in sample.members), None)
        if extension is None:
            known = ", ".join(IMAGE_EXTENSIONS)
            raise UserError(
                f"{self.shard_set.paths[shard]}: {sample.key} has no image; each sample needs one of {known}"
            )
        return self.read(shard, sample, extension)

    def label(self, shard: int, sample: Sample) -> int:
        """The class of `sample`, from its `.cls` member."""
        label = parse_class(self.read(shard, sample, "cls"))
        if label is None:
            raise UserError(
                f"{self.shard_set.paths[shard]}: {sample.key}.cls is not an integer ≥ 0; pack integer labels, "
                "or set data.labels=false"
            )
        return label

    def _file(self, shard: int) -> int:
        """The descriptor of a shard, which is opened where it is not open."""
        remote = self.shard_set.shards[shard].remote
        file = self._files.pop(shard, None)
        if remote is not None:
            if file is None or time.monotonic() > self._tidied + _TIDY_EVERY:
                self._tidy()
            self._used.add(shard)
        if file is None:
            if len(self._files) >= self.open_files:
                os.close(self._files.pop(next(iter(self._files))))
            path = self.shard_set.paths[shard]
            file = open_regular(path, follow_links=True) if remote is None else remote.open()
        self._files[shard] = file
        return file

    def _tidy(self) -> None:
        """Tell the cache which of its files were read lately, and close those that it has removed to make room."""
        for shard, file in list(self._files.items()):
            if self.shard_set.shards[shard].remote is None:
                continue
            if os.fstat(file).st_nlink == 0:
                os.close(self._files.pop(shard))
            elif shard in self._used:
                mark_used(file)
        self._used.clear()
        self._tidied = time.monotonic()
