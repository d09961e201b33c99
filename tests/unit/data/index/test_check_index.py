"""An index that somebody crafted is refused in one bounded line, or can be read to its end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save

from diffpipe.data.index.check_index import check_arrays, check_header
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import UserError
from tests.support.tars import write_shards

Tree = dict[str, Any]
Arrays = dict[str, np.ndarray]
I64 = np.iinfo(np.int64)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [3, 4])
    write_index(folder)
    return folder


@pytest.fixture(scope="module")
def whole(shards: Path) -> tuple[Tree, Arrays]:
    """The header and the arrays of the index, without its checksum."""
    with safe_open(shards / INDEX_NAME, framework="np") as file:
        header = json.loads(file.metadata()["diffpipe"])
    arrays = load_file(shards / INDEX_NAME)
    return header, {name: array for name, array in arrays.items() if name != "sha256"}


def read_all(folder: Path) -> None:
    """Read all that the index says."""
    shard_set = load(str(folder))
    reader = Reader(shard_set)
    for shard, count in enumerate(shard_set.counts.tolist()):
        numbers = np.arange(count)
        shard_set.keys(np.full(count, shard), numbers)
        shard_set.locations(np.full(count, shard), numbers, ("png", "cls"))
        for i in range(count):
            sample = shard_set.sample(shard, i)
            for extension in sample.members:
                reader.read(shard, sample, extension)


def refusal(folder: Path, content: bytes) -> str | None:
    """The line that refuses an index with this content; None where all that it says can be read."""
    before = (folder / INDEX_NAME).read_bytes()
    try:
        (folder / INDEX_NAME).write_bytes(content)
        read_all(folder)
        return None
    except UserError as error:
        return str(error)
    finally:
        (folder / INDEX_NAME).write_bytes(before)


def test_the_index_of_a_scan_passes(shards: Path, whole: tuple[Tree, Arrays]) -> None:
    header, arrays = whole
    check_header(header)
    check_arrays(arrays, header)
    assert refusal(shards, save(arrays, {"diffpipe": json.dumps(header)})) is None


HEADERS: dict[str, Callable[[Tree], Any]] = {
    "a list": lambda h: [h],
    "no shards": lambda h: h | {"shards": {}},
    "a shard that is a number": lambda h: h | {"shards": [1]},
    "a shard twice": lambda h: h | {"shards": [h["shards"][0]] * 2},
    "a shard elsewhere": lambda h: of_shard(h, name="../x.tar"),
    "a name that is a number": lambda h: of_shard(h, name=7),
    "bytes that are negative": lambda h: of_shard(h, bytes=-1),
    "bytes beyond 64 bits": lambda h: of_shard(h, bytes=10**30),
    "bytes that are a fraction": lambda h: of_shard(h, bytes=1.5),
    "bytes that are true": lambda h: of_shard(h, bytes=True),
    "samples beyond memory": lambda h: of_shard(h, samples=1 << 61),
    "samples that are infinite": lambda h: of_shard(h, samples=math.inf),
    "samples that are a text": lambda h: of_shard(h, samples="3"),
    "no samples": lambda h: of_shard(h, samples=None),
    "a hash that is no hash": lambda h: of_shard(h, sha256="x"),
    "members of an unknown extension": lambda h: of_shard(h, members={"exe": 3}),
    "members that are a list": lambda h: of_shard(h, members=[3, 3]),
    "classes beyond memory": lambda h: of_shard(h, classes_count=10**19),
    "classes that have no name": lambda h: of_shard(h, classes_count=3) | {"classes": ["one"]},
    "class names that are numbers": lambda h: h | {"classes": [1]},
    "extensions that are a text": lambda h: h | {"extensions": "png"},
    "an extension twice": lambda h: h | {"extensions": ["png", "png"]},
    "no extensions": lambda h: {key: value for key, value in h.items() if key != "extensions"},
    "300 extensions": lambda h: h | {"extensions": [str(i) for i in range(300)]},
    "a base that is a path": lambda h: h | {"version": 2, "base": "/etc"},
    "a base that is a number": lambda h: h | {"version": 2, "base": 1},
    "a version that is a list": lambda h: h | {"version": [1]},
    "a version that is a fraction": lambda h: h | {"version": 1.0},
    "a version below all": lambda h: h | {"version": -1},
}


def of_shard(header: Tree, **fields: Any) -> Tree:
    """The header with other values in the fields of its first shard."""
    first, *others = header["shards"]
    return header | {"shards": [first | fields, *others]}


@pytest.mark.parametrize("form", HEADERS)
def test_a_crafted_header_is_refused(shards: Path, whole: tuple[Tree, Arrays], form: str) -> None:
    header, arrays = whole
    line = refusal(shards, save(arrays, {"diffpipe": json.dumps(HEADERS[form](header))}))
    assert line is not None
    assert line.startswith(f"{shards}/{INDEX_NAME}: not a readable index (")
    assert len(line) < 400 + 2 * len(str(shards))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000 + "]" * 100_000, "9" * 5000, '{"version": 1, "version": 1}', '{"version": NaN}', "{", "", "\x00"],
    ids=["nested deeply", "5000 digits", "a key twice", "not a number", "cut", "empty", "zero"],
)
def test_a_header_that_is_no_json_is_refused(shards: Path, whole: tuple[Tree, Arrays], text: str) -> None:
    line = refusal(shards, save(whole[1], {"diffpipe": text}))
    assert line is not None
    assert "not a readable index" in line
    assert len(line) < 400 + 2 * len(str(shards))


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        *(
            (name, i, value)
            for name in ("key.end", "sample.first_member")
            for i in (0, 3, -1)
            for value in (-1, I64.max)
        ),
        ("sample.first_member", 1, 0),
        ("sample.first_member", 0, 1),
        ("key.end", -1, 0),
        ("member.extension", 2, 255),
        ("member.offset", 0, -1),
        ("member.offset", 0, I64.min),
        ("member.offset", -1, I64.max),
        ("member.size", 0, -1),
        ("member.size", -1, I64.max),
        ("member.size", 3, 1 << 40),
    ],
)
def test_a_number_that_leads_out_of_the_file_is_refused(
    shards: Path, whole: tuple[Tree, Arrays], name: str, index: int, value: int
) -> None:
    header, arrays = whole
    changed = arrays[name].copy()
    changed[index] = value
    line = refusal(shards, save(arrays | {name: changed}, {"diffpipe": json.dumps(header)}))
    assert line is not None
    assert "not a readable index" in line


def test_arrays_of_other_types_names_and_shapes_are_refused(shards: Path, whole: tuple[Tree, Arrays]) -> None:
    header, arrays = whole
    metadata = {"diffpipe": json.dumps(header)}
    for changed in (
        arrays | {"key.end": arrays["key.end"].astype(np.uint32)},
        arrays | {"member.crc32": arrays["member.crc32"].astype(np.int64)},
        arrays | {"member.size": arrays["member.size"].astype(np.float64)},
        arrays | {"member.size": arrays["member.size"][None]},
        arrays | {"other": arrays["member.size"]},
        {name: array for name, array in arrays.items() if name != "key.bytes"},
    ):
        line = refusal(shards, save(changed, metadata))
        assert line is not None
        assert "not a readable index" in line


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**62, 2**63, 2**64, 10**30]),
    st.floats(),
    st.text(max_size=5),
    st.just([[]] * 3),
    st.just({"a": {}}),
)


def replaced(data: st.DataObject, tree: Any) -> Any:
    """The tree with one value, somewhere in it, replaced, left out or doubled."""
    if isinstance(tree, dict) and tree and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(tree)))
        others = {k: v for k, v in tree.items() if k != key}
        return others if data.draw(st.integers(0, 9)) == 0 else others | {key: replaced(data, tree[key])}
    if isinstance(tree, list) and tree and data.draw(st.integers(0, 5)):
        i = data.draw(st.integers(0, len(tree) - 1))
        middle = data.draw(st.sampled_from([0, 1, 1, 1, 2]))
        return [*tree[:i], *[replaced(data, tree[i])] * middle, *tree[i + 1 :]]
    return data.draw(VALUES)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_header_and_any_number_is_refused_or_read(
    shards: Path, whole: tuple[Tree, Arrays], data: st.DataObject
) -> None:
    header, arrays = whole
    if data.draw(st.booleans()):
        header = replaced(data, header)
    else:
        name = data.draw(st.sampled_from(sorted(arrays)))
        changed, info = arrays[name].copy(), np.iinfo(arrays[name].dtype)
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(int(info.min), int(info.max)))
        arrays = arrays | {name: changed}
    line = refusal(shards, save(arrays, {"diffpipe": json.dumps(header)}))
    assert line is None or ("\n" not in line and len(line) < 600)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_layout_of_the_file_is_refused_or_read(shards: Path, data: st.DataObject) -> None:
    content = (shards / INDEX_NAME).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(replaced(data, json.loads(content[8:start]))).encode()
    size = data.draw(st.sampled_from([len(header), len(header), 0, 1, len(content), 1 << 40, 2**64 - 1]))
    line = refusal(shards, size.to_bytes(8, "little") + header + content[start:])
    assert line is None or ("\n" not in line and len(line) < 600)
