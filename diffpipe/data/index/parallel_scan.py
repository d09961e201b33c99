"""The scans of many shards, in parallel; each is kept in a hidden folder until the index of all of them is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from braceexpand import braceexpand
from tqdm import tqdm

from diffpipe.data.index.external_index import check_lists, lists_beside
from diffpipe.data.index.mmapped_safetensors import Column, map_arrays, write_arrays
from diffpipe.data.index.scan import scan_file
from diffpipe.data.index.tar_stream import Readable
from diffpipe.data.remote.storage import RemoteFile, is_remote, parse, redacted, tars
from diffpipe.data.worker_pool import DiedError, answers
from diffpipe.errors import UserError
from diffpipe.files import lock, open_regular

_VERSION = 1
_NAMED_ERRORS = 5


class Job(NamedTuple):
    """One shard to scan, by its path or URL. part: the file that keeps what was found."""

    name: str
    path: str
    part: Path
    max_member: int


class Part(NamedTuple):
    """What a scan found, in a file. head: bytes, sha256, samples, members (how many by extension), classes."""

    path: Path
    head: dict[str, Any]

    def column(self, name: str) -> np.ndarray:
        return map_arrays(self.path)[0][name]


def remote_shards(places: Sequence[str]) -> list[str]:
    """The URLs of the tars that URLs name: tars, brace patterns, or folders that can be listed. Raises UserError."""
    urls: list[str] = []
    for url in [url for place in places for url in braceexpand(place)]:
        found = [url] if parse(url).path.endswith(".tar") else tars(url)
        if not found:
            raise UserError(
                f"{redacted(url)}: no *.tar is listed there; name the tars themselves, with a brace pattern"
            )
        urls.extend(found)
    twice = next((url for url, n in Counter(urls).items() if n > 1), None)
    if twice is not None:
        raise UserError(f"{redacted(twice)} is named twice; name each shard once")
    return urls


@contextmanager
def parts_folder(directory: Path) -> Iterator[Path]:
    """The hidden folder of a directory's scans, held for this process alone. It goes at the end, unless by an error.

    Raises UserError where another process is at work there, and OSError.
    """
    folder = directory / ".index.parts"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        with suppress(OSError):  # the file system has no locks
            if not lock(file.fileno()):
                raise UserError(f"{directory}: another diffpipe index is at work there; wait for it or stop it")
        yield folder
        shutil.rmtree(folder)


def scan_all(shards: Sequence[tuple[str, str]], folder: Path, workers: int, max_member: int) -> list[Part]:
    """The scans of shards (name, path or URL), in order, by so many processes or (0, 1) by this one.

    A shard that an earlier call has scanned into `folder`, and that has not changed since, is not read again. All are
    read even where some are refused. Raises UserError.
    """
    jobs = [
        Job(name, path, folder / hashlib.sha256(name.encode()).hexdigest()[:32], max_member) for name, path in shards
    ]
    workers = min(workers, len(jobs))
    errors: dict[str, UserError] = {}
    with tqdm(total=len(jobs), unit="shard", disable=None) as progress:
        for name, error in _run(jobs, workers):
            if error is not None:
                errors[name] = error
            progress.update()
    if errors:
        raise _together([errors[job.name] for job in jobs if job.name in errors], len(jobs))
    return [Part(job.part, _head(job.part)) for job in jobs]


def _run(jobs: Sequence[Job], workers: int) -> Iterator[tuple[str, UserError | None]]:
    scans = answers(_scanned, jobs, workers if workers > 1 else 0, ahead=2)
    try:
        yield from scans
    except DiedError as error:
        raise UserError(
            f"a process that scans has died ({error}); where it was for want of memory, lower --workers; the same "
            f"command goes on with the shards that are left"
        ) from error
    finally:
        scans.close()


def _scanned(job: Job) -> tuple[str, UserError | None]:
    return job.name, _scan(job)


def _scan(job: Job) -> UserError | None:
    """Scan one shard into its file, unless it is there. Errors are returned, to be told together."""
    try:
        with _opened(job.path) as (file, state):
            key = None if state is None else {"state": state, "max_member": job.max_member, "version": _VERSION}
            if key is not None and _key(job.part) == key:
                return None
            found = scan_file(file, redacted(job.path) if is_remote(job.path) else job.path, job.max_member)
        if not is_remote(job.path):
            check_lists(job.path, found)
            if _local_state(job.path) != state:
                raise UserError(f"{job.path} was changed while it was read; index it again when nothing writes to it")
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{job.path}: cannot be read ({error.strerror}); check the path and its permissions")
    counts = np.bincount(found.columns["member.extension"], minlength=len(found.extensions)).tolist()
    head = {
        "key": key,
        "bytes": found.bytes,
        "sha256": found.sha256,
        "samples": len(found.starts),
        "members": dict(zip(found.extensions, counts, strict=True)),
        "classes": found.classes,
    }
    columns = {name: Column(array.dtype, len(array), [array]) for name, array in found.columns.items()}
    try:
        write_arrays(job.part, columns, {"part": json.dumps(head)})
    except OSError as error:
        return UserError(f"{job.part}: cannot be written ({error.strerror}); free some space or change the rights")
    return None


@contextmanager
def _opened(path: str) -> Iterator[tuple[Readable, dict[str, Any] | None]]:
    """The shard, open at its beginning, and what changes where it does, or None where a server does not say."""
    if is_remote(path):
        with RemoteFile(path) as file:
            state = {"url": redacted(path), "bytes": file.size, "etag": file.etag}
            yield file, state if file.etag else None
    else:
        with os.fdopen(open_regular(path, follow_links=True), "rb", buffering=0) as file:
            yield file, _local_state(path)


def _local_state(path: str) -> dict[str, Any]:
    """The lengths and times of a shard and of the lists beside it."""
    stats = {Path(file).name: Path(file).stat() for file in [path, *lists_beside(path)]}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _key(part: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # none, or none that is whole
        return _head(part)["key"]
    return None


def _head(part: Path) -> dict[str, Any]:
    return json.loads(map_arrays(part)[1]["part"])


def _together(errors: Sequence[UserError], total: int) -> UserError:
    """One error that says the first in full and of the others how many there are."""
    if len(errors) == 1:
        return errors[0]
    others = ", ".join(str(error).partition(": ")[0] for error in errors[1 : 1 + _NAMED_ERRORS])
    more = "" if len(errors) <= 1 + _NAMED_ERRORS else " and others"
    return UserError(f"{errors[0]} -- and {len(errors) - 1} more of {total} are refused: {others}{more}")
