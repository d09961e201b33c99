"""Packed images: their encoding, their independence of the number of processes, the split, and failures."""

from __future__ import annotations

import contextlib
import hashlib
import io
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffpipe.data import images, load
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.choose import Split
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.output_folder import output_folder
from diffpipe.data.packing.pack import pack
from diffpipe.data.packing.shards import ShardSource
from diffpipe.data.packing.source import PackItem
from diffpipe.errors import UserError
from tests.support.tars import png, random_pixels, write_tar


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def written(data: bytes, **options) -> Image.Image:
    ((_, result),) = Encoding(**options).members(PackItem("here", data)).items()
    return Image.open(io.BytesIO(result))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sixty images of ten subjects in two classes; the seventh and the fortieth are broken."""
    for i in range(60):
        path = tmp_path / "photos" / f"{'cat' if i % 2 else 'dog'}" / f"subject{i % 10}_{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"<html>" if i in (7, 40) else png(random_pixels(i, (12, 9, 3))))
    return tmp_path / "photos"


COLOUR = Image.fromarray(random_pixels(0, (8, 8, 3)))


@pytest.mark.parametrize(("kind", "extension"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_bytes_are_kept_where_nothing_has_to_change(kind: str, extension: str) -> None:
    data = encoded(COLOUR, kind)
    for resolution in (None, 8):
        assert Encoding(resolution).members(PackItem("here", data)) == {extension: data}
    assert Encoding(background="black").members(PackItem("here", data)) == {extension: data}
    for resized in (Encoding(4), Encoding(format="png")):
        ((name, result),) = resized.members(PackItem("here", data)).items()
        assert (name, result[:8]) == ("png", b"\x89PNG\r\n\x1a\n")


def test_png_is_lossless_and_quality_is_applied() -> None:
    data = encoded(COLOUR, "BMP")
    assert np.array_equal(np.asarray(written(data)), np.asarray(COLOUR))
    for kind in ("jpeg", "webp"):
        assert written(data, format=kind).format == kind.upper()
        sizes = [len(Encoding(format=kind, quality=q).members(PackItem("", data)).popitem()[1]) for q in (10, 60, 100)]
        assert sizes == sorted(set(sizes))
    red = Image.new("RGB", (16, 16), "blue")
    red.paste("red", (3, 3, 4, 16))  # one pixel wide: at half the chroma resolution it would be purple
    assert written(encoded(red), format="jpeg").getpixel((3, 9))[0] > 220  # type: ignore[index]


def test_a_resize_is_pils_bicubic() -> None:
    wide = Image.fromarray(random_pixels(1, (30, 50, 3)))
    expected = wide.resize((17, 10), Image.Resampling.BICUBIC).crop((3, 0, 13, 10))
    assert np.array_equal(np.asarray(written(encoded(wide), resolution=10)), np.asarray(expected))


def test_wide_cmyk_and_rotated_images_become_plain_ones() -> None:
    wide = np.arange(0, 65536, 257 * 4, dtype=np.uint16).reshape(8, 8)
    assert np.array_equal(np.asarray(written(encoded(Image.fromarray(wide)), format="png")), np.rint(wide / 257))
    ink = COLOUR.convert("CMYK")
    there = Image.open(io.BytesIO(encoded(ink, "JPEG", quality=100))).convert("RGB")
    assert np.array_equal(np.asarray(written(encoded(ink, "JPEG", quality=100), format="png")), np.asarray(there))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: clockwise by 90 degrees it is upright
    turned = written(encoded(COLOUR, exif=exif), format="png")
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(COLOUR), -1))
    assert not turned.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_blended_with_the_background(mode: str) -> None:
    image = COLOUR.convert(mode)
    image.putalpha(Image.fromarray(random_pixels(5)))
    data = encoded(image)
    assert Encoding().members(PackItem("here", data)) == {"png": data}
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    for colour, value in (("#ff8000", [255, 128, 0]), ("black", [0, 0, 0]), (None, [255, 255, 255])):
        expected = rgba[..., :3] * alpha + np.array(value) * (1 - alpha)
        result = written(data, background=colour, format="keep" if colour else "png").convert("RGB")
        assert np.abs(np.asarray(result) - expected).max() <= 1


def test_the_bytes_do_not_depend_on_the_number_of_processes(photos: Path, tmp_path: Path) -> None:
    bad = {}
    for workers in (0, 1, 2):
        out = tmp_path / f"{workers}"
        options = {
            "max_bad_samples": 2,
            "shard_samples": 13,
            "encoding": Encoding(8),
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


def test_a_sample_with_two_images_is_not_resized(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    write_tar(tmp_path / "src" / "a.tar", {"0.png": png(random_pixels(0)), "0.jpg": encoded(COLOUR, "JPEG")})
    write_index(tmp_path / "src")
    source = ShardSource(load(str(tmp_path / "src")))
    pack(source, tmp_path / "same")
    with pytest.raises(UserError, match=r"0\.png: has a \.jpg beside its image"):
        pack(source, tmp_path / "small", encoding=Encoding(4))


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


def test_the_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    debris = tmp_path / ".out.packing" / "whole"
    debris.mkdir(parents=True)
    (debris / "shard-000000.tar").write_bytes(b"half")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.png").write_bytes(png(random_pixels(0)))
    pack(FolderSource(tmp_path / "src"), tmp_path / "out", prefix="new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.safetensors", "new-000000.tar"]


def test_the_empty_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".out.packing").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shard-000000.tar").write_bytes(b"whole")
    with pytest.raises(UserError, match="out exists already"), output_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt), output_folder(tmp_path / "out") as folder:
        (folder / "half").write_bytes(b"")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
