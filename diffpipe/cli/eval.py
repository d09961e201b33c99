"""`diffpipe eval RUN|FOLDER|SHARDS --reference FOLDER|SHARDS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options
from diffpipe.errors import UserError
from diffpipe.metrics.names import METRICS, parse_metric


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe eval runs/photos --reference shards/photos --n 1000 --steps 50")
    parser.add_argument("images", metavar="RUN|FOLDER|SHARDS", help="images to score: of a run or checkpoint, or files")
    parser.add_argument("--reference", required=True, metavar="FOLDER|SHARDS", help="the real images to compare with")
    parser.add_argument("--n", type=int, help="images to score (default: 1000 of a run, all of a folder or shards)")
    options.add_metrics(parser, "fd_efficientnet_lite0,kid_efficientnet_lite0", ", ".join(METRICS))
    parser.add_argument(
        "--floor",
        metavar="FOLDER|SHARDS|split",
        help="other real images: n of them against the reference show how low a score can get; 'split' compares one "
        "half of the reference with the other (default: the training shards of a run, else split)",
    )
    options.add_output_file(parser, "the JSON file")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.evaluation.score_sources import ScoreSources, default_path, open_images, score_sources
    from diffpipe.evaluation.scores import score, table
    from diffpipe.experiment.find_checkpoint import is_run
    from diffpipe.experiment.run import generated_images, open_run
    from diffpipe.metrics import protocol
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    metrics = args.metrics.split(",")
    for name in metrics:
        parse_metric(name)
    if args.n is not None and args.n < 2:
        raise UserError(f"--n {args.n}: a score needs at least 2 images")
    with Runtime.start(args.precision, args.device) as runtime:
        run = None
        if is_run(Path(args.images)):
            run = open_run(Path(args.images), options.sampling_overrides(args), runtime, raw=args.raw)

        def sources() -> ScoreSources:
            if run is None:
                generated = open_images(args.images, None, args.n)
            else:
                generated = generated_images(run, runtime, n=args.n or 1000, seed=args.seed, label=args.label)
            return score_sources(generated, run, args.reference, args.floor)

        generated, reference, floor = runtime.comm.raise_on_all_ranks(sources)
        result = score(generated, reference, floor, metrics, runtime, inception_weights=args.inception)
        out = args.out or default_path(run, generated.n)
        if out is not None:
            on_rank_zero(runtime, lambda: protocol.write(result, out))
        print_on_rank_zero(runtime, table(result) + (f"\n{out}" if out else ""))
