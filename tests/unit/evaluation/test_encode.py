"""Shards of latents or codes: the codec's own description of each image, with keys and labels; whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffpipe.data.decode.latents import are_latents, encoder, from_bytes
from diffpipe.data.index import shard_set
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader import sequential_reader
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import UserError
from diffpipe.evaluation.encode import encode_shards
from diffpipe.resolution import square
from diffpipe.stages.codes import CodeCodec
from diffpipe.stages.latents import LatentCodec
from diffpipe.stages.vae import VAE
from diffpipe.stages.vq import VQ
from diffpipe.train.runtime import Runtime
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES
from tests.support.tars import png, random_pixels, write_tar

SHA256 = "ab" * 32


def untrained(name: str) -> LatentCodec | CodeCodec:
    stage = CASES[name].stage()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = stage.networks()
    if isinstance(stage, VAE):
        return LatentCodec(stage, nets, None)
    assert isinstance(stage, VQ)
    return CodeCodec(stage, nets)


@pytest.fixture(scope="module")
def codec() -> LatentCodec | CodeCodec:
    return untrained("latent_vae")


@pytest.mark.parametrize("name", ["latent_vae", "vq", "vq, fsq", "vq, scales"])
def test_each_shard_of_images_becomes_one_of_their_latents(tmp_path: Path, runtime: Runtime, name: str) -> None:
    codec = untrained(name)
    images = encode_shards(codec, SHA256, indexed_shards(tmp_path / "images", 3, 2), tmp_path / "out", runtime)
    encoded = shard_set.load(str(tmp_path / "out"))
    assert are_latents(encoded)
    assert encoder(encoded) == SHA256
    assert encoded.counts.tolist() == images.counts.tolist() == [3, 2]
    assert sequential_reader.labels(encoded, range(5)).tolist() == [0, 1, 2, 0, 1]
    expected = codec.describe(sequential_reader.images(images, range(5), square(8), 1))
    samples = [(shard, i) for shard, count in enumerate(encoded.counts.tolist()) for i in range(count)]
    for number, (shard, i) in enumerate(samples):
        sample = encoded.sample(shard, i)
        assert sample.key == images.sample(shard, i).key
        latents = torch.from_numpy(from_bytes(Reader(encoded).read(shard, sample, "latents.npy"), ""))
        torch.testing.assert_close(latents, expected[number], rtol=1e-4, atol=1e-5)


def test_an_image_that_cannot_be_read_leaves_no_partial_output(
    tmp_path: Path, runtime: Runtime, codec: LatentCodec | CodeCodec
) -> None:
    (tmp_path / "images").mkdir()
    write_tar(tmp_path / "images" / "0.tar", {"0.png": png(random_pixels(0)), "1.png": b"no image"})
    write_index(tmp_path / "images")
    with pytest.raises(UserError, match=r"0\.tar: 1"):
        encode_shards(codec, SHA256, str(tmp_path / "images"), tmp_path / "out", runtime)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_shards_without_images_and_a_folder_with_files_are_refused(
    tmp_path: Path, runtime: Runtime, codec: LatentCodec | CodeCodec
) -> None:
    images, out = indexed_shards(tmp_path / "images", 2), tmp_path / "out"
    encode_shards(codec, SHA256, images, out, runtime)
    before = sorted(out.iterdir())
    with pytest.raises(UserError, match="exists already; remove it or give another name"):
        encode_shards(codec, SHA256, images, out, runtime)
    with pytest.raises(UserError, match="some samples have no image to encode"):
        encode_shards(codec, SHA256, str(out), tmp_path / "again", runtime)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="give a folder that can be written"):
        encode_shards(codec, SHA256, images, tmp_path / "file" / "out", runtime)
    assert sorted(out.iterdir()) == before
