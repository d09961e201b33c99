"""`diffpipe eval RUN|FOLDER|SHARDS --reference FOLDER|SHARDS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli.options import add_sampling_arguments, sampler_overrides
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.scores import score, table
from diffpipe.experiment.run import Run, generated_images, is_run, open_run
from diffpipe.interfaces import ImageShape
from diffpipe.metrics import protocol
from diffpipe.metrics.evaluate import METRICS, ImageSource, parse_metric
from diffpipe.metrics.folder import FolderImages
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

SPLIT = "split"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="RUN|FOLDER|SHARDS", help="what to score: a run, a checkpoint, or images")
    parser.add_argument("--reference", required=True, metavar="FOLDER|SHARDS", help="the real images to compare with")
    parser.add_argument("--n", type=int, help="how many images to score (default: 1000 of a run, else all)")
    parser.add_argument(
        "--metrics",
        default="fd_efficientnet_lite0,kid_efficientnet_lite0",
        help=f"of {', '.join(METRICS)}, with commas",
    )
    parser.add_argument(
        "--floor",
        metavar="FOLDER|SHARDS|split",
        help="other real images, of which n against the reference show how low a score can be; "
        "default: a run's training shards, else `split`: one half of the reference against the other",
    )
    parser.add_argument("--inception", metavar="FILE", help="weights for fid and kid (default: downloaded once)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON (default: in a run's scores/)")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    metrics = args.metrics.split(",")
    for name in metrics:
        parse_metric(name)
    if args.n is not None and args.n < 2:
        raise UserError(f"--n {args.n}: a score needs at least 2 images")
    with Runtime.start(args.precision, args.device) as runtime:
        opened = None
        if is_run(Path(args.images)):
            opened = open_run(Path(args.images), sampler_overrides(args), runtime, raw=args.raw)
        generated, reference, floor = runtime.comm.raise_on_all_ranks(lambda: _sources(args, opened, runtime))
        result = score(generated, reference, floor, metrics, runtime, inception_weights=args.inception)
        out = args.out or _default_out(opened, generated.n)
        if out is not None:
            runtime.comm.raise_on_all_ranks(lambda: protocol.write(result, out) if runtime.main else None)
        print_on_rank_zero(runtime, table(result) + (f"\n{out}" if out else ""))


def _sources(
    args: argparse.Namespace, opened: Run | None, runtime: Runtime
) -> tuple[ImageSource, ImageSource, ImageSource | None]:
    """What is scored, what it is compared with, and the real images of the floor."""
    shape = opened.shape if opened else None
    if opened:
        generated = generated_images(opened, runtime, n=args.n or 1000, seed=args.seed, label=args.label)
    else:
        generated = _real(args.images, shape, args.n)
    reference = _real(args.reference, shape, None)
    if args.floor == SPLIT or (args.floor is None and opened is None):
        return generated, reference, None
    if args.floor is not None:
        return generated, reference, _real(args.floor, shape, generated.n)
    assert opened is not None
    try:
        data = opened.experiment.data
        shards = shard_set.load(data.trained_on, cache=data.shard_cache)
        floor = ShardImages(shards, opened.shape.channels, opened.shape.resolution, n=generated.n)
    except UserError as error:
        raise UserError(
            f"the floor takes the run's data.train: {error}; or name others with --floor, or split"
        ) from error
    return generated, reference, floor


def _real(place: str, shape: ImageShape | None, n: int | None) -> ImageSource:
    """Images of a folder or of shards; those of shards at the shape of the run that is scored, else as they are."""
    path = Path(place)
    if path.is_dir() and not any(path.glob("*.tar")) and not (path / INDEX_NAME).exists():
        return FolderImages(path, n)
    return ShardImages(shard_set.load(place), shape.channels if shape else 3, shape.resolution if shape else None, n=n)


def _default_out(opened: Run | None, n: int) -> Path | None:
    if opened is None:
        return None
    sampler = opened.experiment.stage.sampler.model_dump()
    how = "".join(f"{sampler[key]}-" for key in ("kind", "steps") if key in sampler)
    return opened.home / "scores" / f"step-{opened.checkpoint.step:08d}-{how}n{n}.json"
