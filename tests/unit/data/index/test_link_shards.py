"""The index of a folder that cannot be written lies elsewhere, beside links to the shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.__main__ import main
from diffpipe.data import images, load
from diffpipe.data.index.link_shards import link_shards
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.open_source import open_source
from diffpipe.errors import UserError
from tests.support.tars import write_shards


def test_an_index_elsewhere_is_named_in_the_place_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "read only", tmp_path / "new" / "index"
    write_shards(source, [3, 4])
    before = sorted(source.iterdir())
    assert main(["index", str(source), "--out", str(out), "--workers", "0"]) == 0
    assert sorted(source.iterdir()) == before
    assert capsys.readouterr().out.startswith(f"{out}: 2 shards, 7 samples, ")
    shards = load(str(out))
    write_index(source)
    beside = load(str(source))
    assert shards.fingerprint == beside.fingerprint
    assert images(shards, range(7), None, 1).equal(images(beside, range(7), None, 1))
    assert load(f"{out}/shard-001.tar").total == 4
    assert len(open_source(str(out))) == 7


def test_links_follow_the_folder_when_it_is_indexed_again(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [1, 1, 1])
    (tmp_path / "a" / "codec.json").write_text("{}")
    write_index(tmp_path / "a", out=tmp_path / "out")
    (tmp_path / "a" / "shard-002.tar").unlink()
    write_index(tmp_path / "a", out=tmp_path / "out", classes=["x", "y", "z"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "codec.json",
        "index.safetensors",
        "shard-000.tar",
        "shard-001.tar",
    ]
    write_index(tmp_path / "a", out=tmp_path / "out")
    assert load(str(tmp_path / "out")).classes == ["x", "y", "z"]
    write_index(tmp_path / "a", out=tmp_path / "a" / ".." / "a")  # the folder itself
    assert not (tmp_path / "a" / "shard-000.tar").is_symlink()


def test_tars_that_lie_there_and_a_file_are_left_alone(tmp_path: Path) -> None:
    write_shards(tmp_path / "a", [1])
    write_shards(tmp_path / "b", [1])
    with pytest.raises(UserError, match=r"holds tars itself, such as shard-000\.tar"):
        link_shards(tmp_path / "a", ["shard-000.tar"], tmp_path / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        link_shards(tmp_path / "a", ["shard-000.tar"], tmp_path / "file")
