"""Shards to a file of compressed images, and back."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from diffpipe.coding.compressed_file import CompressedFile, Header, read_compressed, require_room, write_compressed
from diffpipe.data.decode.image import loss_in_decoding
from diffpipe.data.decode.stack import differ, stack_images
from diffpipe.data.index import shard_set
from diffpipe.data.index.scan import split_name
from diffpipe.data.index.write_index import write_index
from diffpipe.data.packing.output_folder import output_folder
from diffpipe.data.packing.shard_writer import TarWriter
from diffpipe.errors import UserError
from diffpipe.evaluation.compression import coder_of, compress_images, decompress_images
from diffpipe.evaluation.compression_report import CompressionReport
from diffpipe.evaluation.image_formats import format_sizes
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import labelled_images, score_images
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.find_checkpoint import checkpoint_of_file
from diffpipe.experiment.run import Run, open_run
from diffpipe.files import why_unwritable
from diffpipe.train.runtime import Runtime

_SHARD_SAMPLES = 1000


def compress_shards(
    run: Run, shards: str, out: Path, runtime: Runtime, *, n: int | None, seed: int, compare: bool, **options: Any
) -> CompressionReport:
    """Write n images of the shards to the file `out`; None: all. A collective. Raises UserError.

    compare: measure their likelihood and their size in other formats, too. options: those of `compress_images`.
    """

    def prepare() -> ShardImages:
        if out.exists():
            raise UserError(f"{out} exists already; remove it or give another name")
        if not out.absolute().parent.is_dir():
            raise UserError(f"{out}: its folder is missing; make it first, or give another name")
        require_writable(out)
        coder_of(run)
        images = stored_images(shards, run, n)
        require_room(images.keys())
        return images

    images = runtime.comm.raise_on_all_ranks(prepare)
    map_over_ranks(images.n, lambda indices: require_exact(images, indices), runtime)
    compression = compress_images(run, images, runtime, seed=seed, **options)
    size = runtime.comm.on_rank_zero(lambda: write_compressed(out, compression.file))
    if not compare:
        return CompressionReport(compression, size)
    likelihoods = score_images(run, images, seed, runtime, title="nll")
    return CompressionReport(compression, size, likelihoods, format_sizes(images, runtime))


def read_for(path: Path, out: Path) -> CompressedFile:
    """The file at `path`, to be decompressed into the folder `out`. Raises UserError, also where `out` exists."""
    file = read_compressed(path)
    strange = next((key for key in file.header.keys if split_name(f"{key}.png") != (key, "png")), None)
    if strange is not None:
        raise UserError(f"{path}: an image is called {strange[:80]!r}, and none in shards is: take another copy")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; remove it or give another name")
    require_writable(out)
    return file


def require_writable(out: Path) -> None:
    """Raise UserError where a file or folder of this name cannot be made. Nothing is written."""
    reason = None
    try:
        reason = why_unwritable(out.absolute().parent)
        out.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # such as a name that is too long
        reason = error.strerror
    if reason is not None:
        raise UserError(f"{out}: cannot be written ({reason}); give another name")


def decompress_to_shards(path: Path, run: Run, file: CompressedFile, out: Path, runtime: Runtime) -> None:
    """Write the images of a file, opened by `read_compressed`, as shards to the folder `out`. A collective."""
    images = decompress_images(run, file, runtime, path)
    runtime.comm.on_rank_zero(lambda: write_shards(file.header, images, out))


def open_run_of(path: Path, header: Header, run: Path, runtime: Runtime) -> Run:
    """The run that the file at `path` was compressed with: the same checkpoint and weights. A collective.

    run: its directory, or a checkpoint in it. Raises UserError where it has no such checkpoint.
    """
    checkpoint = checkpoint_of_file(run, header.checkpoint, path, runtime)
    name, _, length = header.weights.partition(" ")
    return open_run(checkpoint, (), runtime, raw=name == "raw", ema=float(length) if length else None)


def stored_images(shards: str, run: Run, n: int | None) -> ShardImages:
    """n images of the shards as they are stored, the same that `labelled_images` draws; None: all, in their order.

    Raises UserError where the run's images have another size or fewer channels, since nothing is lost by compression,
    and where a class-conditional run does not know their labels.
    """
    loaded = shard_set.load(shards)
    labelled_images(shards, run, loaded.total if n is None else n)
    images = ShardImages(loaded, run.shape.channels, None, n=n)
    if tuple(images.size) != tuple(run.shape.resolution):
        (height, width), size = images.size, run.shape.resolution.plain()
        raise UserError(
            f"{shards}: its images have {height}x{width} pixels (height x width), and {run.home} makes {size}; "
            f"compression resizes none: pack them with --resolution {size}"
        )
    return images


def require_exact(images: ShardImages, indices: range) -> None:
    """Raise UserError where decoding would change one of these images or make it grey, and where sizes differ."""

    def exact() -> Iterator[tuple[str, bytes]]:
        for place, data in images.encoded(indices):
            if (loss := loss_in_decoding(data, place)) is not None:
                raise UserError(
                    f"{place}: {loss}; compression loses nothing, so first pack the images with "
                    f"`diffpipe pack --format png`"
                )
            yield place, data

    pixels = stack_images(exact(), None, channels=3)
    if tuple(pixels.shape[2:]) != images.size:
        raise UserError(differ(images.place, tuple(pixels.shape), images.size))
    if images.channels == 1 and not (pixels == pixels[:, :1]).all():
        raise UserError(
            f"{images.place}: holds images in colour, and the run's are grey; compression loses nothing, so give "
            f"grey images, or a run of data.channels=3"
        )


def write_shards(header: Header, images: UInt8[Tensor, "n c h w"], out: Path) -> None:
    """Write the images as PNG into shards with their index: whole or not at all. Raises UserError.

    Keys, labels and pixels are those that were compressed. The files' bytes are not: they are written as PNG.
    """
    labels = header.labels or [None] * len(header.keys)
    with output_folder(out) as folder:
        for start in range(0, len(header.keys), _SHARD_SAMPLES):
            part = slice(start, start + _SHARD_SAMPLES)
            name = f"shard-{start // _SHARD_SAMPLES:06d}.tar"
            with TarWriter(folder / name, tarfile.GNU_FORMAT) as tar:
                for key, label, image in zip(header.keys[part], labels[part], images[part].numpy(), strict=True):
                    members = {"png": _png(image)}
                    tar.add(key, members if label is None else members | {"cls": str(label).encode()})
        write_index(folder, header.classes)


def _png(image: UInt8[np.ndarray, "c h w"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()
