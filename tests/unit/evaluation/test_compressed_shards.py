"""Shards to a file and back: the same keys, labels and pixels; the right run and images of its size."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffpipe.coding.compressed_file import Block, CompressedFile, Header, message_sha256, write_compressed
from diffpipe.data.index import shard_set
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.encode import Encoding
from diffpipe.data.packing.folder import FolderSource
from diffpipe.data.packing.open_source import open_source
from diffpipe.data.packing.pack import pack
from diffpipe.errors import UserError
from diffpipe.evaluation import compressed_shards
from diffpipe.evaluation.compressed_shards import (
    compress_shards,
    open_run_of,
    read_for,
    require_exact,
    require_writable,
    stored_images,
    write_shards,
)
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.experiment.run import Run
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.runtime import Runtime
from tests.support.commands import SHARDS
from tests.support.runs import Noise, indexed_shards, opened_run, saved_run
from tests.support.stage_cases import CASES, SHAPE
from tests.support.tars import write_tar

HEADER = Header(
    stage="ddpm",
    checkpoint="0" * 64,
    weights="ema",
    coded_on={},
    shape=(1, 8, 8),
    keys=["b/long name " + "x" * 120, "a", "c"],
    labels=[2, 0, 1],
    classes=["shirt", "boot", "bag"],
    seed=0,
    blocks=[],
)


def unconditional_vae(home: Path) -> Run:
    words = ("stage.conditional=false",)
    stage = CASES["vae"].experiment(*words).stage.build(SHAPE, {})
    return opened_run(stage, home, *CASES["vae"].words, *words, case="vae")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_shards_hold_the_keys_labels_and_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    monkeypatch.setattr(compressed_shards, "_SHARD_SAMPLES", 2)
    pixels = torch.arange(3 * channels * 64).reshape(3, channels, 8, 8).to(torch.uint8)
    write_shards(HEADER, pixels, tmp_path / "out")
    loaded = shard_set.load(str(tmp_path / "out"))
    images = ShardImages(loaded, channels, None)
    assert images.keys() == HEADER.keys
    assert images.labels(range(3)).tolist() == HEADER.labels
    assert torch.equal(images.images(range(3)), pixels)
    assert len(loaded.shards) == 2
    assert loaded.classes == HEADER.classes
    with pytest.raises(UserError, match="exists already"):
        write_shards(HEADER, pixels, tmp_path / "out")


def test_without_labels_the_shards_have_none(tmp_path: Path) -> None:
    header = dataclasses.replace(HEADER, labels=None, classes=None)
    write_shards(header, torch.zeros(3, 1, 8, 8, dtype=torch.uint8), tmp_path / "out")
    assert shard_set.load(str(tmp_path / "out")).lacking("cls") is not None


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    run = opened_run(Noise(), tmp_path / "run", case="vae", classes=10)
    with pytest.raises(
        UserError, match=r"have 28x28 pixels \(height x width\), and .* makes 8; compression resizes none"
    ):
        stored_images(str(SHARDS / "test"), run, None)


def test_images_in_colour_are_refused_by_a_grey_run(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "colour").mkdir()
    Image.new("RGB", (8, 8), (200, 10, 0)).save(tmp_path / "colour" / "a.png")
    pack(FolderSource(tmp_path / "colour"), tmp_path / "packed")
    run = unconditional_vae(tmp_path / "run")
    with pytest.raises(UserError, match="holds images in colour, and the run's are grey"):
        compress_shards(run, str(tmp_path / "packed"), tmp_path / "a.dpi", runtime, n=None, seed=0, compare=False)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.fromarray(np.full((8, 8), 700, np.uint16)), "it has 16 bits per channel"),
        (Image.new("LA", (8, 8), (3, 100)), "it has transparent pixels"),
        (Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "it has transparent pixels"),
    ],
)
def test_images_that_decoding_would_change_are_refused(
    tmp_path: Path, runtime: Runtime, image: Image.Image, reason: str
) -> None:
    (tmp_path / "shards").mkdir()
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_tar(tmp_path / "shards" / "0.tar", {"a.png": buffer.getvalue(), "a.cls": b"1"})
    write_index(tmp_path / "shards")
    run = unconditional_vae(tmp_path / "run")
    out = tmp_path / "a.dpi"
    with pytest.raises(UserError, match=rf"a: {reason}, .*; compression loses nothing, so first pack the images"):
        compress_shards(run, str(tmp_path / "shards"), out, runtime, n=None, seed=0, compare=False)
    assert not out.exists()
    pack(
        open_source(str(tmp_path / "shards")), tmp_path / "png", encoding=Encoding(format="png")
    )  # the remedy it names
    compress_shards(run, str(tmp_path / "png"), out, runtime, n=None, seed=0, compare=False)


def test_an_output_that_exists_or_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, runtime: Runtime
) -> None:
    run, shards = unconditional_vae(tmp_path / "run"), indexed_shards(tmp_path / "shards", 3)
    (tar,) = (tmp_path / "shards").glob("*.tar")
    before = tar.read_bytes()
    for out, reason in (
        (tar, "exists already"),
        (tmp_path, "exists already"),
        (tmp_path / "none" / "a.dpi", "its folder is missing"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UserError, match=reason):
            compress_shards(run, shards, out, runtime, n=None, seed=0, compare=False)
    assert tar.read_bytes() == before
    with pytest.raises(UserError, match="cannot be written"):
        require_writable(tar / "out")


def test_the_images_are_those_that_a_likelihood_draws(tmp_path: Path) -> None:
    run = opened_run(Noise(), tmp_path / "run", case="autoencoder")
    shards = indexed_shards(tmp_path / "shards", 9)
    assert stored_images(shards, run, None).keys() == ShardImages(shard_set.load(shards), 1, None).keys()
    drawn = stored_images(shards, run, 4)
    assert drawn.keys() == ShardImages(shard_set.load(shards), 1, None, n=4).keys()


def test_the_run_is_opened_at_the_checkpoint_of_the_file(tmp_path: Path, runtime: Runtime) -> None:
    saved_run(tmp_path / "run", steps=(1, 2))
    first, second = checkpoints.committed(tmp_path / "run" / "checkpoints")
    for checkpoint in (first, second):
        for weights in ("ema", "raw"):
            digest = checkpoints.manifest_sha256(checkpoint)
            assert digest is not None
            header = dataclasses.replace(HEADER, checkpoint=digest, weights=weights)
            run = open_run_of(Path("a.dpi"), header, tmp_path / "run", runtime)
            assert (run.checkpoint.path.name, run.weights) == (checkpoint.name, weights)
    with pytest.raises(UserError, match=r"a\.dpi: was made with the checkpoint .* give the run that it was made with"):
        open_run_of(Path("a.dpi"), HEADER, tmp_path / "run", runtime)


def test_an_output_that_exists_is_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "images.dpi").write_bytes(b"no such file")
    with pytest.raises(UserError, match="not a file of compressed images"):
        read_for(tmp_path / "images.dpi", tmp_path)


def test_grey_images_in_colour_files_of_one_size_are_exact(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    members: dict[str, bytes] = {}
    for name, size in {"a": 8, "b": 8, "c": 4}.items():
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), (7, 7, 7)).save(buffer, "PNG")
        members[f"{name}.png"] = buffer.getvalue()
    write_tar(tmp_path / "shards" / "0.tar", members)
    write_index(tmp_path / "shards")
    images = ShardImages(shard_set.load(str(tmp_path / "shards")), 1, None)
    require_exact(images, range(2))
    for indices in (range(1, 3), range(2, 3)):
        with pytest.raises(UserError, match=r"it has 4x4 pixels \(height x width\) and the images before it 8x8"):
            require_exact(images, indices)


@pytest.mark.parametrize("key", ["", "a.b", "a/"])
def test_a_name_that_no_shard_gives_back_is_refused_before_anything_is_decoded(tmp_path: Path, key: str) -> None:
    message = np.zeros(0, np.uint32)
    block = Block([1], 0, message_sha256(message), "")
    header = dataclasses.replace(HEADER, keys=[key], labels=[0], blocks=[block])
    write_compressed(tmp_path / "images.dpi", CompressedFile(header, [message]))
    with pytest.raises(UserError, match=r"images\.dpi: an image is called '.*', and none in shards is"):
        read_for(tmp_path / "images.dpi", tmp_path / "out")
