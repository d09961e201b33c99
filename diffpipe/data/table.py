"""The index file of one directory of shards: `index.safetensors`.

It says of each tar its length and sha256, and of each member where its bytes lie and what they hash to: plain arrays
that are mapped into memory, and JSON in the metadata of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from diffpipe.contract import UserError
from diffpipe.data.scan import Scan, scan

INDEX_NAME = "index.safetensors"
_VERSION = 1


class Member(NamedTuple):
    """Where the bytes of one member lie in its shard, and their crc32."""

    offset: int
    size: int
    crc32: int


class Sample(NamedTuple):
    """One sample: its key and its members by extension."""

    key: str
    members: dict[str, Member]


class Table:
    """The index file of one directory, mapped into memory. It pickles as its path."""

    def __init__(self, path: str):
        self.path = path
        directory = Path(path).parent
        if not Path(path).exists():
            raise UserError(f"{path} is missing; make it with: diffpipe index {directory}")
        try:
            with safe_open(path, framework="pt") as file:
                head = json.loads(file.metadata()["diffpipe"])
                arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
            if head["version"] != _VERSION:
                raise UserError(
                    f"{path}: index version {head['version']}; make it anew with: diffpipe index {directory}"
                )
            self.shards: dict[str, dict[str, Any]] = {shard["name"]: shard for shard in head["shards"]}
            self.extensions: list[str] = head["extensions"]
            self.classes: list[str] | None = head["classes"]
            self._key_bytes, self._key_end = arrays["key.bytes"], arrays["key.end"]
            self._first = arrays["sample.first_member"]
            self._extension = arrays["member.extension"]
            self._place = arrays["member.offset"], arrays["member.size"], arrays["member.crc32"]
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, OSError) as error:
            raise UserError(f"{path}: not a readable index; make it anew with: diffpipe index {directory}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.path,)

    def sample(self, i: int) -> Sample:
        """Sample i of the directory."""
        start = self._key_end[i - 1] if i else 0
        key = self._key_bytes[start : self._key_end[i]].tobytes().decode("utf-8", "surrogateescape")
        members = range(self._first[i], self._first[i + 1])
        places = {self.extensions[self._extension[m]]: Member(*(int(a[m]) for a in self._place)) for m in members}
        return Sample(key, places)


def write_index(directory: str | Path, classes: Sequence[str] | None = None, extra: Iterable[str] = ()) -> None:
    """Scan every `*.tar` of `directory`, and those named in `extra` too, and write its index, whole or not at all.

    Class names that stand in an index there already are kept where `classes` is None. Raises UserError.
    """
    directory = Path(directory)
    target = directory / INDEX_NAME
    if classes is None:
        with contextlib.suppress(UserError):  # no index yet, or one that has to be made anew
            classes = Table(str(target)).classes
    names = sorted({path.name for path in directory.glob("*.tar")} | set(extra))
    if not names:
        raise UserError(f"{directory}: no *.tar in it; give the folder that holds the shards")
    scans = {name: scan(str(directory / name)) for name in names}
    largest = max(s.classes or 0 for s in scans.values())
    if classes is not None and largest > len(classes):
        raise UserError(f"{directory}: a label is {largest - 1}, but there are only {len(classes)} class names")
    arrays, head = _tables(scans, classes)
    temporary = directory / f"{INDEX_NAME}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(save(arrays, metadata={"diffpipe": json.dumps(head)}))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise UserError(
            f"{target}: cannot be written ({error.strerror}); free some space or change the rights"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _tables(scans: dict[str, Scan], classes: Sequence[str] | None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the JSON of an index."""
    extensions = sorted({member[0] for s in scans.values() for member in s.members})
    if len(extensions) > 256:
        raise UserError(f"{next(iter(scans))} and others: more than 256 extensions; name the members KEY.EXTENSION")
    keys = [key.encode("utf-8", "surrogateescape") for s in scans.values() for key in s.keys]
    number = {extension: i for i, extension in enumerate(extensions)}
    members = [member for s in scans.values() for member in s.members]
    starts = np.cumsum([0] + [len(s.members) for s in scans.values()])
    first = [start + i for start, s in zip(starts, scans.values(), strict=False) for i in s.first]
    arrays = {
        "key.bytes": np.frombuffer(b"".join(keys), dtype=np.uint8),
        "key.end": np.cumsum([len(key) for key in keys], dtype=np.int64),
        "sample.first_member": np.array([*first, starts[-1]], dtype=np.int64),
        "member.extension": np.array([number[member[0]] for member in members], dtype=np.uint8),
        "member.offset": np.array([member[1] for member in members], dtype=np.int64),
        "member.size": np.array([member[2] for member in members], dtype=np.int64),
        "member.crc32": np.array([member[3] for member in members], dtype=np.uint32),
    }
    shards = [
        {
            "name": name,
            "bytes": s.bytes,
            "sha256": s.sha256,
            "samples": len(s.keys),
            "members": dict(sorted(Counter(member[0] for member in s.members).items())),
            "classes_count": s.classes,
        }
        for name, s in scans.items()
    ]
    head = {
        "version": _VERSION,
        "shards": shards,
        "extensions": extensions,
        "classes": None if classes is None else list(classes),
    }
    return arrays, head
