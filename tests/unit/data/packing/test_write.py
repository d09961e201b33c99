"""Packed images: their encoding, their independence of the number of processes, the split, and failures."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.data import images, load
from diffpipe.data.packing.choose import Split
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from diffpipe.resolution import square


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_bytes_do_not_depend_on_the_number_of_processes(photos: Path, tmp_path: Path) -> None:
    bad = {}
    for workers in (0, 1, 2):
        out = tmp_path / f"{workers}"
        options = {
            "max_bad_samples": 2,
            "shard_samples": 13,
            "encoding": Encoding(square(8)),
            "split": Split(r"subject\d", 0.4),
        }
        bad[workers] = pack(FolderSource(photos), out, workers=workers, **options)
    assert bad[0] == bad[1] == bad[2]
    assert bytes_of(tmp_path / "0") == bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")
    shards = load([str(tmp_path / "0" / part) for part in ("train", "test")])
    assert shards.total == 58
    assert all(counts == 13 for counts in shards.counts[:2])  # the bad ones leave no gap
    assert images(shards, range(58), None, 3).shape == (58, 3, 8, 8)


def test_bad_samples_are_named_and_above_the_limit_nothing_is_packed(photos: Path, tmp_path: Path) -> None:
    source = FolderSource(photos)
    paths = [str(photos / "cat" / "subject7_07.png"), str(photos / "dog" / "subject0_40.png")]
    bad = pack(source, tmp_path / "out", max_bad_samples=2)
    assert sorted(reason.split(": ")[0] for reason in bad) == paths
    assert all("not an image that can be decoded" in reason for reason in bad)
    keys = [int(load(str(tmp_path / "out")).sample(0, i).key) for i in range(58)]
    assert {*range(60)} - {*keys} == {source.paths.index(str(Path(path).relative_to(photos))) for path in paths}
    before = sorted(tmp_path.iterdir())
    for workers in (0, 2):
        with pytest.raises(UserError, match="2 bad samples, more than --max-bad 1") as caught:
            pack(source, tmp_path / "none", max_bad_samples=1, workers=workers)
        assert all(path in str(caught.value) for path in paths)
        assert sorted(tmp_path.iterdir()) == before


def test_a_source_of_bad_samples_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no samples are left to pack; the first bad one is .*a\.png"):
        pack(FolderSource(tmp_path / "src"), tmp_path / "out", max_bad_samples=9)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def short_disk() -> Iterator[None]:
    """No file may be longer than 40,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("short_disk")
def test_a_full_disk_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"out: cannot be written .*free some space"):
            pack(FolderSource(photos), tmp_path / "out", max_bad_samples=2, workers=workers)
        assert sorted(tmp_path.iterdir()) == before
