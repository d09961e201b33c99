"""Samples encoded by several processes and written by one, in an order that does not depend on how many there are."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import tarfile
from collections.abc import Generator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.source import Source
from diffpipe.data.worker_pool import DiedError, answers
from diffpipe.errors import UserError

_CHUNK = 16  # samples that a worker encodes at a time
_NAMED = 20  # bad samples that an error names


class Budget:
    """The samples that could not be packed, each with its reason, and how many of them are put up with."""

    def __init__(self, most: int):
        self.most = most
        self.bad: list[str] = []

    def spend(self, reason: str) -> None:
        self.bad.append(reason)
        if len(self.bad) > self.most:
            named = "; ".join(f"({i}) {reason}" for i, reason in enumerate(self.bad[-_NAMED:], 1))
            which = "" if len(self.bad) <= _NAMED else f" (the last {_NAMED})"
            plural = "s" if len(self.bad) > 1 else ""
            raise UserError(f"{len(self.bad)} bad sample{plural}, more than --max-bad {self.most}{which}: {named}")


class Shards:
    """The shards of a folder, filled one after the other. samples: how many they hold by now."""

    def __init__(self, folder: Path, prefix: str, shard_samples: int):
        self.folder, self.prefix, self.shard_samples = folder, prefix, shard_samples
        self.samples = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, members: dict[str, bytes]) -> None:
        if self.samples % self.shard_samples == 0:
            self.close()
            path = self.folder / f"{self.prefix}-{self.samples // self.shard_samples:06d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        assert self._tar is not None
        for extension, content in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")  # its owner and time are zero: the same input, the same bytes
            info.size = len(content)
            self._tar.addfile(info, io.BytesIO(content))
        self.samples += 1

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()


def write(
    source: Source, indices: np.ndarray, encoding: Encoding, shards: Shards, budget: Budget, workers: int
) -> None:
    """Write these samples of the source, in this order, but for the bad ones. Raises UserError past the budget."""
    with contextlib.closing(shards), contextlib.closing(encoded(source, encoding, indices, workers)) as samples:
        for i, members in samples:
            if isinstance(members, str):
                budget.spend(members)
            else:
                shards.add(f"{i:08d}", members)


def encoded(
    source: Source, encoding: Encoding, indices: np.ndarray, workers: int
) -> Generator[tuple[int, dict[str, bytes] | str], None, None]:
    """The index and the members of each sample, or what is wrong with it, in the order of `indices`."""
    chunks = [indices[start : start + _CHUNK].tolist() for start in range(0, len(indices), _CHUNK)]
    workers = min(workers, len(chunks)) if len(chunks) > 1 else 0
    done = answers(functools.partial(_members, source, encoding), chunks, workers, ahead=4)
    try:
        first = [*itertools.islice(done, 1)]  # the workers start before the progress bar's thread
        with tqdm(total=len(indices), unit="image", disable=None) as progress:
            for chunk in itertools.chain(first, done):
                yield from chunk
                progress.update(len(chunk))
    except DiedError as error:
        raise UserError(f"a worker process has died ({error}); where memory ran out, give fewer --workers") from error
    finally:
        done.close()


def _members(source: Source, encoding: Encoding, chunk: list[int]) -> list[tuple[int, dict[str, bytes] | str]]:
    """What becomes of samples. An error of the user's is its message: it must not end the packing."""
    return [(i, _sample(source, encoding, i)) for i in chunk]


def _sample(source: Source, encoding: Encoding, i: int) -> dict[str, bytes] | str:
    try:
        members = encoding.members(source.item(i))
    except UserError as error:
        return str(error)
    if "cls" not in members and source.labels is not None:
        members = {**members, "cls": str(source.labels[i]).encode()}
    return members
