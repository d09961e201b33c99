"""The choice of samples by label, by number per class, and by groups for a test part."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from diffpipe.data import labels, load
from diffpipe.data.packing.choose import Split
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.idx import IdxSource
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from tests.support.archives import idx_source
from tests.support.tars import png, random_pixels


def test_per_class_chooses_that_many_of_each(digits: Path, tmp_path: Path) -> None:
    pack(idx_source(digits), tmp_path / "out", per_class=7)
    assert labels(load(str(tmp_path / "out")), range(28)).bincount().tolist() == [7] * 4
    with pytest.raises(UserError, match="class 0 has 10 images, fewer than --per-class 11"):
        pack(idx_source(digits), tmp_path / "more", per_class=11)
    with pytest.raises(UserError, match="class e has 0 images"):
        pack(idx_source(digits, classes=list("abcde")), tmp_path / "more", per_class=1)
    with pytest.raises(UserError, match="needs labels"):
        pack(IdxSource(digits / "train-images-idx3-ubyte.gz"), tmp_path / "more", per_class=1)
    assert not (tmp_path / "more").exists()


def test_chosen_classes_keep_their_labels(digits: Path, tmp_path: Path) -> None:
    source = idx_source(digits, classes=list("abcd"))
    pack(source, tmp_path / "rest", leave_out=[1])
    pack(source, tmp_path / "one", only=[1])
    pack(source, tmp_path / "few", only=[0, 3], per_class=2)
    rest, one, few = (load(str(tmp_path / name)) for name in ("rest", "one", "few"))
    assert labels(rest, range(rest.total)).bincount().tolist() == [10, 0, 10, 10]
    assert labels(one, range(one.total)).tolist() == [1] * 10
    assert labels(few, range(few.total)).sort().values.tolist() == [0, 0, 3, 3]
    assert rest.classes == list("abcd")
    assert {int(one.sample(0, i).key) for i in range(10)} == set(range(1, 40, 4))


def test_labels_that_cannot_be_chosen_are_named_and_nothing_is_written(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="--only 4: no such label; the labels are 0 to 3"):
        pack(idx_source(digits), out, only=[0, 4])
    with pytest.raises(UserError, match="--leave-out 7: no such label"):
        pack(idx_source(digits, classes=list("abcde")), out, leave_out=[7])
    with pytest.raises(UserError, match="leave no images"):
        pack(idx_source(digits), out, leave_out=[3, 2, 1, 0])
    with pytest.raises(UserError, match="leave no images"):
        pack(idx_source(digits, classes=list("abcde")), out, only=[4])
    with pytest.raises(UserError, match="--leave-out needs labels"):
        pack(IdxSource(digits / "train-images-idx3-ubyte.gz"), out, leave_out=[0])
    assert not out.exists()


def test_a_group_is_in_one_part_which_its_hash_decides(photos: Path, tmp_path: Path) -> None:
    def tested(group: str) -> bool:
        return int(hashlib.sha256(group.encode()).hexdigest()[:16], 16) / 2**64 < 0.4

    def parts(name: str, **options) -> dict[str, set[str]]:
        source = FolderSource(photos)
        pack(source, tmp_path / name, max_bad_samples=2, split=Split(r"(subject\d)_", 0.4), **options)
        sets = {part: load(str(tmp_path / name / part)) for part in ("train", "test")}
        return {
            part: {source.paths[int(shards.sample(0, i).key)] for i in range(shards.total)}
            for part, shards in sets.items()
        }

    whole_set = parts("all")
    assert sum(map(len, whole_set.values())) == 58
    for part, paths in whole_set.items():
        assert {tested(path.split("/")[1][:8]) for path in paths} == {part == "test"}
    assert parts("shuffled", seed=9) == whole_set
    for path in [*photos.rglob("*[13].png")]:
        path.unlink()
    fewer = parts("fewer")
    assert all(fewer[part] <= whole_set[part] for part in fewer)
    assert load(str(tmp_path / "all" / "test")).classes == ["cat", "dog"]


def test_groups_may_be_folders_or_a_column(tmp_path: Path) -> None:
    rows = ["path,label,who"]
    for i in range(40):
        path = tmp_path / "photos" / f"visit{i % 8}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(random_pixels(i)))
        rows.append(f"visit{i % 8}/{i}.png,{i % 3},patient{i % 4}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    source = FolderSource(tmp_path / "photos", tmp_path / "labels.csv")
    for by, groups in (("group", 8), ("column:who", 4)):
        pack(source, tmp_path / f"by {groups}", split=Split(by, 0.5))
        parts = []
        for part in ("train", "test"):
            shards = load(str(tmp_path / f"by {groups}" / part))
            keys = [int(shards.sample(0, i).key) for i in range(shards.total)]
            named = [source.paths[key].split("/")[0] if by == "group" else source.column("who")[key] for key in keys]
            parts.append(set(named))
        assert (len(parts[0] | parts[1]), parts[0] & parts[1]) == (groups, set())


def test_a_split_that_cannot_be_made_is_refused(photos: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "a.png").write_bytes(png(random_pixels(0)))
    for source, split, about in (
        (FolderSource(photos), Split("subject(1)?_"), "none of the .* groups|in no group"),
        (FolderSource(photos), Split("nowhere"), r"cat/subject1_01\.png is in no group"),
        (FolderSource(photos), Split("("), "not a regular expression"),
        (FolderSource(photos), Split("group", 1e-9), "none of the 2 groups falls to test"),
        (FolderSource(flat), Split("group"), r"a\.png is in no group"),
        (FolderSource(photos), Split("column:who"), "no labels file"),
    ):
        with pytest.raises(UserError, match=about):
            pack(source, tmp_path / "out", split=split)
    assert not (tmp_path / "out").exists()
