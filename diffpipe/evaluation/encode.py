"""Encode shards of images to shards of latents or codes, to train a latent diffusion or a model of codes on."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from diffpipe.data.decode import latents
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader import sequential_reader
from diffpipe.data.loader.reader import Reader
from diffpipe.data.packing.shard_writer import TarWriter
from diffpipe.errors import UserError
from diffpipe.evaluation.map_over_ranks import on_rank_zero
from diffpipe.files import atomic_write
from diffpipe.metrics.feature_sets import chunks
from diffpipe.progress_bar import progress_bar
from diffpipe.stages.shard_codec import ShardCodec
from diffpipe.train.runtime import Runtime


def encode_shards(codec: ShardCodec, sha256: str, patterns: str, out: Path, runtime: Runtime) -> ShardSet:
    """Write one shard of latents to `out` for each shard of images: whole and indexed, or not at all. A collective.

    sha256: of the codec's checkpoint, which the latents name. Returns the shards of images. Raises UserError where a
    sample has no image or `out` exists.
    """
    shards = runtime.comm.raise_on_all_ranks(lambda: _images(patterns, out))
    temporary = out.parent.absolute() / f".{out.absolute().name}.tmp"
    try:
        on_rank_zero(runtime, lambda: _make_empty(temporary))
        with progress_bar("encode", "image", shards.total, shown=runtime.main) as bar:

            def write_share() -> None:
                for number in range(runtime.rank, len(shards.shards), runtime.world):
                    _write_shard(codec, shards, number, temporary, runtime)
                    bar.update(min(shards.shards[number].samples * runtime.world, shards.total - bar.n))

            runtime.comm.raise_on_all_ranks(write_share)
        on_rank_zero(runtime, lambda: _commit(temporary, out, shards, sha256))
    finally:
        if runtime.main:
            shutil.rmtree(temporary, ignore_errors=True)
    return shards


def _images(patterns: str, out: Path) -> ShardSet:
    shards = shard_set.load(patterns)
    lacking = shards.lacks_images()
    if lacking is not None:
        raise UserError(f"{lacking} to encode; give shards of images")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another name")
    return shards


def _make_empty(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted command left it
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error


def _write_shard(codec: ShardCodec, shards: ShardSet, number: int, folder: Path, runtime: Runtime) -> None:
    """Encode one shard: the same samples in the same order, with their labels."""
    shard, reader = shards.shards[number], Reader(shards)
    first, shape = int(shards.counts[:number].sum()), codec.images
    try:
        with TarWriter(folder / f"latents-{number:06d}.tar", tarfile.GNU_FORMAT) as tar:
            for chunk in chunks(shard.samples):
                images = sequential_reader.images(shards, [first + i for i in chunk], shape.resolution, shape.channels)
                with runtime.autocast():
                    encoded = codec.describe(images.to(runtime.device)).cpu().numpy()
                for i, row in zip(chunk, encoded, strict=True):
                    sample = shards.sample(number, i)
                    members = {latents.LATENTS: latents.to_bytes(row)}
                    if "cls" in sample.members:
                        members["cls"] = reader.read(number, sample, "cls")
                    tar.add(sample.key, members)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free some space") from error


def _commit(temporary: Path, out: Path, shards: ShardSet, sha256: str) -> None:
    write_index(temporary, shards.classes)
    try:
        atomic_write(temporary / latents.CODEC, json.dumps({"sha256": sha256}))
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder") from error
