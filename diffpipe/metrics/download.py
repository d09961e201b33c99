"""Fetch a file once, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from pathlib import Path

from diffpipe.errors import UserError


def download(url: str, path: Path, sha256: str, timeout: float = 60.0) -> None:
    """Fetch `url` to `path`: the file is whole and of this sha256, or it is not there. Raises UserError."""
    digest, length = hashlib.sha256(), 0
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file, urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
                length += len(block)
            expected = int(response.headers.get("Content-Length", length))
            file.flush()
            os.fsync(file.fileno())
        if length != expected:
            raise UserError(f"{url}: the download broke off after {length} of {expected} bytes; try again")
        if digest.hexdigest() != sha256:
            raise UserError(f"{url}: the file's sha256 is {digest.hexdigest()}, not {sha256}; it was not kept")
        Path(partial).replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: cannot download it to {path} ({error})") from error
    finally:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
