"""Shards of latents: a member `latents.npy` instead of an image, and `codec.json`, which says who encoded them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.remote.storage import MissingError, RemoteFile
from diffpipe.data.remote.urls import is_remote, join, parent, redacted
from diffpipe.errors import BadSampleError, UserError

LATENTS = "latents.npy"
CODEC = "codec.json"


def are_latents(shard_set: ShardSet) -> bool:
    """Whether these are shards that `diffpipe encode` wrote."""
    return shard_set.has(LATENTS) and shard_set.lacking(*IMAGE_EXTENSIONS) is not None


def encoder(shard_set: ShardSet) -> str:
    """The sha256 of the checkpoint that encoded the shards. Raises UserError where they do not say, or not the same."""
    found: set[str] = set()
    remote = {redacted(s.remote.file.url): s.remote.file.url for s in shard_set.shards if s.remote is not None}
    places = {str(Path(path).parent / CODEC) for path in shard_set.paths if path not in remote}
    for place in sorted(places | {join(parent(url), CODEC) for url in remote.values()}):
        try:
            found.add(str(json.loads(_text(place))["sha256"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError) and not isinstance(error, MissingError):
                raise
            name = redacted(place) if is_remote(place) else place
            raise UserError(
                f"{name}: it does not say which checkpoint made the latents beside it; write them with: diffpipe encode"
            ) from error
    if len(found) > 1:
        raise UserError(f"{shard_set.paths[0]} and others: encoded by several checkpoints; use the shards of one")
    return found.pop()


def _text(place: str) -> str | bytes:
    if not is_remote(place):
        return Path(place).read_text(encoding="utf-8")
    with RemoteFile(place) as file:
        return file.readall()


def to_bytes(latents: Float32[np.ndarray, "c h w"]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, latents, allow_pickle=False)
    return buffer.getvalue()


def from_bytes(data: bytes, where: str) -> Float32[np.ndarray, "c h w"]:
    """The inverse of `to_bytes`. Raises BadSampleError that begins with `where`."""
    try:
        latents = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadSampleError(f"{where}: not a readable .npy file ({error}); encode the shard again") from error
    if latents.dtype != np.float32 or latents.ndim != 3:
        raise BadSampleError(f"{where}: not float32 [c h w], as diffpipe encode writes; encode the shard again")
    return latents
