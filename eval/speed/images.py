"""Images a second of the stream, beside what reading and decoding alone allow, webdataset and ImageFolder.

    OMP_NUM_THREADS=1 taskset -c 0,1 python -m eval.speed.images

Images are crops of noise (`eval.speed.noise`) made from a seed into shards and, the same bytes, into a folder a class.
The page cache is warm. All of them make uint8 batches [b 3 h w] of the same pixels, but where they resize: others do
it by PIL, this loader by torch, which rounds one pixel of 200 the other way.

- limit: `os.pread` and `decode_to`, sample after sample, each image forgotten at once; that is 1 / (read + decode +
  resize). For n loader processes it is of min(n, cores) processes that do so at the same time.
- ours: `diffpipe.data.batches`, shuffled as in training, each member held against its checksum.
- webdataset: its `decode("rgb8")`, torchvision's transforms, its batches, torch's loader; in the order of the shards,
  for its buffer to shuffle in would be one more cost.
- ImageFolder: its own loader and torchvision's transforms, shuffled.

Rates are medians of rounds in which all kinds take turns; the first batches of each turn, in which processes start, are
not counted. In ratios of medians 0.9 of the limit, 1.5 of webdataset and 1 of ImageFolder are the goals.
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
from eval.speed import jobs
from eval.speed.noise import KINDS, Kind, make
from eval.speed.subject import table


class Subject(NamedTuple):
    """The images of a kind, and how they are asked for."""

    kind: Kind
    shards: str
    files: str
    batch: int


Stream = Callable[[Subject, int], Iterator[torch.Tensor]]


def ours(subject: Subject, workers: int) -> Iterator[torch.Tensor]:
    resolution = subject.kind.resolution
    config = DataConfig(train=subject.shards, batch_size=subject.batch, resolution=resolution, workers=workers)
    for batch in batches(config, load(subject.shards), 0):
        yield batch.images


def resizing(kind: Kind) -> list[Resize | CenterCrop]:
    """As others resize and crop a PIL image: bicubic with antialiasing, where the size is another."""
    size = kind.resolution
    return [Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)] if kind.resized else []


def webdataset(subject: Subject, workers: int) -> Iterator[torch.Tensor]:
    kind = subject.kind
    transform = Compose(resizing(kind))

    def resize(image: np.ndarray) -> np.ndarray:
        return np.asarray(transform(Image.fromarray(image)) if kind.resized else image).transpose(2, 0, 1)

    paths = load(subject.shards).paths
    samples: Any = WebDataset(paths, shardshuffle=False)  # its types do not know of its own methods
    resized = samples.decode("rgb8").to_tuple(kind.extension).map_tuple(resize)
    loader = DataLoader(resized.batched(subject.batch).repeat(), batch_size=None, num_workers=workers)
    for (images,) in loader:
        yield torch.as_tensor(images)


def image_folder(subject: Subject, workers: int) -> Iterator[torch.Tensor]:
    images = ImageFolder(subject.files, Compose([*resizing(subject.kind), PILToTensor()]))
    endless = RandomSampler(images, num_samples=len(images) * 10**6, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator()
    for batch, _ in DataLoader(images, subject.batch, sampler=endless, num_workers=workers, generator=generator):
        yield batch


STREAMS: dict[str, Stream] = {"ours": ours, "webdataset": webdataset, "ImageFolder": image_folder}


def rate(stream: Stream, subject: Subject, workers: int, seconds: float) -> float:
    """Images a second, of so many seconds after what the loader holds ready has been taken once."""
    images = stream(subject, workers)
    for _ in range(1 + 2 * workers):
        next(images)
    count, since, now = 0, time.perf_counter(), 0.0
    while now < seconds:
        for _ in range(max(1, workers)):  # they come in turns
            count += len(next(images))
        now = time.perf_counter() - since
    del images  # ends the processes
    return count / now


def alone(subject: Subject, seconds: float) -> tuple[int, float, float]:
    """How many images a process has read and decoded in so many seconds, and which of these went into either."""
    shards, size = load(subject.shards), subject.kind.resolution
    files = [os.open(path, os.O_RDONLY) for path in shards.paths]
    places = [
        (files[shard], shards.sample(shard, i).members[subject.kind.extension])
        for shard, count in enumerate(shards.counts.tolist())
        for i in range(count)
    ]
    order = np.random.default_rng(0).permutation(len(places)).tolist()
    count, reading, decoding = 0, 0.0, 0.0
    while reading + decoding < seconds:
        file, member = places[order[count % len(order)]]
        begun = time.perf_counter()
        data = os.pread(file, member.size, member.offset)
        read = time.perf_counter()
        decode_to(data, 3, "", size)
        reading, decoding = reading + read - begun, decoding + time.perf_counter() - read
        count += 1
    for file in files:
        os.close(file)
    return count, reading, decoding


def limit(subject: Subject, processes: int, seconds: float) -> list[tuple[int, float, float]]:
    """`alone` of each of so many processes at the same time."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.starmap(alone, [(subject, seconds)] * processes, chunksize=1)


class Turn(NamedTuple):
    """What one round has found of a kind and a number of workers."""

    rates: dict[str, float]
    reading: float
    decoding: float


def turn(subject: Subject, workers: int, seconds: float) -> Turn:
    parts = limit(subject, max(1, min(workers, len(os.sched_getaffinity(0)))), seconds)
    rates = {"limit": sum(count / (reading + decoding) for count, reading, decoding in parts)}
    rates |= {name: rate(stream, subject, workers, seconds) for name, stream in STREAMS.items()}
    count = sum(count for count, _, _ in parts)
    return Turn(rates, sum(reading for _, reading, _ in parts) / count, sum(rest for _, _, rest in parts) / count)


def row(subject: Subject, workers: int, turns: list[Turn]) -> dict[str, str]:
    middle = {name: statistics.median(turn.rates[name] for turn in turns) for name in turns[0].rates}
    cells = {"images": subject.kind.name, "workers": str(workers), "ours": f"{middle['ours']:.0f}/s"}
    cells["read"] = f"{statistics.median(turn.reading for turn in turns) * 1e6:.1f} us"
    cells["decode, resize"] = f"{statistics.median(turn.decoding for turn in turns) * 1e6:.0f} us"
    for name in ("limit", "webdataset", "ImageFolder"):
        cells |= {name: f"{middle[name]:.0f}/s", f"ours/{name}": f"{middle['ours'] / middle[name]:.2f}"}
    return cells


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="where the images are or will be (default: made anew, and removed)")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=2000, help="images of each kind (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken (default %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    busy = jobs.machine()
    with tempfile.TemporaryDirectory(prefix="images-") as made:
        subjects, sizes = [], []
        for name in args.kinds:
            folder = (args.dir or Path(made)) / f"{name}-{args.n}"
            if not (folder / "shards" / INDEX_NAME).exists():
                make(KINDS[name], folder, args.n, seed=0)
            subjects.append(Subject(KINDS[name], str(folder / "shards"), str(folder / "files"), args.batch))
            sizes.append(sum(path.stat().st_size for path in (folder / "files").glob("*/*")) / args.n)
        cases = [(subject, workers) for subject in subjects for workers in args.workers]
        rounds = [[turn(*case, args.seconds) for case in cases] for _ in tqdm(range(args.rounds), desc="rounds")]
    print(table([row(*case, list(turns)) for case, turns in zip(cases, zip(*rounds, strict=True), strict=True)]))
    means = ", ".join(f"{size / 1e3:.1f} kB" for size in sizes)
    print(f"\n{args.n} images of {means} each; batches of {args.batch}; {busy}")


if __name__ == "__main__":
    main()
