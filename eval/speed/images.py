"""Images per second of the stream, of reading and decoding alone, of webdataset and of ImageFolder.

    OMP_NUM_THREADS=1 taskset -c 0,1 python -m eval.speed.images

Images are crops of noise (`eval.speed.noise`), made from a seed: the same files as shards and as a folder per class.
The page cache is warm. All make uint8 batches [b 3 h w] of the same pixels. Only a resize differs: the others do it by
PIL, this loader by torch, which rounds one pixel of 200 the other way.

- limit: `os.pread` and `decode_to`, sample by sample, without keeping the image: 1 / (read + decode + resize). For n
  loader processes, min(n, cores) processes do so at the same time.
- ours: `diffpipe.data.batches`, shuffled as in training, with the checksum of each member verified.
- webdataset: its `decode("rgb8")`, torchvision's transforms, its batches, torch's loader; in the order of the shards,
  because a shuffle buffer would cost more time.
- ImageFolder: its own loader and torchvision's transforms, shuffled.

Rates are medians of rounds in which all kinds take turns. The first batches of each turn, in which processes start, do
not count. The goals, as ratios of medians: 0.9 of the limit, 1.5 of webdataset and 1 of ImageFolder.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize
from tqdm import tqdm
from webdataset.compat import WebDataset

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.decode.image import decode_to
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.resolution import square
from eval.speed import launch
from eval.speed.benchmark import table
from eval.speed.noise import KINDS, Kind, make_images


class ImageSet(NamedTuple):
    """The images of a kind, as shards and as files, and the batch size."""

    kind: Kind
    shards: str
    files: str
    batch: int


Stream = Callable[[ImageSet, int], Iterator[torch.Tensor]]


def ours(image_set: ImageSet, workers: int) -> Iterator[torch.Tensor]:
    resolution = image_set.kind.resolution
    config = DataConfig(
        train=image_set.shards, batch_size=image_set.batch, resolution=square(resolution), workers=workers
    )
    for batch in batches(config, load(image_set.shards), 0):
        yield batch.images


def resizing(kind: Kind) -> list[Resize | CenterCrop]:
    """torchvision's transforms of a PIL image, where it has another size: bicubic with antialiasing, and a crop."""
    size = kind.resolution
    return [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)] if kind.resized else []


def webdataset(image_set: ImageSet, workers: int) -> Iterator[torch.Tensor]:
    kind = image_set.kind
    transform = Compose(resizing(kind))

    def resize(image: np.ndarray) -> np.ndarray:
        return np.asarray(transform(Image.fromarray(image)) if kind.resized else image).transpose(2, 0, 1)

    paths = load(image_set.shards).paths
    samples: Any = WebDataset(paths, shardshuffle=False)  # its type stubs lack its methods
    resized = samples.decode("rgb8").to_tuple(kind.extension).map_tuple(resize)
    loader = DataLoader(resized.batched(image_set.batch).repeat(), batch_size=None, num_workers=workers)
    for (images,) in loader:
        yield torch.as_tensor(images)


def image_folder(image_set: ImageSet, workers: int) -> Iterator[torch.Tensor]:
    images = ImageFolder(image_set.files, Compose([*resizing(image_set.kind), PILToTensor()]))
    endless = RandomSampler(images, num_samples=len(images) * 10**6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator()
    for batch, _ in DataLoader(images, image_set.batch, sampler=endless, num_workers=workers, generator=generator):
        yield batch


STREAMS: dict[str, Stream] = {"ours": ours, "webdataset": webdataset, "ImageFolder": image_folder}


def rate(stream: Stream, image_set: ImageSet, workers: int, seconds: float) -> float:
    """Images per second over so many seconds, after the batches that the loader prefetches at its start."""
    images = stream(image_set, workers)
    for _ in range(1 + 2 * workers):
        next(images)
    count, since, now = 0, time.perf_counter(), 0.0
    while now < seconds:
        for _ in range(max(1, workers)):  # one batch of each worker
            count += len(next(images))
        now = time.perf_counter() - since
    del images  # ends the loader processes
    return count / now


def read_and_decode(image_set: ImageSet, seconds: float) -> tuple[int, float, float]:
    """The images that one process reads and decodes in so many seconds, and the seconds spent on each of the two."""
    shards, size = load(image_set.shards), image_set.kind.resolution
    files = [os.open(path, os.O_RDONLY) for path in shards.paths]
    members = [
        (files[shard], shards.sample(shard, i).members[image_set.kind.extension])
        for shard, count in enumerate(shards.counts.tolist())
        for i in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(members)).tolist()
    count, reading, decoding = 0, 0.0, 0.0
    while reading + decoding < seconds:
        file, member = members[order[count % len(order)]]
        start = time.perf_counter()
        data = os.pread(file, member.size, member.offset)
        read = time.perf_counter()
        decode_to(data, 3, "", square(size))
        reading, decoding = reading + read - start, decoding + time.perf_counter() - read
        count += 1
    for file in files:
        os.close(file)
    return count, reading, decoding


def limit(image_set: ImageSet, processes: int, seconds: float) -> list[tuple[int, float, float]]:
    """`read_and_decode` in so many processes at the same time."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.starmap(read_and_decode, [(image_set, seconds)] * processes, chunksize=1)


class RoundResult(NamedTuple):
    """The rates of one round by name, and the seconds that reading and decoding take per image."""

    rates: dict[str, float]
    reading: float
    decoding: float


def measure(image_set: ImageSet, workers: int, seconds: float) -> RoundResult:
    parts = limit(image_set, max(1, min(workers, len(os.sched_getaffinity(0)))), seconds)
    rates = {"limit": sum(count / (reading + decoding) for count, reading, decoding in parts)}
    rates |= {name: rate(stream, image_set, workers, seconds) for name, stream in STREAMS.items()}
    count = sum(count for count, _, _ in parts)
    return RoundResult(
        rates, sum(reading for _, reading, _ in parts) / count, sum(decoding for _, _, decoding in parts) / count
    )


def row(image_set: ImageSet, workers: int, rounds: list[RoundResult]) -> dict[str, str]:
    medians = {name: statistics.median(result.rates[name] for result in rounds) for name in rounds[0].rates}
    cells = {"images": image_set.kind.name, "workers": str(workers), "ours": f"{medians['ours']:.0f}/s"}
    cells["read"] = f"{statistics.median(result.reading for result in rounds) * 1e6:.1f} us"
    cells["decode, resize"] = f"{statistics.median(result.decoding for result in rounds) * 1e6:.0f} us"
    for name in ("limit", "webdataset", "ImageFolder"):
        cells |= {name: f"{medians[name]:.0f}/s", f"ours/{name}": f"{medians['ours'] / medians[name]:.2f}"}
    return cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dir", type=Path, help="folder of the images; they are made if missing (default: a temporary folder)"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=2000, help="images of each kind (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of each measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    busy = launch.machine()
    with tempfile.TemporaryDirectory(prefix="images-") as temporary:
        image_sets, sizes = [], []
        for name in args.kinds:
            folder = (args.dir or Path(temporary)) / f"{name}-{args.n}"
            if not (folder / "shards" / INDEX_NAME).exists():
                make_images(KINDS[name], folder, args.n, seed=0)
            image_sets.append(ImageSet(KINDS[name], str(folder / "shards"), str(folder / "files"), args.batch))
            sizes.append(sum(path.stat().st_size for path in (folder / "files").glob("*/*")) / args.n)
        cases = [(image_set, workers) for image_set in image_sets for workers in args.workers]
        rounds = [[measure(*case, args.seconds) for case in cases] for _ in tqdm(range(args.rounds), desc="rounds")]
    print(table([row(*case, list(results)) for case, results in zip(cases, zip(*rounds, strict=True), strict=True)]))
    means = ", ".join(f"{size / 1e3:.1f} kB" for size in sizes)
    print(f"\n{args.n} images of {means} each; batches of {args.batch}; {busy}")


if __name__ == "__main__":
    main()
