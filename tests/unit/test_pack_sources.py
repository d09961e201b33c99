from __future__ import annotations

import contextlib
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffpipe.contract import UserError
from diffpipe.data import images, labels, load
from diffpipe.data.pack import CifarSource, FolderSource, HubSource, pack
from diffpipe.data.packing.labels import read_labels
from diffpipe.data.packing.pickles import load_plain
from tests.unit.archives import (
    CIFAR_CLASSES,
    cifar_batch,
    cifar_pickles,
    cifar_pickles_of_python3,
    python2,
    write_cifar,
    write_zip,
)
from tests.unit.tars import png, random_pixels

FILES = {
    "cat/1.png": png(random_pixels(1)),
    "cat/old/2.png": png(random_pixels(2)),
    "dog/1.png": png(random_pixels(3)),
    "dog/notes.txt": b"words",
}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def by_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "a b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_packs_as_the_folder_does(tmp_path: Path, prefix: str, compression: int) -> None:
    pack(FolderSource(write_folder(tmp_path / "photos", FILES)), tmp_path / "a")
    hidden = {"__MACOSX/cat/._1.png": b"", f"{prefix}cat/.DS_Store": b""}
    archive = write_zip(tmp_path / "a.zip", {prefix + name: data for name, data in FILES.items()} | hidden, compression)
    source = FolderSource(archive)
    assert source.skipped == 1
    pack(source, tmp_path / "b")
    assert by_bytes(tmp_path / "a") == by_bytes(tmp_path / "b")
    assert load(str(tmp_path / "b")).classes == ["cat", "dog"]


def test_a_zip_archive_pickles_as_its_path(tmp_path: Path) -> None:
    source = FolderSource(write_zip(tmp_path / "a.zip", FILES))
    again = pickle.loads(pickle.dumps(source))
    assert [again.item(i).image for i in range(3)] == [source.item(i).image for i in range(3)]


def test_names_in_a_zip_archive_lead_nowhere(tmp_path: Path) -> None:
    data = png(random_pixels(0))
    source = FolderSource(write_zip(tmp_path / "a.zip", {"../../cat/1.png": data, "/dog/1.png": data}))
    assert (source.names(), source.classes) == (["cat/1.png", "dog/1.png"], ["cat", "dog"])
    with pytest.raises(UserError, match=r"1\.png comes twice"):
        FolderSource(write_zip(tmp_path / "b.zip", {"../cat/1.png": data, "cat/1.png": data}))


def test_a_damaged_zip_archive_is_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", FILES, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(FILES["cat/old/2.png"]) + 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.zip: cat/old/2\.png: cannot be read.*CRC"):
        FolderSource(path).item(1)
    path.write_bytes(data[:-30])
    with pytest.raises(UserError, match=r"a\.zip: not a whole zip"):
        FolderSource(path)
    bomb = write_zip(tmp_path / "bomb.zip", {"cat/1.png": b"\0" * 1000})
    data = bytearray(bomb.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 2**31)  # what the directory says that it holds
    bomb.write_bytes(data)
    with pytest.raises(UserError, match=r"1\.png: 2147483648 bytes, more than"):
        FolderSource(bomb).item(0)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_folder(tmp_path / "there", FILES)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "cat").symlink_to(tmp_path / "there" / "cat")
    (tmp_path / "there" / "cat" / "up").symlink_to(tmp_path / "there" / "cat")
    (tmp_path / "src" / "cat" / "3.png").symlink_to(tmp_path / "nowhere")
    source = FolderSource(tmp_path / "src")
    assert source.names() == ["cat/1.png", "cat/3.png", "cat/old/2.png"]
    with pytest.raises(UserError, match=r"cat/3\.png: no such file"):
        source.item(1)


ROWS = {
    "a.csv": "path,label,who\ncat/1.png,tabby,ann\ncat/old/2.png,black,bob\ndog/1.png,tabby,ann\n",
    "b.csv": "cat/1.png,tabby\r\n./cat/old/2.png,black\r\n\r\ndog/1.png,tabby\r\n",
    "c.tsv": "who\tfile_name\tclass\nann\tcat/1.png\ttabby\nbob\tcat/old/2.png\tblack\nann\tdog/1.png\ttabby\n",
    "d.jsonl": '{"file_name": "cat/1.png", "label": "tabby"}\n{"path": "cat/old/2.png", "label": "black"}\n'
    '{"path": "dog/1.png", "label": "tabby", "box": [1, 2]}\n',
    "e.txt": "dog/1.png tabby\ncat/1.png  tabby\n\ncat/old/2.png\tblack\n",
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_labels_file_says_the_classes(tmp_path: Path, name: str, zipped: bool) -> None:
    place = write_zip(tmp_path / "a.zip", FILES) if zipped else write_folder(tmp_path / "photos", FILES)
    (tmp_path / name).write_text("\ufeff" + ROWS[name], encoding="utf-8")
    source = FolderSource(place, tmp_path / name)
    assert source.names() == ["cat/1.png", "cat/old/2.png", "dog/1.png"]
    assert (source.labels, source.classes, source.unlabelled) == ([1, 0, 1], ["black", "tabby"], 0)
    asked = FolderSource(place, tmp_path / name, ["tabby", "white", "black"])
    assert (asked.labels, asked.classes) == ([0, 2, 0], ["tabby", "white", "black"])
    if "who" in ROWS[name]:
        assert source.column("who") == ["ann", "bob", "ann"]
    with pytest.raises(UserError, match="no column 'age'"):
        source.column("age")
    with pytest.raises(UserError, match="'black', which --classes does not name"):
        FolderSource(place, tmp_path / name, ["tabby"])


def test_numbers_in_a_labels_file_are_the_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", FILES)
    file = tmp_path / "labels.txt"
    file.write_text("cat/1.png 7\ndog/1.png 2\n")
    source = FolderSource(folder, file)
    assert (source.labels, source.classes, source.unlabelled) == ([7, 2], None, 1)
    assert FolderSource(folder, file, list("abcdefgh")).classes == list("abcdefgh")
    with pytest.raises(UserError, match="a label is 7, but there are only 3 class names"):
        FolderSource(folder, file, list("abc"))
    file.write_text("cat/1.png 7\ncat/3.png 2\n")
    assert pack(FolderSource(folder, file), tmp_path / "out", max_bad=1) == [
        f"{folder}/cat/3.png: no such file; mend its name or remove what names it"
    ]
    assert labels(load(str(tmp_path / "out")), [0]).tolist() == [7]


@pytest.mark.parametrize(
    ("name", "text", "about"),
    [
        ("a.csv", "path,label\na.png\n", r"a\.csv:2: 1 cells for 2"),
        ("a.csv", "path,who\na.png,ann\n", r"a\.csv:2: no label"),
        ("a.csv", "a.png,1\na.png,2\n", r"a\.csv:2: a\.png is named twice"),
        ("a.csv", "../a.png,1\n", "'../a.png' is not a relative path"),
        ("a.csv", "/a.png,1\n", "is not a relative path"),
        ("a.csv", "", "no rows"),
        ("a.txt", "a.png\n", r"a\.txt:1: no label"),
        ("a.jsonl", '{"path": "a.png", "label": 1}\n{"path"\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '{"path": "a.png", "label": null}\n', r"a\.jsonl:1: no label"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: not an object"),
        ("a.txt", "x.png 1\n", "names none of the 3 images"),
    ],
)
def test_a_labels_file_that_makes_no_sense_is_named(tmp_path: Path, name: str, text: str, about: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=about):
        FolderSource(write_folder(tmp_path / "photos", FILES), tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_labels(tmp_path / "none.csv")


def test_the_pickles_of_the_tests_are_what_pickle_reads() -> None:
    """So that the archive of the tests has the true format: Python 2's strings, numpy's old module names."""
    for files in (cifar_pickles(3), cifar_pickles_of_python3(3), cifar_pickles_of_python3(3, protocol=5)):
        for data in files.values():
            ours, theirs = load_plain(data, "here"), pickle.loads(data, encoding="bytes")
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert np.array_equal(ours[key], value)
                assert type(ours[key]) is type(value)
    assert b"cnumpy.core.multiarray\n_reconstruct" in cifar_pickles(3)["test_batch"]


@pytest.mark.parametrize(
    "array", [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3, dtype=np.int8))]
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_any_order_come_back(array: np.ndarray, protocol: int) -> None:
    assert np.array_equal(load_plain(pickle.dumps(array, protocol), "here"), array)


@pytest.mark.parametrize("files", [cifar_pickles(), cifar_pickles_of_python3(), cifar_pickles_of_python3(protocol=5)])
def test_the_cifar_archive_comes_back_pixel_for_pixel(tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = write_cifar(tmp_path / "cifar-10-python.tar.gz", files)
    for split, batches in {"train": [1, 2, 3, 4, 5] if len(files) > 3 else [1], "test": [6]}.items():
        source = CifarSource(archive, split)
        data = np.concatenate([cifar_batch(seed, 20)[b"data"] for seed in batches])
        pack(source, tmp_path / split)
        shards = load(str(tmp_path / split))
        keys = [int(shards.sample(0, i).key) for i in range(shards.total)]
        assert sorted(keys) == list(range(len(data)))
        assert np.array_equal(images(shards, range(len(data)), None, 3).numpy(), data.reshape(-1, 3, 32, 32)[keys])
        assert labels(shards, range(len(data))).tolist() == [key % 20 % 10 for key in keys]
        assert shards.classes == CIFAR_CLASSES
        assert source.names()[1] == f"automobile_s_{batches[0]:03d}001.png"


class _Evil:
    def __init__(self, flag: Path):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def test_a_malicious_pickle_is_refused_and_nothing_of_it_is_run(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    word = f"touch {flag}".encode()
    evil = [pickle.dumps({b"data": _Evil(flag)}, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    evil += [
        b"(S'" + word + b"'\nios\nsystem\n.",  # INST
        b'cbuiltins\neval\n(S\'__import__("os").system("' + word + b"\")'\ntR.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\nU\x01OK\0K\x01\x87RU\x04xxxxtR.",
        b"\x80\x04\x8c\x11diffpipe.contract\x8c\x09UserError\x93.",
        b"cnumpy\nload\n(S'" + str(flag).encode() + b"'\ntR.",
    ]
    pickle.loads(evil[2])
    assert flag.exists()  # what any other unpickler would have done
    flag.unlink()
    for data in evil:
        archive = write_cifar(tmp_path / "cifar-10-python.tar.gz", cifar_pickles(2) | {"data_batch_3": data})
        with pytest.raises(UserError, match=r"data_batch_3: its pickle would call .* nothing of it was run"):
            CifarSource(archive)
        assert not flag.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"Psomething\n.",
        b"\x80\x02\x82\x01.",
        pickle.dumps(np.array(["words"]), 2),
        pickle.dumps(np.zeros(3), 2),
        python2(np.zeros(4, np.uint8)).replace(b"J\x04\0\0\0", b"J\x05\0\0\0"),
        b"\x80\x02cnumpy\nndarray\n.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    ],
)
def test_a_pickle_that_is_no_data_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="here: not a pickle of plain data"):
        load_plain(data, "here")


@settings(max_examples=150, derandomize=True, database=None, deadline=None)
@given(st.data())
def test_a_damaged_pickle_is_data_or_an_error_of_the_users(data: st.DataObject) -> None:
    good = bytearray(python2({b"a": [1, b"x"], b"b": np.arange(3, dtype=np.uint8)}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(2, len(good) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UserError):
        load_plain(bytes(good), "here")


def test_a_cifar_archive_that_is_none_is_named(tmp_path: Path) -> None:
    path, files = tmp_path / "cifar-10-python.tar.gz", cifar_pickles(2)
    with pytest.raises(UserError, match="CIFAR-10 has train and test"):
        CifarSource(write_cifar(path, files), "valid")
    for lacking in ("data_batch_3", "batches.meta", "data_batch_1"):
        with pytest.raises(UserError, match=f"no {lacking} in it"):
            CifarSource(write_cifar(path, {name: data for name, data in files.items() if name != lacking}))
    for change, about in (
        ({b"data": np.zeros((2, 3000), np.uint8)}, "its data is not bytes in rows of 3072"),
        ({b"labels": [1]}, "not a list of 2 labels"),
        ({b"labels": [1, 10]}, "a label is not a number from 0 to 9"),
    ):
        broken = python2(cifar_batch(1, 2) | change)
        with pytest.raises(UserError, match=f"data_batch_1: {about}"):
            CifarSource(write_cifar(path, files | {"data_batch_1": broken}))
    path.write_bytes(write_cifar(path, files).read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a whole"):
        CifarSource(path)


# Hugging Face


def saved(folder: Path, *, splits: bool = False) -> list[bytes]:
    """A dataset on disk of six PNGs in two classes, and their bytes."""
    datasets = pytest.importorskip("datasets")
    data = [png(random_pixels(i, (8, 8, 3))) for i in range(6)]
    names = datasets.ClassLabel(names=["up", "down"])
    features = datasets.Features({"img": datasets.Image(), "fine": names, "who": datasets.Value("string")})
    rows = {
        "img": [{"bytes": each, "path": f"{i}.png"} for i, each in enumerate(data)],
        "fine": [1, 0, 0, 1, 1, 1],
        "who": list("aabbcc"),
    }
    dataset = datasets.Dataset.from_dict(rows, features=features)
    if splits:
        dataset = datasets.DatasetDict({"train": dataset, "valid": dataset.select([0, 1])})
    dataset.save_to_disk(folder)
    return data


def test_a_saved_dataset_is_packed_byte_for_byte(tmp_path: Path) -> None:
    data = saved(tmp_path / "saved")
    source = HubSource(str(tmp_path / "saved"))
    assert [source.item(i).image for i in range(6)] == data
    assert (source.labels, source.classes) == ([1, 0, 0, 1, 1, 1], ["up", "down"])
    assert (source.column("who"), source.names()[:2]) == (list("aabbcc"), ["0.png", "1.png"])
    pack(source, tmp_path / "out")
    pack(source, tmp_path / "again", workers=2)
    shards = load(str(tmp_path / "out"))
    assert shards.classes == ["up", "down"]
    keys = [int(shards.sample(0, i).key) for i in range(6)]
    assert labels(shards, range(6)).tolist() == [[1, 0, 0, 1, 1, 1][key] for key in keys]
    assert by_bytes(tmp_path / "out") == by_bytes(tmp_path / "again")
    with pytest.raises(UserError, match="leave out --split"):
        HubSource(str(tmp_path / "saved"), "train")
    with pytest.raises(UserError, match="no column 'label'; its columns are img, fine, who"):
        HubSource(str(tmp_path / "saved"), columns=["img", "label"])
    by_word = HubSource(str(tmp_path / "saved"), columns=["img", "who"])
    assert (by_word.labels, by_word.classes) == ([0, 0, 1, 1, 2, 2], ["a", "b", "c"])


def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    saved(tmp_path / "saved", splits=True)
    assert len(HubSource(str(tmp_path / "saved"))) == 6
    assert len(HubSource(str(tmp_path / "saved"), "valid")) == 2
    with pytest.raises(UserError, match="no split 'test', but train, valid"):
        HubSource(str(tmp_path / "saved"), "test")


def test_rows_without_image_or_label(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"a": datasets.Image(), "label": datasets.Value("int64"), "b": datasets.Image()}
    data = {"bytes": png(random_pixels(0)), "path": None}
    rows = {"a": [data, None], "label": [-1, -1], "b": [data, data]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="2 columns of images"):
        HubSource(str(tmp_path / "saved"))
    source = HubSource(str(tmp_path / "saved"), columns=["a"])
    assert source.labels is None
    with pytest.raises(UserError, match="row 1: its a is empty"):
        source.item(1)
    with pytest.raises(UserError, match="no names to split by"):
        source.names()
    rows["label"] = [-1, 3]
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).save_to_disk(tmp_path / "more")
    with pytest.raises(UserError, match="row 0 has no label"):
        HubSource(str(tmp_path / "more"), columns=["a", "label"])


def test_a_dataset_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is a folder of images: what loads it is what loads those of the hub."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = {f"{name}/{i}.png": png(random_pixels(i)) for i, name in enumerate(["cat", "dog", "cat"])}
    folder = write_folder(tmp_path / "photos", data)
    source = HubSource(f"hf:{folder}")
    assert (source.classes, source.labels) == (["cat", "dog"], [0, 0, 1])
    assert [source.item(i).image for i in range(3)] == [data[name] for name in sorted(data)]
    assert source.names() == [str(folder / name) for name in sorted(data)]
    (folder / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match=r"row 2: .*dog/1\.png cannot be read"):
        source.item(2)
    with pytest.raises(UserError, match="cannot be loaded"):
        HubSource(f"hf:{folder}", "nosuch")
    with pytest.raises(UserError, match=r"hf:.*none: cannot be loaded"):
        HubSource(f"hf:{tmp_path}/none")


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'diffpipe\[hf\]'"):
        HubSource("hf:cifar10")
