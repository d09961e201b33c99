"""`diffpipe encode RUN SHARDS OUT`."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
from pathlib import Path

from diffpipe.data.decode import latents
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_index import write_index
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.data.loader.reader import Reader
from diffpipe.errors import UserError
from diffpipe.experiment.run import open_codec
from diffpipe.metrics.evaluate import chunks
from diffpipe.stages.latents import LatentCodec
from diffpipe.train.logs import print_on_rank_zero, progress_bar
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of stage.kind=vae, or one checkpoint in it")
    parser.add_argument("shards", metavar="SHARDS", help="the images to encode, taken at the run's resolution")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the shards of latents and their index")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(args: argparse.Namespace) -> None:
    out = args.out
    with Runtime.start(args.precision, args.device) as runtime:
        codec, found = open_codec(args.run, None, runtime)
        shards = runtime.comm.raise_on_all_ranks(lambda: _images(args.shards, out))
        temporary = out.parent.absolute() / f".{out.absolute().name}.tmp"
        try:
            runtime.comm.raise_on_all_ranks(lambda: _empty(temporary) if runtime.main else None)
            with progress_bar("encode", "image", shards.total, runtime) as bar:

                def write_mine() -> None:
                    for number in range(runtime.rank, len(shards.shards), runtime.world):
                        _write(codec, shards, number, temporary, runtime)
                        bar.update(min(shards.shards[number].samples * runtime.world, shards.total - bar.n))

                runtime.comm.raise_on_all_ranks(write_mine)
            runtime.comm.raise_on_all_ranks(
                lambda: _finish(temporary, out, shards, found.manifest_sha256) if runtime.main else None
            )
        finally:
            if runtime.main:
                shutil.rmtree(temporary, ignore_errors=True)
        shape = "x".join(map(str, codec.vae.latent_shape))
        print_on_rank_zero(
            runtime, f"{shards.total} images as latents of {shape} in {len(shards.shards)} shards: {out}"
        )


def _images(patterns: str, out: Path) -> ShardSet:
    shards = shard_set.load(patterns)
    path = shards.lacking(*shard_set.IMAGE_EXTENSIONS)
    if path is not None:
        raise UserError(f"{path}: some samples have no image to encode; give shards of images")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another name")
    return shards


def _empty(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of a command that was killed
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}; give a folder that can be written") from error


def _write(codec: LatentCodec, shards: ShardSet, number: int, folder: Path, runtime: Runtime) -> None:
    """One shard of images as one of latents: the same samples in the same order, with their labels."""
    shard, reader = shards.shards[number], Reader(shards)
    first, shape = int(shards.counts[:number].sum()), codec.vae.shape
    try:
        with tarfile.open(folder / f"latents-{number:06d}.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            for chunk in chunks(shard.samples):
                images = sequential_reader.images(shards, [first + i for i in chunk], shape.resolution, shape.channels)
                with runtime.autocast():
                    described = codec.describe(images.to(runtime.device)).cpu().numpy()
                for i, row in zip(chunk, described, strict=True):
                    sample = shards.sample(number, i)
                    _add(tar, f"{sample.key}.{latents.LATENTS}", latents.to_bytes(row))
                    if "cls" in sample.members:
                        _add(tar, f"{sample.key}.cls", reader.read(number, sample, "cls"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); free some space") from error


def _finish(temporary: Path, out: Path, shards: ShardSet, sha256: str) -> None:
    write_index(temporary, shards.classes)
    try:
        (temporary / latents.CODEC).write_text(json.dumps({"sha256": sha256}), encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder") from error


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
