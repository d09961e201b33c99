"""Shards of latents: `latents.npy` instead of an image in each sample, and `codec.json`, which names the encoder.

Latents are float32 [c h w]. Where a vector-quantized autoencoder encoded them they are codes, int32 [1 1 n].
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32

from diffpipe.data.index.shard_set import IMAGE_EXTENSIONS, ShardSet
from diffpipe.data.remote.storage import MissingError, RemoteFile
from diffpipe.data.remote.urls import is_remote, join, parent, redacted
from diffpipe.errors import BadSampleError, UserError
from diffpipe.files import parse_json, read_regular

LATENTS = "latents.npy"
CODEC = "codec.json"
_LONGEST = 1 << 16  # bytes of that file

Latents = Float32[np.ndarray, "c h w"] | Int32[np.ndarray, "1 1 n"]


def are_latents(shard_set: ShardSet) -> bool:
    """Whether these are shards that `diffpipe encode` wrote."""
    return shard_set.has(LATENTS) and shard_set.lacking(*IMAGE_EXTENSIONS) is not None


def encoder(shard_set: ShardSet) -> str:
    """The sha256 of the checkpoint that encoded the shards. Raises UserError if it is missing or not unique."""
    checkpoints: set[str] = set()
    remote = {redacted(s.remote.file.url): s.remote.file.url for s in shard_set.shards if s.remote is not None}
    local = {str(Path(path).parent / CODEC) for path in shard_set.paths if path not in remote}
    for path in sorted(local | {join(parent(url), CODEC) for url in remote.values()}):
        try:
            checkpoints.add(str(parse_json(_read(path))["sha256"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError) and not isinstance(error, MissingError):
                raise
            name = redacted(path) if is_remote(path) else path
            raise UserError(
                f"{name}: it does not name the checkpoint that encoded the latents; write them with: diffpipe encode"
            ) from error
    if len(checkpoints) > 1:
        raise UserError(f"{shard_set.paths[0]} and others: encoded by several checkpoints; use the shards of one")
    return checkpoints.pop()


def _read(path: str) -> bytes:
    if not is_remote(path):
        return read_regular(Path(path), follow_links=True, limit=_LONGEST)
    with RemoteFile(path) as file:
        data = b""
        while len(data) <= _LONGEST and (block := file.read(_LONGEST)):
            data += block
    return data


def to_bytes(latents: Latents) -> bytes:
    """The content of a `latents.npy` member."""
    buffer = io.BytesIO()
    np.save(buffer, latents, allow_pickle=False)
    return buffer.getvalue()


def from_bytes(data: bytes, where: str) -> Latents:
    """The latents in a `latents.npy` member. Raises BadSampleError, which begins with `where`."""
    try:
        latents = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy evaluates the header as Python: MemoryError, TokenError, …
        raise BadSampleError(
            f"{where}: not a readable .npy file ({str(error)[:200]}); encode the shard again"
        ) from error
    codes = latents.dtype == np.int32 and latents.shape[:-1] == (1, 1)
    if not codes and (latents.dtype != np.float32 or latents.ndim != 3):
        raise BadSampleError(
            f"{where}: neither float32 [c h w] nor int32 [1 1 n], as diffpipe encode writes; encode the shard again"
        )
    return latents
