"""`diffpipe anomaly RUN --normal SHARDS --abnormal SHARDS`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe anomaly runs/photos --normal shards/photos --abnormal shards/defects --n 500"
    )
    options.add_run(parser)
    parser.add_argument("--normal", required=True, metavar="SHARDS", help="images like those it was trained on")
    parser.add_argument("--abnormal", required=True, metavar="SHARDS", help="images that it should tell from them")
    parser.add_argument(
        "--training",
        metavar="SHARDS",
        help="images that it was trained on, for the typicality (default: its local data.train, where you trained the "
        "run yourself)",
    )
    options.add_count(parser, 1000, "most images of each set")
    options.add_seed(parser, "seed of the noise in a score")
    parser.add_argument("--steps", type=int, help="network evaluations per image for a diffusion's bound")
    options.add_weights(parser)
    options.add_runtime(parser)
    options.add_output_file(parser, "the JSON file; an image grid is written beside it")


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.evaluation.score_files import require_own_folder
    from diffpipe.metrics import protocol
    from diffpipe.report.anomaly_grid import most_and_least_anomalous
    from diffpipe.report.picture_file import save

    if args.out is None:
        require_own_folder(args.run)
    runtime = options.values(args, "precision", "device")
    with load(args.run, raw=args.raw, ema=args.ema, **runtime) as run:
        images = options.values(args, "normal", "abnormal", "training", "n", "seed", "steps", "precision")
        result = run.detect_anomalies(**images)
    if is_main_process():
        out = args.out or run.score_file("anomaly", result.n, result.protocol)
        picture = out.with_suffix(".png")
        protocol.write_json(tree := result.tree(), out)
        save(most_and_least_anomalous(result.scores, result.pixels), picture)
        about = options.about_run(args.run, run) | {"n": result.n}
        options.print_result(result.table(), out, picture, **about, **tree)
