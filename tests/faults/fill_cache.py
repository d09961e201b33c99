"""`python -m tests.faults.fill_cache CACHE URL BYTES SHA256 …`: open files through a cache and print their hashes."""

from __future__ import annotations

import hashlib
import os
import sys

from diffpipe.data.remote.cache import ShardCache
from diffpipe.data.remote.download import CachedFile


def main(folder: str, *words: str) -> None:
    cache = ShardCache(folder)
    for url, size, sha256 in zip(words[::3], words[1::3], words[2::3], strict=True):
        with os.fdopen(cache.open(CachedFile(url, int(size), sha256)), "rb") as file:
            print(hashlib.file_digest(file, "sha256").hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
