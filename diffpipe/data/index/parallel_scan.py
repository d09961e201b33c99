"""Scans of many shards in parallel. Their results are kept in a hidden folder until the index is written."""

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

from diffpipe.data.index.external_index import check_external_indices, external_indices
from diffpipe.data.index.mmapped_safetensors import StreamedArray, map_arrays, write_arrays
from diffpipe.data.index.scan import scan_file
from diffpipe.data.index.tar_stream import Readable
from diffpipe.data.remote.listing import tars
from diffpipe.data.remote.storage import RemoteFile
from diffpipe.data.remote.urls import is_remote, parse, redacted
from diffpipe.data.worker_pool import WorkerDiedError, WorkerPool
from diffpipe.errors import UserError
from diffpipe.files import lock, open_regular, open_writable

_VERSION = 1
_NAMED_ERRORS = 5


class ScanJob(NamedTuple):
    """One shard to scan, by its path or URL. result: the file for what the scan finds."""

    name: str
    path: str
    result: Path
    max_member: int


class ShardScan(NamedTuple):
    """The result of a scan, in a file. header: bytes, sha256, samples, members (how many by extension), classes."""

    path: Path
    header: dict[str, Any]

    def array(self, name: str) -> np.ndarray:
        return map_arrays(self.path)[0][name]


def remote_shards(patterns: Sequence[str]) -> list[str]:
    """The URLs of remote tars: from URLs of tars, brace patterns, and folders that can be listed. Raises UserError."""
    urls: list[str] = []
    for url in [url for pattern in patterns for url in braceexpand(pattern)]:
        shards = [url] if parse(url).path.endswith(".tar") else tars(url)
        if not shards:
            raise UserError(
                f"{redacted(url)}: no *.tar is listed there; name the tars themselves, with a brace pattern"
            )
        urls.extend(shards)
    repeated = next((url for url, n in Counter(urls).items() if n > 1), None)
    if repeated is not None:
        raise UserError(f"{redacted(repeated)} is named twice; name each shard once")
    return urls


@contextmanager
def scans_folder(directory: Path) -> Iterator[Path]:
    """The hidden folder for the scans of a directory, locked by this process. It stays after an error.

    Raises UserError where another process is at work there, and OSError.
    """
    folder = directory / ".index.parts"
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise UserError(f"{folder}: a symbolic link, where diffpipe index keeps its own files; remove it")
    with os.fdopen(open_writable(folder / "lock"), "r+b") as file:
        with suppress(OSError):  # the file system has no locks
            if not lock(file.fileno()):
                raise UserError(f"{directory}: another diffpipe index is at work there; wait for it or stop it")
        yield folder
        shutil.rmtree(folder)


def scan_all(shards: Sequence[tuple[str, str]], folder: Path, workers: int, max_member: int) -> list[ShardScan]:
    """The scans of shards (name, path or URL), in order, by `workers` processes, or by this one if they are 0 or 1.

    A shard that an earlier call has scanned into `folder`, and that has not changed since, is not read again. All
    others are read even if some are refused. Raises UserError.
    """
    jobs = [
        ScanJob(name, path, folder / hashlib.sha256(name.encode()).hexdigest()[:32], max_member)
        for name, path in shards
    ]
    workers = min(workers, len(jobs))
    errors: dict[str, UserError] = {}
    # The workers are forked before the progress bar starts its thread.
    with (
        WorkerPool(_run, workers if workers > 1 else 0) as pool,
        tqdm(total=len(jobs), unit="shard", disable=None) as progress,
    ):
        try:
            for name, error in pool.imap(jobs, prefetch=2):
                if error is not None:
                    errors[name] = error
                progress.update()
        except WorkerDiedError as error:
            raise UserError(
                f"a worker process died while scanning ({error}); if memory ran out, lower --workers; the same command "
                f"goes on with the shards that are left"
            ) from error
    if errors:
        raise _combined([errors[job.name] for job in jobs if job.name in errors], len(jobs))
    return [ShardScan(job.result, _header(job.result)) for job in jobs]


def _run(job: ScanJob) -> tuple[str, UserError | None]:
    return job.name, _scan(job)


def _scan(job: ScanJob) -> UserError | None:
    """Scan one shard into its file, unless the file is up to date. Errors are returned, to be reported together."""
    try:
        with _open_shard(job.path) as (file, state):
            key = {"state": state, "max_member": job.max_member, "version": _VERSION, "file": _identity(job.path)}
            if state is not None and _key(job.result) == key:
                return None
            scan = scan_file(file, redacted(job.path) if is_remote(job.path) else job.path, job.max_member)
        if not is_remote(job.path):
            check_external_indices(job.path, scan)
            if _local_state(job.path) != state:
                raise UserError(f"{job.path} was changed while it was read; index it again when nothing writes to it")
    except UserError as error:
        return error
    except OSError as error:
        return UserError(f"{job.path}: cannot be read ({error.strerror}); check the path and its permissions")
    counts = np.bincount(scan.columns["member.extension"], minlength=len(scan.extensions)).tolist()
    header = {
        "key": None if state is None else key,
        "bytes": scan.bytes,
        "sha256": scan.sha256,
        "samples": len(scan.starts),
        "members": dict(zip(scan.extensions, counts, strict=True)),
        "classes": scan.classes,
    }
    arrays = {name: StreamedArray(array.dtype, len(array), [array]) for name, array in scan.columns.items()}
    try:
        write_arrays(job.result, arrays, {"part": json.dumps(header)})
    except OSError as error:
        return UserError(f"{job.result}: cannot be written ({error.strerror}); free some space or change the rights")
    return None


@contextmanager
def _open_shard(path: str) -> Iterator[tuple[Readable, dict[str, Any] | None]]:
    """The shard, and a state that changes whenever the shard does, or None where a server gives none."""
    if is_remote(path):
        with RemoteFile(path) as file:
            state = {"url": redacted(path), "bytes": file.size, "etag": file.etag}
            yield file, state if file.etag else None
    else:
        with os.fdopen(open_regular(path, follow_links=True), "rb", buffering=0) as file:
            yield file, _local_state(path)


def _local_state(path: str) -> dict[str, Any]:
    """The lengths and modification times of a shard and of the external indices beside it."""
    stats = {Path(file).name: Path(file).stat() for file in [path, *external_indices(path)]}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _identity(path: str) -> list[int] | None:
    """The inode and the time of the last change of a local shard. Whoever hands on a scan cannot know them."""
    if is_remote(path):
        return None
    status = Path(path).stat()
    return [status.st_ino, status.st_ctime_ns]


def _key(result: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # there is no result, or it is not whole
        return _header(result)["key"]
    return None


def _header(result: Path) -> dict[str, Any]:
    return json.loads(map_arrays(result)[1]["part"])


def _combined(errors: Sequence[UserError], total: int) -> UserError:
    """One error: the first in full, and the number and names of the others."""
    if len(errors) == 1:
        return errors[0]
    others = ", ".join(str(error).partition(": ")[0] for error in errors[1 : 1 + _NAMED_ERRORS])
    more = "" if len(errors) <= 1 + _NAMED_ERRORS else " and others"
    return UserError(f"{errors[0]} -- and {len(errors) - 1} more of {total} are refused: {others}{more}")
