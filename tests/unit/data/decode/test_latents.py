"""Shards of latents: they are read as written, and refused where they cannot be trained on."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from diffpipe.data.config import DataConfig
from diffpipe.data.decode.latents import CODEC, LATENTS, are_latents, encoder, from_bytes, to_bytes
from diffpipe.data.index import shard_set
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.dataset import check
from diffpipe.data.loader.stream import batches
from diffpipe.errors import BadSampleError, UserError
from diffpipe.resolution import square
from tests.support.tars import write_tar

LATENT = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
CODES = np.arange(21, dtype=np.int32).reshape(1, 1, 21)


def shards(folder: Path, sha256: str | None = "a" * 64) -> shard_set.ShardSet:
    folder.mkdir()
    members = [(f"{i}.{suffix}", data) for i in range(6) for suffix, data in _members(i).items()]
    write_tar(folder / "x.tar", members)
    write_index(folder)
    if sha256:
        (folder / CODEC).write_text(json.dumps({"sha256": sha256}))
    return shard_set.load(str(folder))


def _members(i: int) -> dict[str, bytes]:
    return {LATENTS: to_bytes(LATENT + np.float32(i)), "cls": str(i % 3).encode()}


@pytest.mark.parametrize("latents", [LATENT, CODES], ids=["latents", "codes"])
def test_what_was_written_is_read_back(latents: np.ndarray) -> None:
    read = from_bytes(to_bytes(latents), "x")
    assert read.dtype == latents.dtype
    assert np.array_equal(read, latents)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_has_each_samples_latents_and_label(tmp_path: Path, workers: int) -> None:
    latents = shards(tmp_path / "a")
    assert are_latents(latents)
    config = DataConfig(train="x", batch_size=6, resolution=square(28), channels=1, labels=True, workers=workers)
    stream = batches(config, latents, seed=0)
    batch = next(stream)
    stream.close()
    assert batch.images.is_contiguous()
    assert sorted(batch.keys) == [str(i) for i in range(6)]
    for key, latent, label in zip(batch.keys, batch.images.numpy(), batch.labels.tolist(), strict=True):  # pyright: ignore[reportOptionalMemberAccess]
        assert np.array_equal(latent, LATENT + np.float32(int(key)))
        assert label == int(key) % 3


def test_latents_of_two_shapes_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {f"{i}.{LATENTS}": to_bytes(LATENT[: 2 + i]) for i in range(2)})
    write_index(tmp_path)
    config = DataConfig(train="x", batch_size=2, resolution=square(28), channels=1, workers=0)
    with pytest.raises(UserError, match=r"x\.tar: [01]: latents of \(\d, 3, 2\), and others of .*one codec"):
        next(batches(config, shard_set.load(str(tmp_path)), seed=0))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array",
        to_bytes(LATENT)[:-4],
        npy(LATENT[0]),
        npy(LATENT.astype(np.float16)),
        npy(CODES[0]),
        npy(CODES.astype(np.int64)),
        npy(CODES.reshape(1, 3, 7)),
        npy(np.array([{}])),
    ],
)
def test_invalid_latents_are_refused_and_never_unpickled(data: bytes) -> None:
    with pytest.raises(UserError, match=r"here: (not|neither) .*encode the shard again"):
        from_bytes(data, "here")


def test_all_shards_must_name_the_same_encoder(tmp_path: Path) -> None:
    first, second = shards(tmp_path / "a"), shards(tmp_path / "b", "b" * 64)
    assert encoder(first) == "a" * 64
    with pytest.raises(UserError, match="encoded by several checkpoints"):
        encoder(shard_set.ShardSet([*first.shards, *second.shards]))
    with pytest.raises(UserError, match=r"codec\.json: it does not name the checkpoint"):
        encoder(shards(tmp_path / "c", None))


@pytest.mark.parametrize("augmentation", [{"flip": True}, {"crop": "random"}])
def test_latents_are_not_augmented(tmp_path: Path, augmentation: dict[str, object]) -> None:
    config = DataConfig.model_validate({"train": "x", "batch_size": 2, "resolution": 8, **augmentation})
    with pytest.raises(UserError, match="latents cannot be flipped or cropped"):
        check(config, shards(tmp_path / "a"))


@pytest.mark.parametrize(
    "shape", ["(10000000000000,)", "(1000000000000000000000000000000,)", "(-1,)", "(2.5,)", "(" * 900]
)
def test_an_impossible_shape_is_a_bad_sample(shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(16)
    with pytest.raises(BadSampleError, match=r"^x: not a readable \.npy file"):
        from_bytes(data, "x")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sha256": NaN}', "[1]", "x" * 100_000])
def test_a_codec_file_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    latents = shards(tmp_path / "a")
    (tmp_path / "a" / CODEC).write_text(text)
    with pytest.raises(UserError, match="does not name the checkpoint that encoded the latents") as caught:
        encoder(latents)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
