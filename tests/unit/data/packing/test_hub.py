"""Hugging Face datasets, saved or loaded by name: packed byte for byte."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from diffpipe.data import labels, load
from diffpipe.data.packing.hub import HubSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import by_bytes, write_folder
from tests.support.tars import png, random_pixels


def saved(folder: Path, *, splits: bool = False) -> list[bytes]:
    """A dataset on disk of six PNGs in two classes, and their bytes."""
    datasets = pytest.importorskip("datasets")
    data = [png(random_pixels(i, (8, 8, 3))) for i in range(6)]
    names = datasets.ClassLabel(names=["up", "down"])
    features = datasets.Features({"img": datasets.Image(), "fine": names, "who": datasets.Value("string")})
    rows = {
        "img": [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(data)],
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


def test_an_image_outside_of_the_dataset_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    (tmp_path / "secret.png").write_bytes(png(random_pixels(0)))
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}]}
    kinds = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    table = datasets.Dataset.from_dict(rows, features=kinds)
    table.save_to_disk(tmp_path / "saved")
    info = tmp_path / "saved" / "dataset_info.json"
    tree = json.loads(info.read_text())
    tree["features"] = {"image": {"_type": "Image"}}
    info.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"row 0: its image is the file .*secret\.png, outside of the dataset"):
        HubSource(str(tmp_path / "saved")).item(0)
