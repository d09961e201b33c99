"""The checks of an index that somebody else may have written: each value is one that a scan could have found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffpipe.data.remote.urls import is_remote

MAX_EXTENSIONS = 256
_MAX_BYTES = 1 << 62
_MAX_READ = 0x7FFFF000  # bytes that Linux reads at once
_MAX_CLASSES = 10**18
_SHA256 = re.compile("[0-9a-f]{64}")
_ARRAYS = {
    "key.bytes": np.uint8,
    "key.end": np.int64,
    "sample.first_member": np.int64,
    "member.extension": np.uint8,
    "member.offset": np.int64,
    "member.size": np.int64,
    "member.crc32": np.uint32,
}
_CHUNK = 1 << 16


def check_header(header: Any) -> None:
    """Raise ValueError unless this is the header of an index, of whatever version: see `ShardIndex`."""
    if not isinstance(header, dict):
        raise ValueError("its header is not a mapping")
    extensions: Any = header.get("extensions")
    classes, shards, base = header.get("classes"), header.get("shards"), header.get("base")
    if not _are_names(extensions) or len(extensions) > MAX_EXTENSIONS:
        raise ValueError("its extensions are not different words")
    if classes is not None and (not isinstance(classes, list) or not all(isinstance(name, str) for name in classes)):
        raise ValueError("its classes are not words")
    if base is not None and not (isinstance(base, str) and is_remote(base)):
        raise ValueError("its base is not a URL")
    if not isinstance(shards, list) or not _are_names([_name(shard) for shard in shards]):
        raise ValueError("its shards do not have different names")
    for shard in shards:
        wrong = _wrong_field(shard, extensions, _MAX_CLASSES if classes is None else len(classes))
        if wrong is not None:
            raise ValueError(f"{wrong} of the shard {shard['name'][:40]!r} is not possible")


def check_arrays(arrays: Mapping[str, np.ndarray], header: dict[str, Any]) -> None:
    """Raise ValueError unless the arrays are those of an index with this header, which `check_header` has passed."""
    dtypes = {name: array.dtype.type for name, array in arrays.items()}
    if dtypes != _ARRAYS:
        name = next(name for name in sorted(_ARRAYS | dtypes) if dtypes.get(name) != _ARRAYS.get(name))
        raise ValueError(f"its array {name[:40]!r} is missing, unknown, or not of the right type")
    samples = sum(shard["samples"] for shard in header["shards"])
    members = sum(sum(shard["members"].values()) for shard in header["shards"])
    lengths = {"key.end": samples, "sample.first_member": samples + 1}
    lengths |= {name: members for name in _ARRAYS if name.startswith("member.")}
    if any(len(arrays[name]) != length for name, length in lengths.items()):
        raise ValueError("the lengths of its arrays do not match")
    _check_ends("key.end", arrays["key.end"], 0, len(arrays["key.bytes"]))
    first = arrays["sample.first_member"]
    if first[0] != 0:
        raise ValueError("its first sample does not have the first member")
    _check_ends("sample.first_member", first[1:], 1, members)
    for start in range(0, members, _CHUNK):
        if int(arrays["member.extension"][start : start + _CHUNK].max()) >= len(header["extensions"]):
            raise ValueError("a member has an unknown extension")
    _check_locations(arrays, header)


def _are_names(words: Any) -> bool:
    """Whether these are different words that are not empty."""
    return isinstance(words, list) and all(isinstance(w, str) and w for w in words) and len(set(words)) == len(words)


def _name(shard: Any) -> Any:
    """The name of a shard, if it is one of a file in a folder."""
    name = shard.get("name") if isinstance(shard, dict) else None
    return name if isinstance(name, str) and name not in (".", "..") and not set(name) & set("/\0") else None


def _wrong_field(shard: dict[str, Any], extensions: list[str], classes: int) -> str | None:
    """The first field of a shard that has an impossible value, or None."""
    samples: Any = shard.get("samples")
    members: Any = shard.get("members")
    sha256, count = shard.get("sha256"), shard.get("classes_count")
    if not _is_count(shard.get("bytes"), _MAX_BYTES):
        return "bytes"
    if not _is_count(samples, _MAX_BYTES):
        return "samples"
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        return "sha256"
    if not isinstance(members, dict) or not members.keys() <= set(extensions):
        return "members"
    if not all(_is_count(n, samples) for n in members.values()):
        return "members"
    known = "classes_count" in shard and (count is None or _is_count(count, classes))
    return None if known else "classes_count"


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _check_ends(name: str, ends: np.ndarray, least: int, total: int) -> None:
    """Raise ValueError unless the ends of all samples rise to `total`, by `least` or more from one to the next."""
    before = 0
    for start in range(0, len(ends), _CHUNK):
        chunk = ends[start : start + _CHUNK]
        if int(chunk.min()) < 0 or int(chunk.max()) > total or int(np.diff(chunk, prepend=before).min()) < least:
            raise ValueError(f"{name} does not rise from sample to sample")
        before = chunk[-1]
    if before != total:
        raise ValueError(f"{name} does not end where its samples do")


def _check_locations(arrays: Mapping[str, np.ndarray], header: dict[str, Any]) -> None:
    """Raise ValueError unless each member is within its shard."""
    shards, first = header["shards"], arrays["sample.first_member"]
    last_sample = np.cumsum([shard["samples"] for shard in shards])
    end_of_shard = first[last_sample]
    length = np.array([shard["bytes"] for shard in shards], dtype=np.int64)
    for start in range(0, int(first[-1]), _CHUNK):
        offset, size = (arrays[name][start : start + _CHUNK] for name in ("member.offset", "member.size"))
        shard = np.searchsorted(end_of_shard, np.arange(start, start + len(offset)), side="right")
        within = (offset >= 0) & (offset <= length[shard]) & (size >= 0) & (size <= length[shard] - offset)
        if not np.all(within):
            raise ValueError(f"member {start + int(np.argmin(within))} does not lie in its shard")
        if int(size.max()) > _MAX_READ:
            raise ValueError(f"a member has {int(size.max())} bytes, more than can be read at once")
