"""The Python API: `diffpipe.load`, `score`, `stream`, `train` and `import_run`. The commands do the same.

Under `accelerate launch` every process makes the same calls, and all get the same results.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffpipe import plugins
from diffpipe.config import override, validate
from diffpipe.data.config import DataConfig
from diffpipe.data.loader import mixture
from diffpipe.data.loader.stream import batches
from diffpipe.errors import UserError
from diffpipe.evaluation import scores
from diffpipe.evaluation.compressed_shards import decompress_to_shards, open_run_of, read_for
from diffpipe.evaluation.overlap import overlap_check
from diffpipe.evaluation.samples import stated_shape
from diffpipe.evaluation.score_remarks import print_remarks, score_remarks
from diffpipe.evaluation.score_sources import ScoreSources, open_images, score_sources
from diffpipe.experiment import training
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.interop.import_run import import_run
from diffpipe.experiment.load_experiment import load_experiment
from diffpipe.files import user_path
from diffpipe.interfaces import Batch
from diffpipe.loaded_run import LoadedRun, load
from diffpipe.machine import process_warnings
from diffpipe.metrics.names import DEFAULT_METRICS
from diffpipe.metrics.protocol import Result
from diffpipe.resolution import parse_resolution
from diffpipe.train.callbacks import Callback
from diffpipe.train.runtime import Device, Precision, Runtime

__all__ = ["Callback", "LoadedRun", "decompress", "import_run", "load", "load_plugin", "score", "stream", "train"]


def score(
    images: str | Path,
    reference: str | Path,
    *,
    n: int | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    floor: str | None = None,
    resolution: int | Sequence[int] | None = None,
    inception: str | None = None,
    precision: Precision = "fp32",
    device: Device = "auto",
) -> Result:
    """The scores of images in a folder, a zip, an npz or shards: `.scores`, `.floor` and `.protocol`.

    n: images to score; None: all. resolution: the side, or (height, width), to which all images are resized and
    cropped; None: that of the run whose `sample` wrote the folder, else they must have one size already. The others are
    those of `LoadedRun.score`, which scores a run. Raises UserError.

    >>> result = diffpipe.score(shards, shards, n=4, metrics=["fd_efficientnet_lite0"])
    >>> list(result.scores)
    ['fd_efficientnet_lite0']
    """
    with Runtime.start(precision, device) as runtime:

        def open_sources() -> ScoreSources:
            channels, size = stated_shape(str(images)) or (3, None)
            size = size if resolution is None else parse_resolution(resolution)
            return score_sources(open_images(images, channels, size, n), str(reference), floor, size)

        sources = runtime.comm.raise_on_all_ranks(open_sources)
        check = overlap_check(sources, runtime, floor=floor)
        result = scores.score(*sources, metrics, runtime, inception_weights=inception, on_hashes=check)
        print_remarks(score_remarks(result.protocol), runtime)
        return result


def stream(
    shards: str | Path | Sequence[str],
    *,
    batch_size: int,
    resolution: int | Sequence[int],
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    **options: Any,
) -> Generator[Batch, None, None]:
    """The batches that training would see: without end, from position `start` of the stream on.

    shards: as `data.train`. batch_size: over all `world` ranks; this rank gets its share. options: other keys of the
    `data` section, such as channels=1, labels=True, flip=True, workers=4. Close the generator to end its workers.
    Raises UserError.

    >>> batch = next(diffpipe.stream(shards, batch_size=4, resolution=8, channels=1, workers=0))
    >>> batch.images.shape, batch.images.dtype, batch.positions.tolist()
    (torch.Size([4, 1, 8, 8]), torch.uint8, [0, 1, 2, 3])
    """
    if not 0 <= rank < world:
        raise UserError(f"rank is {rank} and world is {world}; ranks are 0 to world - 1")
    if start < 0 or seed < 0:
        raise UserError(f"start is {start} and seed is {seed}; give 0 or more")
    places = str(shards) if isinstance(shards, str | Path) else [str(place) for place in shards]
    tree = {"train": places, "batch_size": batch_size, "resolution": resolution, **options}
    config = validate(DataConfig, tree, source="diffpipe.stream")
    process_warnings("workers", config.workers)
    shard_set = mixture.load_sources(config.train, config.sources, config.shard_cache)
    return batches(config, shard_set, seed, start=start, rank=rank, world=world)


def train(
    config: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, callbacks: Sequence[Callback] = ()
) -> signal.Signals | None:
    """Train as `diffpipe train` does: resume where the run directory has checkpoints.

    config: a YAML file, or its sections as a mapping. overrides: `key=value` words laid over it. callbacks: see
    `Callback`. Returns None after the last step, or the signal that stopped the run, which has saved then. Raises
    UserError.

    >>> class Printer(diffpipe.Callback):
    ...     def on_log(self, values, step):
    ...         print(step, "loss" in values)
    >>> diffpipe.train(config, ["run.dir=runs/tiny", "train.steps=2"], callbacks=[Printer()])
    1 True
    2 True
    """
    if isinstance(config, Mapping):
        tree: dict[str, Any] = copy.deepcopy(dict(config))
        for word in overrides:
            override(Experiment, tree, word)
        experiment = validate(Experiment, tree, source="diffpipe.train")
    else:
        experiment = load_experiment(config, list(overrides))
    return training.train(experiment, callbacks)


def decompress(file: str | Path, run: str | Path, out: str | Path, *, device: Device = "auto") -> int:
    """Write the images of a file that `LoadedRun.compress` made as shards into the folder `out`. Returns their number.

    run: the run directory, or the checkpoint in it, that compressed them. Keys, labels and pixels are those of the
    compressed images. Raises UserError where the file is damaged, the run is another one, or networks may compute other
    bits on this machine.

    >>> report = diffpipe.load("runs/tiny").compress(shards, "photos.dpi", n=2, compare=False)
    >>> diffpipe.decompress("photos.dpi", "runs/tiny", "decompressed")
    2
    """
    with Runtime.start("fp32", device) as runtime:
        path, target = user_path(file), user_path(out)
        compressed = runtime.comm.on_rank_zero(lambda: read_for(path, target))
        opened = open_run_of(path, compressed.header, user_path(run), runtime)
        decompress_to_shards(path, opened, compressed, target, runtime)
        return len(compressed.header.keys)


def load_plugin(module: str | Path) -> None:
    """Add the stages, networks, … of a module or a `.py` file, as `--plugin` does. Raises UserError."""
    plugins.load(module)
