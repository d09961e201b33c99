"""Fetch a file once, whole and checked, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.request
from pathlib import Path

from diffpipe.data.remote.rate import LeastRate
from diffpipe.errors import UserError
from diffpipe.files import atomic_file


def download(url: str, path: Path, sha256: str, timeout: float = 60.0) -> None:
    """Fetch `url` to `path`: the file is whole and of this sha256, or it is not there. Raises UserError."""
    digest, length = hashlib.sha256(), 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file, urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310
            pace, began = LeastRate(url), time.monotonic()
            while block := response.read1(1 << 20):  # what has arrived: `read` would wait for all of it
                pace.count(time.monotonic() - began, len(block))
                began = time.monotonic()
                file.write(block)
                digest.update(block)
                length += len(block)
            expected = int(response.headers.get("Content-Length", length))
            if length != expected:
                raise UserError(f"{url}: the download broke off after {length} of {expected} bytes; try again")
            if digest.hexdigest() != sha256:
                raise UserError(f"{url}: the file's sha256 is {digest.hexdigest()}, not {sha256}; it was not kept")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{url}: cannot download it to {path} ({error})") from error
