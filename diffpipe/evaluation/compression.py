"""Images compressed losslessly by a run's likelihood: blocks shared by the ranks, each decoded independently.

The bits of a network's output depend on the batch's shape, by the last digits of a UNet's and a VAE's float32, on the
processor, and may depend on the threads. So a file says which images went through the networks together, every process
computes with one thread, and another machine is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from diffpipe.coding.compressed_file import LARGEST_GROUP, Block, CompressedFile, Header, message_sha256
from diffpipe.coding.image_coder import Compresses, ImageCoder, Strides
from diffpipe.coding.message import CodingError, Message
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import is_conditional, require_scored
from diffpipe.evaluation.same_machine import coded_on, require_same_machine
from diffpipe.experiment.run import Run
from diffpipe.plural import plural
from diffpipe.progress_bar import progress_bar
from diffpipe.rng import fold_in
from diffpipe.train.runtime import Runtime

BLOCK, BATCH = 256, 32


class CompressedBlock(NamedTuple):
    """A block of a file, its message, and the bits of it that the encoder began with."""

    block: Block
    message: np.ndarray
    initial_bits: int


class Compression(NamedTuple):
    """Compressed images. initial_bits: of all blocks together."""

    file: CompressedFile
    initial_bits: int

    @property
    def bits(self) -> int:
        """The length of all messages, initial bits included."""
        return sum(32 * len(message) for message in self.file.messages)

    @property
    def bits_per_dim(self) -> float:
        return self.bits / self.file.header.dims


def coder_of(run: Run) -> ImageCoder:
    """The run's coder. Raises UserError where its stage has none."""
    require_scored(run)
    if not isinstance(run.stage, Compresses):
        raise UserError(
            f"a run of stage.kind {run.experiment.stage.kind} cannot compress: it has no likelihood of images; give a "
            f"flow, a VAE, or an autoregressive run or a diffusion of pixels"
        )
    return run.stage.image_coder(run.nets)


def strided(run: Run, steps: int | None) -> Run:
    """The run with the likelihood and the code of a chain of so many steps; None: of all. Raises UserError."""
    if isinstance(run.stage, Strides):
        return dataclasses.replace(run, stage=run.stage.strided(steps))
    if steps is not None:
        raise UserError(f"steps is for a diffusion, and {run.home} is of stage.kind {run.experiment.stage.kind}")
    return run


def compress_images(
    run: Run,
    images: ShardImages,
    runtime: Runtime,
    *,
    seed: int = 0,
    block: int = BLOCK,
    batch: int = BATCH,
    verify: bool = False,
) -> Compression:
    """The images as messages. A collective. Raises UserError where the stage has no coder.

    seed: of the initial bits. block: the most images of a message. batch: the most images that go through the networks
    together. verify: decode each block again, and raise UserError where it is not what was encoded.
    """
    for name, size in {"block": block, "batch": batch}.items():
        if size < 1:
            raise UserError(f"{name} is {size}; give 1 or more images")
    coder = runtime.comm.raise_on_all_ranks(lambda: coder_of(run))
    blocks = _blocks(images.n, block)

    def work(number: int, advance: Callable[[int], object]) -> CompressedBlock:
        pixels, labels = images.images(blocks[number]), _labels(run, images, blocks[number], runtime)
        groups = group_sizes(len(pixels), min(batch, LARGEST_GROUP), coder.images_before)
        message = Message(_key(seed, number))
        for part in _slices(groups):
            coder.encode(message, pixels[part].to(runtime.device), None if labels is None else labels[part])
            advance(part.stop - part.start)
        words, digest = message.words(), _pixels_sha256(pixels)
        result = Block(groups, len(words), message_sha256(words), digest)
        if verify:
            decode_block(coder, result, words, labels, _key(seed, number), f"{images.place}: block {number}")
        return CompressedBlock(result, words, message.initial_bits)

    parts = _map_blocks(blocks, work, runtime, "compress")
    labels = runtime.comm.raise_on_all_ranks(lambda: _stored_labels(images))
    header = Header(
        stage=run.experiment.stage.kind,
        checkpoint=run.checkpoint.manifest_sha256,
        weights=run.weights,
        coded_on=coded_on(runtime),
        shape=run.shape.chw,
        keys=images.keys(),
        labels=labels,
        classes=images.shards.classes,
        seed=seed,
        blocks=[part.block for part in parts],
        steps=run.stage.chain_steps if isinstance(run.stage, Strides) else None,
    )
    file = CompressedFile(header, [part.message for part in parts])
    return Compression(file, sum(part.initial_bits for part in parts))


def decompress_images(run: Run, file: CompressedFile, runtime: Runtime, where: Path) -> UInt8[Tensor, "n c h w"]:
    """The images of a file, on the CPU. A collective. Raises UserError where this machine decodes other ones."""
    header = file.header
    require_same_machine(header, runtime, where)
    coder = runtime.comm.raise_on_all_ranks(lambda: coder_of(strided(run, header.steps)))
    _require_fitting(run, header, where)
    blocks = _slices([block.n for block in header.blocks])
    labels = torch.tensor(header.labels, device=runtime.device) if is_conditional(run) else None

    def work(number: int, advance: Callable[[int], object]) -> Tensor:
        block, of_block = header.blocks[number], None if labels is None else labels[blocks[number]]
        name, key = f"{where}: block {number}", _key(header.seed, number)
        return decode_block(coder, block, file.messages[number], of_block, key, name, advance)

    ranges = [range(block.start, block.stop) for block in blocks]
    return torch.cat(_map_blocks(ranges, work, runtime, "decompress"))


def _require_fitting(run: Run, header: Header, where: Path) -> None:
    """Raise UserError where the images of the header are none of the run's."""
    if tuple(header.shape) != tuple(run.shape.chw):
        raise UserError(
            f"{where}: its images have the shape {list(header.shape)}, and the run's {list(run.shape.chw)}: it was "
            f"changed; take another copy"
        )
    if is_conditional(run) and (header.labels is None or max(header.labels) >= run.shape.classes):
        raise UserError(
            f"{where}: its labels are not those of {plural(run.shape.classes, 'class', 'classes')}, which the run has: "
            f"it was changed; take another copy"
        )


def decode_block(
    coder: ImageCoder,
    block: Block,
    words: np.ndarray,
    labels: Int[Tensor, " n"] | None,
    key: int,
    where: str,
    advance: Callable[[int], object] | None = None,
) -> UInt8[Tensor, "n c h w"]:
    """The images of a message, on the CPU, held against their hash. Raises UserError, which begins with `where`."""
    parts = []
    with contextlib.suppress(CodingError):
        message = Message(key, words)
        for part in reversed(_slices(block.groups)):
            n = part.stop - part.start
            parts.append(coder.decode(message, n, None if labels is None else labels[part]).cpu())
            if advance is not None:
                advance(n)
        images = torch.cat(parts[::-1])
        if message.is_initial() and _pixels_sha256(images) == block.pixels_sha256:
            return images
    raise UserError(
        f"{where} decodes to other pixels than were compressed: networks compute other bits here; decompress on the "
        f"machine that compressed"
    )


def group_sizes(n: int, batch: int, images_before: int) -> list[int]:
    """How many of n images are encoded together, in order: at most `batch`.

    images_before: as `ImageCoder` has it. A group of n has images_before * n images before it, unless n is 1.
    """
    sizes: list[int] = []
    while (done := sum(sizes)) < n:
        sizes.append(min(batch, max(1, done // images_before) if images_before else batch, n - done))
    return sizes


def _blocks(n: int, size: int) -> list[range]:
    """n images in blocks of nearly one size, at most `size`."""
    count = -(-n // size)
    edges = [i * n // count for i in range(count + 1)]
    return [range(*edge) for edge in pairwise(edges)]


def _slices(sizes: Sequence[int]) -> list[slice]:
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _map_blocks(
    blocks: Sequence[range], work: Callable[[int, Callable[[int], object]], Any], runtime: Runtime, title: str
) -> list[Any]:
    """The results of `work` on each block's number, in order, on every rank. A collective."""
    results: dict[int, Any] = {}
    n = blocks[-1].stop

    def share() -> None:
        for number in range(runtime.rank, len(blocks), runtime.world):
            with torch.no_grad(), runtime.autocast(), _one_thread():
                results[number] = work(number, lambda done: bar.update(min(done * runtime.world, n - bar.n)))

    with progress_bar(title, "image", n, shown=runtime.main) as bar:
        runtime.comm.raise_on_all_ranks(share)
    by_number = {number: result for part in runtime.comm.gather(results) for number, result in part.items()}
    return [by_number[number] for number in range(len(blocks))]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Within it torch computes with one thread: sums are split otherwise among more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _key(seed: int, number: int) -> int:
    return fold_in(seed, "block", number)


def _labels(run: Run, images: ShardImages, indices: range, runtime: Runtime) -> Int[Tensor, " b"] | None:
    return images.labels(indices).to(runtime.device) if is_conditional(run) else None


def _stored_labels(images: ShardImages) -> list[int] | None:
    return images.labels(range(images.n)).tolist() if images.shards.lacking("cls") is None else None


def _pixels_sha256(pixels: UInt8[Tensor, "n c h w"]) -> str:
    return hashlib.sha256(pixels.cpu().contiguous().numpy().tobytes()).hexdigest()
