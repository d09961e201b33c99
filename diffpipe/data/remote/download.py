"""The download of a version of a remote file into a local one, which an earlier process may have begun."""

from __future__ import annotations

import hashlib
import json
import os
from typing import NamedTuple

from diffpipe.data.remote.storage import RemoteFile
from diffpipe.data.remote.urls import parent, redacted
from diffpipe.errors import UserError, shell_command
from diffpipe.plural import plural

_CHUNK = 1 << 18
_INDEX = ".index"


class CachedFile(NamedTuple):
    """A version of a remote file. sha256: of its bytes; of an index, whose hash is not known, its etag."""

    url: str
    bytes: int
    sha256: str
    index: bool = False

    @property
    def name(self) -> str:
        digest = hashlib.sha256(json.dumps([self.url, self.bytes, self.sha256]).encode()).hexdigest()
        return digest + (_INDEX if self.index else "")


class ChangedError(UserError):
    """The server's file is not the one that was indexed."""


def download(file: CachedFile, part: int, least_rate: float | None = None) -> str:
    """Download the missing bytes into the open file `part`, and return the sha256 of all.

    least_rate: at which the server has to send, see `LeastRate`. Raises ChangedError where the index has another file.
    """
    present = os.fstat(part).st_size
    if file.index or present > file.bytes:  # the beginning of an index may be of another version
        os.truncate(part, 0)
        present = 0
    digest = _complete(file, part, least_rate)
    if present and digest != file.sha256 and not file.index:
        os.truncate(part, 0)  # the bytes that an earlier process left may be the wrong ones
        digest = _complete(file, part, least_rate)
    if digest != file.sha256 and not file.index:
        raise _changed(file, "its sha256 is another")
    os.fsync(part)
    return digest


def _complete(file: CachedFile, part: int, least_rate: float | None) -> str:
    """Append the missing bytes. Returns the sha256 of the whole."""
    digest, length = hashlib.sha256(), 0
    with os.fdopen(part, "r+b", closefd=False) as local:
        local.seek(0)
        while block := local.read(_CHUNK):
            digest.update(block)
            length += len(block)
        if length < file.bytes:
            with RemoteFile(file.url, length, least_rate) as remote:
                if remote.size not in (None, file.bytes):
                    raise _changed(file, f"it has {plural(remote.size, 'byte')}, not {file.bytes}")
                if file.index and remote.etag != file.sha256:
                    raise _changed(file, "it changed a moment ago")
                while length < file.bytes and (block := remote.read(_CHUNK)):
                    local.write(block)
                    digest.update(block)
                    length += len(block)
    if length != file.bytes:
        raise _changed(file, f"it has {plural(length, 'byte')}, not {file.bytes}")
    return digest.hexdigest()


def _changed(file: CachedFile, what: str) -> ChangedError:
    return ChangedError(
        f"{redacted(file.url)}: not the file that was indexed: {what}; restore it there, or, where it was changed on "
        f"purpose, run: {shell_command('diffpipe', 'index', redacted(parent(file.url)))}"
    )
