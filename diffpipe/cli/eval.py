"""`diffpipe eval RUN|FOLDER|SHARDS --reference FOLDER|SHARDS`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options
from diffpipe.metrics.names import DEFAULT_METRICS, METRICS, parse_metric


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe eval runs/photos --reference shards/photos --n 1000 --steps 50")
    parser.add_argument("images", metavar="RUN|FOLDER|SHARDS", help="images to score: of a run or checkpoint, or files")
    parser.add_argument("--reference", required=True, metavar="FOLDER|SHARDS", help="the real images to compare with")
    parser.add_argument("--n", type=int, help="images to score (default: 1000 of a run, all of a folder or shards)")
    options.add_metrics(parser, ",".join(DEFAULT_METRICS), ", ".join(METRICS))
    parser.add_argument(
        "--floor",
        metavar="FOLDER|SHARDS|split",
        help="other real images: n of them against the reference show how low a score can get; 'split' compares one "
        "half of the reference with the other (default: split)",
    )
    options.add_output_file(parser, "the JSON file")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load, score
    from diffpipe.evaluation.scores import table
    from diffpipe.experiment.find_checkpoint import is_run
    from diffpipe.metrics import protocol

    metrics = args.metrics.split(",")
    for name in metrics:
        parse_metric(name)
    how = {"metrics": metrics, **options.values(args, "reference", "floor", "inception")}
    runtime = options.values(args, "precision", "device")
    if is_run(Path(args.images)):
        n = 1000 if args.n is None else args.n
        with load(args.images, raw=args.raw, overrides=options.sampling_overrides(args), **runtime) as run:
            result = run.score(n=n, seed=args.seed, label=args.label, **how)
        sampler = run.config.stage.sampler.model_dump()
        named = [str(sampler[key]) for key in ("kind", "steps") if key in sampler]
        out = args.out or run.score_path("", *named, f"n{n}")
    else:
        result, out = score(args.images, n=args.n, **how, **runtime), args.out
    if options.main_process():
        if out is not None:
            protocol.write(result, out)
        options.print_result(table(result), *([] if out is None else [out]))
