"""The time to the first batch and the bytes read for it: at the start, and at 90% of an epoch of 1,000,000 samples.

    OMP_NUM_THREADS=1 taskset -c 0,1 python -m eval.speed.first_batch --dir FOLDER

The shards (1 GB of tiny images) are made in the folder once. Opening the index and the list of the shards is timed
apart. The first batch is timed from there on, without loader processes, as a median of rounds. webdataset, on the same
shards, has no position to resume at: it is iterated, undecoded, and the samples before the position are discarded.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from webdataset.compat import WebDataset

from diffpipe.data import DataConfig, batches, load
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader.reader import Reader
from diffpipe.resolution import square
from eval.speed import launch
from eval.speed.benchmark import table


class CountedReads:
    """Wraps `Reader.at` and counts the members that are read, and their bytes."""

    def __init__(self) -> None:
        self.members = self.bytes = 0
        self._at = Reader.at

    def __enter__(self) -> CountedReads:
        def at(reader: Reader, shard: int, offset: int, size: int, crc32: int) -> bytes | None:
            self.members += 1
            self.bytes += size
            return self._at(reader, shard, offset, size, crc32)

        setattr(Reader, "at", at)  # noqa: B010 (a plain assignment fails the type check)
        return self

    def __exit__(self, *_: object) -> None:
        Reader.at = self._at


def make(folder: Path, samples: int, shards: int) -> None:
    """Shards that hold the same image of 8 x 8 pixels over and over, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    data = buffer.getvalue()
    body = data + bytes(-len(data) % tarfile.BLOCKSIZE)
    ends = np.linspace(0, samples, shards + 1).astype(int).tolist()
    for number, (first, end) in enumerate(itertools.pairwise(tqdm(ends, desc="shards"))):
        with (folder / f"{number:05d}.tar").open("wb") as file:
            for i in range(first, end):
                member = tarfile.TarInfo(f"{i:09d}.png")
                member.size = len(data)
                file.write(member.tobuf(tarfile.USTAR_FORMAT) + body)
            file.write(bytes(2 * tarfile.BLOCKSIZE))
    write_index(folder)


def first_batch(config: DataConfig, shards: ShardSet, start: int) -> tuple[float, CountedReads]:
    """The seconds to the first batch from position `start`, and the counted reads."""
    since = time.perf_counter()
    with CountedReads() as counted:
        stream = batches(config, shards, 0, start=start)
        batch = next(stream)
        seconds = time.perf_counter() - since
        stream.close()
    assert batch.positions[0] == start
    return seconds, counted


def first_batch_of_webdataset(paths: list[str], batch: int, start: int) -> float:
    """The seconds to the first batch of webdataset, which reads and discards `start` samples before it."""
    since = time.perf_counter()
    stream = iter(WebDataset(paths, shardshuffle=False))
    for _ in tqdm(itertools.islice(stream, start), desc="webdataset discards", total=start):
        pass
    for sample in itertools.islice(stream, batch):
        np.asarray(Image.open(io.BytesIO(sample["png"])))
    return time.perf_counter() - since


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder of the shards; they are made if missing")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default %(default)s)")
    args = parser.parse_args(argv)
    if not (args.dir / INDEX_NAME).exists():
        make(args.dir, args.samples, args.shards)
    config = DataConfig(train=str(args.dir), batch_size=args.batch, resolution=square(8), channels=1, workers=0)
    since = time.perf_counter()
    shards = load(str(args.dir), verify_limit=0)
    seconds_to_open = time.perf_counter() - since
    starts = {"the start": 0, "90% of the epoch": shards.total * 9 // 10}
    first_batch(config, shards, 0)  # imports and page cache
    rounds = [{name: first_batch(config, shards, start) for name, start in starts.items()} for _ in range(args.rounds)]
    rows = []
    for name, start in starts.items():
        counted = rounds[0][name][1]
        rows.append(
            {
                "from": name,
                "first batch": f"{statistics.median(round_[name][0] for round_ in rounds) * 1e3:.1f} ms",
                "samples read": str(counted.members),
                "bytes read": str(counted.bytes),
                "webdataset": f"{first_batch_of_webdataset(shards.paths, args.batch, start):.2f} s",
                "samples that webdataset reads": str(start + args.batch),
            }
        )
    print(table(rows))
    print(
        f"\n{shards.total} samples in {len(shards.paths)} shards, opened in {seconds_to_open:.2f} s; {launch.machine()}"
    )


if __name__ == "__main__":
    main()
