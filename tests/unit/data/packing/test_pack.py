from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset.compat import WebDataset

from diffpipe.data import images, labels, load, number_of_classes
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.idx import IdxSource, find_idx, read_idx
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels, write_tar

FASHION = Path(__file__).parents[4] / "configs" / "fashion_mnist" / "shards"


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of coloured images in all kinds of files."""
    root = tmp_path / "pictures"
    for name, kinds in {
        "cat": ["a.png", "b.JPG", "x.y.webp"],
        "ant": ["z.png", "sub/z.bmp"],
        "bee": ["1.jpeg"],
    }.items():
        for i, kind in enumerate(kinds):
            path = root / name / kind
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_pixels(len(name + kind) + i, (10, 14, 3))).save(path)
    (root / "cat" / ".DS_Store").write_bytes(b"")
    (root / "cat" / "notes.txt").write_bytes(b"")
    return root


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Forty images in four classes, as idx files of both splits, one of them gzipped."""
    root = tmp_path / "idx"
    root.mkdir()
    for split, seed in (("train", 0), ("t10k", 1)):
        pixels = random_pixels(seed, (40, 6, 5))
        (root / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (root / f"{split}-labels-idx1-ubyte").write_bytes(idx(np.arange(40, dtype=np.uint8) % 4))
    return root


def source_of(digits: Path, split: str = "train", **options) -> IdxSource:
    files = find_idx(digits, split)
    assert files is not None
    return IdxSource(*files, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_keeps_its_files_and_its_classes(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = FolderSource(folder)
    assert source.skipped == 1
    pack(source, out, shard_samples=4, prefix="train")
    shards = load(f"{out}/train-{{000000..000001}}.tar")
    assert shards.counts.tolist() == [4, 2]
    assert shards.classes == ["ant", "bee", "cat"]
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() not in ("", ".txt") and path.is_file())
    rows = {}
    for shard, path in enumerate(shards.paths):
        data = Path(path).read_bytes()
        for i in range(int(shards.counts[shard])):
            key, members = shards.sample(shard, i)
            rows[int(key)] = {e: data[m.offset : m.offset + m.size] for e, m in members.items()}
    assert sorted(rows) == list(range(6))
    for i, path in enumerate(files):
        name = path.relative_to(folder).parts[0]
        assert rows[i].pop("cls") == str(["ant", "bee", "cat"].index(name)).encode()
        ((extension, data),) = rows[i].items()
        if path.suffix == ".bmp":
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(Image.open(path)))
            assert extension == "png"
        else:
            assert data == path.read_bytes()
            assert extension == {".jpeg": "jpg"}.get(path.suffix, path.suffix[1:].lower())


def test_a_resolution_resizes_and_crops_at_the_centre(folder: Path, tmp_path: Path) -> None:
    pack(FolderSource(folder), tmp_path / "out", encoding=Encoding(resolution=10))
    shards = load(str(tmp_path / "out"))
    assert images(shards, range(6), None, 3).shape == (6, 3, 10, 10)
    ant = next(i for i in range(6) if shards.sample(0, i).key == "00000001")
    original = np.asarray(Image.open(folder / "ant" / "z.png"))
    assert np.array_equal(images(shards, [ant], None, 3)[0].permute(1, 2, 0).numpy(), original[:, 2:12])


def test_images_directly_in_a_folder_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i in range(3):
        (tmp_path / "src" / f"{i}.png").write_bytes(png(random_pixels(i)))
    pack(FolderSource(tmp_path / "src"), tmp_path / "out")
    shards = load(str(tmp_path / "out"))
    assert (shards.total, shards.classes, shards.has("cls"), number_of_classes(shards)) == (3, None, False, 0)


def test_idx_files_come_back_pixel_for_pixel(digits: Path, tmp_path: Path) -> None:
    pack(source_of(digits, "t10k", classes=["a", "b", "c", "d", "e"]), tmp_path / "out", shard_samples=16)
    shards = load(str(tmp_path / "out"))
    assert shards.counts.tolist() == [16, 16, 8]
    assert number_of_classes(shards) == 5
    keys = [int(shards.sample(s, i).key) for s in range(3) for i in range(int(shards.counts[s]))]
    assert sorted(keys) == list(range(40))
    assert keys != sorted(keys)
    assert np.array_equal(images(shards, range(40), None, 1)[:, 0].numpy(), random_pixels(1, (40, 6, 5))[keys])
    assert labels(shards, range(40)).tolist() == [key % 4 for key in keys]


def test_the_same_input_gives_the_same_bytes_and_another_seed_others(digits: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        pack(source_of(digits), tmp_path / name, shard_samples=15, per_class=5, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    a, c = (load(str(tmp_path / name)) for name in "ac")
    assert {a.sample(0, i).key for i in range(15)} != {c.sample(0, i).key for i in range(15)}


def test_per_class_chooses_that_many_of_each(digits: Path, tmp_path: Path) -> None:
    pack(source_of(digits), tmp_path / "out", per_class=7)
    assert labels(load(str(tmp_path / "out")), range(28)).bincount().tolist() == [7] * 4
    with pytest.raises(UserError, match="class 0 has 10 images, fewer than --per-class 11"):
        pack(source_of(digits), tmp_path / "more", per_class=11)
    with pytest.raises(UserError, match="class e has 0 images"):
        pack(source_of(digits, classes=list("abcde")), tmp_path / "more", per_class=1)
    with pytest.raises(UserError, match="needs labels"):
        pack(IdxSource(digits / "train-images-idx3-ubyte.gz"), tmp_path / "more", per_class=1)
    assert not (tmp_path / "more").exists()


def everything(folder: Path) -> dict[tuple[bytes, ...], int]:
    """Each sample's members, byte for byte, and how often it is there."""
    shards = load(str(folder))
    counts: dict[tuple[bytes, ...], int] = {}
    for shard, path in enumerate(shards.paths):
        data = Path(path).read_bytes()
        for i in range(int(shards.counts[shard])):
            members = shards.sample(shard, i).members
            row = tuple(e.encode() + data[m.offset : m.offset + m.size] for e, m in sorted(members.items()))
            counts[row] = counts.get(row, 0) + 1
    return counts


def test_chosen_classes_keep_their_labels(digits: Path, tmp_path: Path) -> None:
    source = source_of(digits, classes=list("abcd"))
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
        pack(source_of(digits), out, only=[0, 4])
    with pytest.raises(UserError, match="--leave-out 7: no such label"):
        pack(source_of(digits, classes=list("abcde")), out, leave_out=[7])
    with pytest.raises(UserError, match="leave no images"):
        pack(source_of(digits), out, leave_out=[3, 2, 1, 0])
    with pytest.raises(UserError, match="leave no images"):
        pack(source_of(digits, classes=list("abcde")), out, only=[4])
    with pytest.raises(UserError, match="--leave-out needs labels"):
        pack(IdxSource(digits / "train-images-idx3-ubyte.gz"), out, leave_out=[0])
    assert not out.exists()


def test_shards_are_packed_again_byte_for_byte(digits: Path, tmp_path: Path) -> None:
    pack(source_of(digits, classes=list("abcd")), tmp_path / "all", shard_samples=15)
    pack(ShardSource(load(str(tmp_path / "all"))), tmp_path / "again", seed=1)
    assert everything(tmp_path / "again") == everything(tmp_path / "all")
    pack(ShardSource(load(str(tmp_path / "all"))), tmp_path / "rest", leave_out=[2])
    rest = load(str(tmp_path / "rest"))
    assert rest.classes == list("abcd")
    assert labels(rest, range(rest.total)).bincount().tolist() == [10, 10, 0, 10]
    assert everything(tmp_path / "rest").items() <= everything(tmp_path / "all").items()
    pack(ShardSource(load(str(tmp_path / "all"))), tmp_path / "small", only=[0], encoding=Encoding(resolution=4))
    assert images(load(str(tmp_path / "small")), range(10), None, 1).shape == (10, 1, 4, 4)


def test_shards_keep_their_other_members(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    rows = {f"{i}.{e}": data for i in range(3) for e, data in {"png": png(random_pixels(i)), "txt": b"words"}.items()}
    write_tar(tmp_path / "src" / "a.tar", rows)
    write_index(tmp_path / "src")
    source = ShardSource(load(str(tmp_path / "src")))
    assert source.labels is None
    pack(source, tmp_path / "out")
    assert everything(tmp_path / "out") == everything(tmp_path / "src")
    with pytest.raises(UserError, match="--only needs labels"):
        pack(source, tmp_path / "more", only=[0])


def test_a_bad_image_is_named_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    bad = folder / "bee" / "2.png"
    bad.write_bytes(b"no image")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="not an image") as caught:
        pack(FolderSource(folder), tmp_path / "out")
    assert str(bad) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_an_out_folder_with_something_in_it_is_left_alone(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pack(source_of(digits), out)
    before = contents(out)
    for path in (out, out / "shard-000000.tar"):
        with pytest.raises(UserError, match="exists already"):
            pack(source_of(digits), path)
    assert contents(out) == before
    with pytest.raises(UserError, match="--prefix"):
        pack(source_of(digits), tmp_path / "other", prefix="../x")


def test_folders_that_cannot_be_packed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(UserError, match="void: no images"):
        FolderSource(tmp_path / "void")
    (folder / "cow").mkdir()
    with pytest.raises(UserError, match="cow: a class without images"):
        FolderSource(folder)
    (folder / "cow").rmdir()
    (folder / "stray.png").write_bytes(png(random_pixels(0)))
    with pytest.raises(UserError, match=r"stray\.png"):
        FolderSource(folder)


def test_idx_files_that_do_not_fit_are_named(digits: Path, tmp_path: Path) -> None:
    pictures, numbers = digits / "train-images-idx3-ubyte.gz", digits / "train-labels-idx1-ubyte"
    with pytest.raises(UserError, match=r"labels-idx1.*3 dimensions"):
        read_idx(numbers, 3)
    with pytest.raises(UserError, match="only 3 class names"):
        IdxSource(pictures, numbers, ["a", "b", "c"])
    with pytest.raises(UserError, match="without labels"):
        IdxSource(pictures, None, ["a"])
    bad = tmp_path / "bad"
    bad.write_bytes(idx(np.zeros(39, dtype=np.uint8)))
    with pytest.raises(UserError, match="39 labels for 40 images"):
        IdxSource(pictures, bad)
    bad.write_bytes(numbers.read_bytes()[:-1])
    with pytest.raises(UserError, match="bad: has 47 bytes, but its header says 48"):
        read_idx(bad, 1)
    bad.write_bytes(pictures.read_bytes()[:-20])
    with pytest.raises(UserError, match="bad: cannot be read"):
        read_idx(bad, 3)
    with pytest.raises(UserError, match="none: cannot be read"):
        read_idx(tmp_path / "none", 1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its files open
@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_the_fashion_mnist_in_the_repository_is_whole_and_balanced(split: str, per_class: int) -> None:
    shards = load(str(FASHION / split))
    assert shards.total == 10 * per_class
    assert shards.classes is not None
    assert (shards.classes[0], shards.classes[9]) == ("T-shirt/top", "Ankle boot")
    assert labels(shards, range(shards.total)).bincount().tolist() == [per_class] * 10
    for shard in range(len(shards.paths)):  # each shard mixes the classes: 100 of 1000 expected, standard deviation 9
        assert abs(labels(shards, range(shard * 1000, shard * 1000 + 1000)).bincount() - 100).max() < 50
    assert images(shards, range(100), None, 1).shape == (100, 1, 28, 28)
    rows = list(WebDataset(shards.paths, shardshuffle=False, empty_check=False))
    assert [row["__key__"] for row in rows[:500]] == [shards.sample(0, i).key for i in range(500)]
    assert len({row["__key__"] for row in rows}) == shards.total
