"""Lists of members made by other tools: a matching one changes nothing, another one is refused."""

from __future__ import annotations

import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from tests.support.tars import write_tar

FILES = {f"{i}.{e}": bytes([i]) * n for i in range(4) for e, n in (("png", 700 * i), ("cls", 1), ("seg.png", 5))}


def by_wds2idx(path: Path, version: str = "v1.2") -> Path:
    """The format of wds2idx: the version and the number of samples, then for each EXTENSION OFFSET SIZE NAME …"""
    lines: dict[str, list[str]] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            key, _, extension = info.name.partition(".")
            name = [info.name] if version == "v1.2" else []
            lines.setdefault(key, []).extend([extension, str(info.offset_data), str(info.size), *name])
    file = path.with_suffix(".idx")
    file.write_text(f"{version} {len(lines)}\n" + "".join(" ".join(words) + "\n" for words in lines.values()))
    return file


def by_energon(path: Path) -> Path:
    """The offset of each sample's first header, and where the last member's blocks end, as 64-bit words."""
    starts: dict[str, int] = {}
    with tarfile.open(path) as tar:
        for info in tar:
            starts.setdefault(info.name.partition(".")[0], info.offset)
        end = tar.offset
    file = path.with_name(f"{path.name}.idx")
    file.write_bytes(struct.pack(f"<{len(starts) + 1}Q", *starts.values(), end))
    return file


LISTS = {"v1.1": lambda path: by_wds2idx(path, "v1.1"), "v1.2": by_wds2idx, "energon": by_energon}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_matching_list_changes_nothing(tmp_path: Path, kind: str, tar_format: int) -> None:
    path = write_tar(tmp_path / "x.tar", {**FILES, "é.png": b"1"}, tar_format)
    write_index(tmp_path)
    before = (tmp_path / INDEX_NAME).read_bytes()
    LISTS[kind](path)
    write_index(tmp_path)
    assert (tmp_path / INDEX_NAME).read_bytes() == before


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("change", ["last lost", "first lost", "one lost", "one more", "one longer"])
def test_a_whole_tar_that_is_not_the_one_listed_is_refused(tmp_path: Path, kind: str, change: str) -> None:
    list_of: Callable[[Path], Path] = LISTS[kind]
    path = write_tar(tmp_path / "x.tar", FILES)
    file = list_of(path)
    left = {name: data for name, data in FILES.items() if name[0] != {"last lost": "3", "first lost": "0"}.get(change)}
    left |= {"4.png": b""} if change == "one more" else {}
    left |= {"2.png": bytes(3000)} if change == "one longer" else {}
    if change == "one lost":
        del left["1.png"], left["1.cls"], left["1.seg.png"]
    write_tar(path, left)
    with pytest.raises(UserError, match=f"^{path} is not the tar that {file} lists: (it|sample) "):
        write_index(tmp_path)
    file.unlink()
    write_index(tmp_path)


LINE = b"png 512 0 0.png\n"
BROKEN = [b"v1.2 9\n" + LINE, b"v1.3 1\n" + LINE, b"v1.2\n", b"v1.2 1\npng x 0 0.png\n", b"v1.2 1\npng\n"]


@pytest.mark.parametrize("content", BROKEN)
def test_an_invalid_list_is_named(tmp_path: Path, content: bytes) -> None:
    write_tar(tmp_path / "x.tar", {"0.png": b""})
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(UserError, match=rf"^{tmp_path}/x.idx: not a readable list"):
        write_index(tmp_path)


def test_a_file_named_like_a_list_may_be_something_else(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", FILES)
    (tmp_path / "x.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 6]))
    write_index(tmp_path)
    (tmp_path / "x.tar.idx").write_bytes(b"odd")
    with pytest.raises(UserError, match=rf"^{tmp_path}/x.tar.idx: not a readable list"):
        write_index(tmp_path)


@pytest.mark.parametrize("name", ["x.idx", "x.tar.idx"])
def test_a_list_of_a_terabyte_is_not_read(tmp_path: Path, name: str) -> None:
    write_tar(tmp_path / "x.tar", FILES)
    (tmp_path / name).write_bytes(b"v1.2 1\n")
    os.truncate(tmp_path / name, 1 << 40)  # sparse
    with pytest.raises(UserError, match=r"not a readable list .* 1099511627776 bytes"):
        write_index(tmp_path)
