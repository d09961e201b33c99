"""`diffpipe classify RUN SHARDS`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe classify runs/by_class shards/photos --n 100 --steps 50")
    options.add_run(parser, "a class-conditional run, or one checkpoint in it")
    options.add_shards(parser, "labelled images; read at the run's resolution")
    options.add_measured_count(parser, "images to classify")
    parser.add_argument(
        "--steps", type=int, help="network evaluations per image and class for a diffusion's bound (default: all)"
    )
    parser.add_argument(
        "--prior",
        metavar="data|uniform|SHARDS",
        help="p(y): shares of the classes in the run's local data.train, or in other shards, or all equal (default: "
        "data, where you trained the run yourself)",
    )
    options.add_seed(parser, "seed of the noise in a bound")
    options.add_weights(parser)
    options.add_runtime(parser)
    options.add_output_file(parser, "the JSON file; a plot is written beside it")


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.evaluation.score_files import require_own_folder
    from diffpipe.metrics import protocol
    from diffpipe.report.classification_plot import plot_classification
    from diffpipe.report.picture_file import save

    if args.out is None:
        require_own_folder(args.run)
    runtime = options.values(args, "precision", "device")
    with load(args.run, raw=args.raw, ema=args.ema, **runtime) as run:
        result = run.classify(args.shards, **options.values(args, "n", "prior", "seed", "steps", "precision"))
    if is_main_process():
        out = args.out or run.score_file("classify", result.classification.n, result.protocol)
        plot = out.with_suffix(".png")
        protocol.write_json(tree := result.tree(), out)
        save(plot_classification(result.classification, result.classes, run.title), plot)
        about = options.about_run(args.run, run) | {"n": result.classification.n}
        options.print_result(result.classification.table(), out, plot, **about, **tree)
