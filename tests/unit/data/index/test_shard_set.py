"""A set of shards: the samples that webdataset reads, fingerprints, classes, and refusals."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.compat import WebDataset
from webdataset.tariterators import base_plus_ext
from webdataset.writer import ShardWriter

from diffpipe.data.index.dataset_diff import differences
from diffpipe.data.index.mmapped_safetensors import CHECKSUM, StreamedArray, map_arrays, write_arrays
from diffpipe.data.index.scan import dotted_names, split_name
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import VERIFY_LIMIT, ShardSet, load, number_of_classes
from diffpipe.data.index.summary import notes
from diffpipe.data.index.write_index import write_index
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels, write_shards, write_tar

FILES = {f"a/{i:03d}.{e}": bytes([i]) * (500 + 7 * i) for i in range(5) for e in ("png", "cls")}


def read_all(shards: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    """Every sample, read by its index entry."""
    samples: list[tuple[str, dict[str, bytes]]] = []
    for shard, path in enumerate(shards.paths):
        data = Path(path).read_bytes()
        for i in range(int(shards.counts[shard])):
            key, members = shards.sample(shard, i)
            samples.append((key, {e: data[m.offset : m.offset + m.size] for e, m in members.items()}))
    return samples


def read_by_webdataset(paths: list[str]) -> list[tuple[str, dict[str, bytes]]]:
    rows = WebDataset(paths, shardshuffle=False, empty_check=False)
    return [(r["__key__"], {e: v for e, v in r.items() if not e.startswith("__")}) for r in rows]


@given(st.from_regex(re.compile(r"[ab./_A-Z]{1,12}"), fullmatch=True))
def test_keys_are_split_as_webdataset_splits_them(name: str) -> None:
    parts = split_name(name)
    key, extension = base_plus_ext(name)
    if parts is None or not extension:
        assert parts is None
        hidden = name.rpartition("/")[2].startswith(".")  # webdataset reads a/.b as key "a/": no key by its own rule
        meta = re.match(r"__[^/]*__($|/)", name)  # the pattern of webdataset's tar_file_iterator
        assert not key or not extension or hidden or meta
    else:
        assert parts == (key, extension.lower())


def gnu_tar(folder: Path) -> None:
    (folder / "src").mkdir()
    for i in range(4):
        (folder / "src" / f"{i}.PNG").write_bytes(png(random_pixels(i)))
        (folder / "src" / f"{i}.seg.png").write_bytes(b"")
    (folder / "src" / ("n" * 150 + ".png")).write_bytes(b"a name too long for a plain header")
    subprocess.run(["tar", "--sort=name", "-cf", folder / "x.tar", "-C", folder / "src", "."], check=True)


def shard_writer(folder: Path) -> None:
    with ShardWriter(f"{folder}/x-%02d.tar", maxcount=3, verbose=0) as writer:
        for i in range(8):
            writer.write({"__key__": f"deep/er/k{i}", "png": png(random_pixels(i)), "cls": i, "json": {"i": i}})


def pax(folder: Path) -> None:
    write_tar(folder / "x.tar", {"é" * 80 + ".png": b"1", "b.png": b"22", "b.txt": b""}, tarfile.PAX_FORMAT)


def with_others(folder: Path) -> None:
    write_tar(folder / "x.tar", {"README": b"no key", "a.png": b"1", ".hidden.png": b"2", "__meta__/b.json": b"3"})


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.parametrize("write", [gnu_tar, shard_writer, pax, with_others])
def test_keys_and_bytes_are_those_that_webdataset_reads(tmp_path: Path, write) -> None:
    write(tmp_path)
    write_index(tmp_path)
    shards = load(str(tmp_path))
    assert shards.total > 0
    assert read_all(shards) == read_by_webdataset(shards.paths)


def test_what_cannot_be_loaded_is_named_with_the_remedy(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [2, 2])
    remedy = f"diffpipe index {tmp_path}"

    def refused(patterns: str | list[str], *words: str) -> None:
        with pytest.raises(UserError) as caught:
            load(patterns)
        assert all(word in str(caught.value) for word in words), str(caught.value)

    refused(str(tmp_path), INDEX_NAME, remedy)
    (tmp_path / INDEX_NAME).write_bytes(b"rubbish")
    refused(str(tmp_path), INDEX_NAME, remedy)
    write_index(tmp_path)
    refused("ftp://host/x.tar", "ftp://", "http, https, s3")
    refused("http://me:secret@host/x.tar", "http://host/x.tar", "~/.netrc")
    refused(f"{tmp_path}/none.tar", "none.tar")
    refused(f"{tmp_path}/none-*.tar", "none-*.tar")
    refused(f"{tmp_path}/shard-{{000..002}}.tar", "shard-002.tar")
    refused([str(tmp_path), str(paths[0])], "shard-000.tar", "twice")
    refused([], "no shards")
    (tmp_path / "empty").mkdir()
    refused(f"{tmp_path}/empty", "empty")

    write_tar(tmp_path / "new.tar", {"a.png": b"1"})
    refused(str(tmp_path), "new.tar", "not in the index", remedy)
    (tmp_path / "new.tar").unlink()
    data = paths[1].read_bytes()
    paths[1].write_bytes(data + bytes(512))
    refused(str(tmp_path), str(paths[1]), "bytes", remedy)
    paths[1].write_bytes(data[:700] + bytes([data[700] ^ 4]) + data[701:])
    refused(str(tmp_path), str(paths[1]), "changed after indexing", remedy)
    paths[1].write_bytes(data)
    load(str(tmp_path))


def test_shards_are_hashed_up_to_a_gibibyte_in_all(tmp_path: Path) -> None:
    assert VERIFY_LIMIT == 1 << 30
    write_shards(tmp_path, [2, 2])
    write_index(tmp_path)
    paths = sorted(tmp_path.glob("*.tar"))
    size = sum(path.stat().st_size for path in paths)
    data = bytearray(paths[1].read_bytes())
    data[700] ^= 1
    paths[1].write_bytes(data)
    load(str(tmp_path), verify_limit=size - 1)
    with pytest.raises(UserError, match="was changed after indexing"):
        load(str(tmp_path), verify_limit=size)
    paths[1].write_bytes(data[:-512])  # the length is checked whatever the size
    with pytest.raises(UserError, match="but 10240 in the index: it was changed or cut"):
        load(str(tmp_path), verify_limit=0)


def test_the_fingerprint_is_of_the_bytes_in_order(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        write_shards(folder, [2, 3])
        write_index(folder)
    shards = load(str(here))
    files = sorted(here.glob("*.tar"))
    rows = [[p.name, p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest()] for p in files]
    assert shards.tars_fingerprint == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert shards.fingerprint == hashlib.sha256(shards.listing.encode()).hexdigest()
    assert [row[:3] for row in json.loads(shards.listing)] == rows
    assert shards.fingerprint == load(str(there)).fingerprint
    assert shards.fingerprint != load([str(p) for p in reversed(files)]).fingerprint


def test_an_extension_is_there_only_where_every_sample_has_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "a.cls": b"0", "b.jpg": b"1", "b.cls": b"1"})
    write_tar(tmp_path / "1.tar", {"a.png": b"1", "b.png": b"1", "b.cls": b"x"})
    write_index(tmp_path)
    both, first = load(str(tmp_path)), load(str(tmp_path / "0.tar"))
    assert first.has("cls")
    assert not both.has("cls")
    assert both.lacking("cls") == str(tmp_path / "1.tar")
    assert not first.has("png")
    assert both.lacking("png", "jpg") is None
    assert number_of_classes(first) == 2
    assert both.shards[1].classes is None


def test_shards_whose_indices_name_other_classes_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(tmp_path / name, [3])
        write_index(tmp_path / name, classes=[name, "x", "y"])
    with pytest.raises(UserError, match="different classes"):
        load([f"{tmp_path}/a", f"{tmp_path}/b"])


def test_a_pickled_set_finds_its_samples(tmp_path: Path) -> None:
    write_shards(tmp_path, [20, 30])
    write_index(tmp_path)
    shards = load(str(tmp_path))
    data = pickle.dumps(shards)
    unpickled = pickle.loads(data)
    assert read_all(unpickled) == read_all(shards)
    assert unpickled.fingerprint == shards.fingerprint
    assert np.array_equal(unpickled.counts, shards.counts)
    assert len(data) < 2000  # the members stay in the file


def tampered(folder: Path, arrays: dict[str, np.ndarray], shards: list[int] | None = None) -> None:
    """Write the index of `folder` with other arrays, and with other counts of samples in its shards."""
    path = folder / INDEX_NAME
    before, metadata = map_arrays(path)
    header = json.loads(metadata["diffpipe"])
    for shard, samples in zip(header["shards"], shards or [], strict=False):
        shard["samples"] = samples
        shard["members"] = dict.fromkeys(shard["members"], samples)
    arrays = {name: np.array(array) for name, array in before.items() if name != CHECKSUM} | arrays
    streams = {name: StreamedArray(array.dtype, len(array), [array]) for name, array in arrays.items()}
    write_arrays(path, streams, {"diffpipe": json.dumps(header)}, checksum=True)


def test_the_fingerprint_covers_the_members(tmp_path: Path) -> None:
    """Labels that are shifted by one, and samples that the index leaves out, are other data."""
    write_shards(tmp_path, [6, 4])
    write_index(tmp_path)
    whole = load(str(tmp_path))
    columns = {name: np.array(array) for name, array in map_arrays(tmp_path / INDEX_NAME)[0].items()}
    del columns[CHECKSUM]
    labels = np.flatnonzero(columns["member.extension"] == 0)  # cls, the first extension by name
    shifted = {}
    for name in ("member.offset", "member.size", "member.crc32"):
        shifted[name] = columns[name].copy()
        for of_shard in (labels[:6], labels[6:]):
            shifted[name][of_shard] = np.roll(columns[name][of_shard], 1)
    tampered(tmp_path, shifted)
    other = load(str(tmp_path))
    assert other.tars_fingerprint == whole.tars_fingerprint
    assert other.fingerprint != whole.fingerprint
    cut = {
        "key.bytes": columns["key.bytes"][:35],
        "key.end": columns["key.end"][:7],
        "sample.first_member": columns["sample.first_member"][:8],
        **{name: array[:14] for name, array in columns.items() if name.startswith("member.")},
    }
    tampered(tmp_path, cut, [6, 1])
    fewer = load(str(tmp_path))
    assert (fewer.total, fewer.tars_fingerprint) == (7, whole.tars_fingerprint)
    assert len({whole.fingerprint, other.fingerprint, fewer.fingerprint}) == 3
    assert differences(whole.listing, fewer.listing) == [
        "shard-001.tar has other samples, keys or labels in its index, though its bytes are the same"
    ]


def test_the_fingerprint_does_not_depend_on_the_other_shards_of_the_index(tmp_path: Path) -> None:
    write_shards(tmp_path / "both", [3, 5])
    write_tar(tmp_path / "both/z.tar", {"a.aa": b"1", "a.png": b"2"})
    (tmp_path / "one").mkdir()
    shutil.copy(tmp_path / "both/shard-001.tar", tmp_path / "one")
    for folder in ("both", "one"):
        write_index(tmp_path / folder)
    one, of_both = load(f"{tmp_path}/one"), load(f"{tmp_path}/both/shard-001.tar")
    assert one.fingerprint == of_both.fingerprint
    assert one.has_fingerprint(of_both.tars_fingerprint)
    assert not one.has_fingerprint("0" * 64)


def test_labels_that_are_no_classes_are_refused_before_anything_is_made_of_them(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "a.cls": b"202401011200", "b.png": b"1", "b.cls": b"0"})
    write_index(tmp_path)
    with pytest.raises(
        UserError,
        match=r"0\.tar: a label is 202401011200, more than there are samples \(2\); number the classes from 0",
    ):
        number_of_classes(load(str(tmp_path)))
    write_tar(tmp_path / "0.tar", {"a.png": b"1", "a.cls": b"999999"})
    write_index(tmp_path)
    assert number_of_classes(load(str(tmp_path))) == 1_000_000


def test_dots_in_names_are_the_reason_that_samples_have_no_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {f"photo{i}.v2.png": b"1" for i in range(3)})
    write_index(tmp_path)
    shards = load(str(tmp_path))
    assert (
        shards.lacks_images() == f"{tmp_path}/0.tar: some samples have no image ({dotted_names(['v2.png'], ['png'])})"
    )
    assert "KEY.v2.png have a dot in the key" in (shards.lacks_images() or "")
    (note,) = notes(tmp_path)
    assert "KEY.v2.png" in note
    write_tar(tmp_path / "0.tar", {"a.cls": b"1", "a.latents.npy": b"2"})
    write_index(tmp_path)
    assert load(str(tmp_path)).lacks_images() == f"{tmp_path}/0.tar: some samples have no image"
    assert notes(tmp_path) == []
