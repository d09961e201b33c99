"""`diffpipe classify RUN SHARDS`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe classify runs/by_class shards/photos --n 100 --steps 50")
    options.add_run(parser, "a class-conditional run, or one checkpoint in it")
    options.add_shards(parser, "labelled images; read at the run's resolution")
    options.add_count(parser, 1000, "images to classify")
    parser.add_argument(
        "--steps", type=int, help="network evaluations per image and class for a diffusion's bound (default: all)"
    )
    parser.add_argument(
        "--prior",
        choices=["data", "uniform"],
        default="data",
        help="p(y): shares of the classes in the run's data.train, or all equal (default %(default)s)",
    )
    options.add_seed(parser, "seed of the noise in a bound")
    options.add_weights(parser)
    options.add_runtime(parser)
    options.add_output_file(parser, "the JSON file; a plot is written beside it")


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation import classification
    from diffpipe.evaluation.likelihood import labelled_images
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.experiment.run import open_run
    from diffpipe.metrics import protocol
    from diffpipe.report.classification_plot import plot_classification
    from diffpipe.report.labelled_grid import save
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    if args.n < 4:
        raise UserError(f"--n {args.n}: give 4 or more, for two halves of at least 2 images")
    with Runtime.start(args.precision, args.device) as runtime:
        run = open_run(args.run, options.likelihood_overrides(args), runtime, raw=args.raw)
        classification.require_conditional(run)
        images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(args.shards, run, args.n))
        how = {"prior": args.prior, "seed": args.seed}
        result = classification.classify_images(run, images, runtime, **how)
        out = args.out or classification.default_path(run, images.n, args.steps)
        plot = out.with_suffix(".png")

        def write() -> None:
            protocol.write_json(classification.score_file(result, run, images, runtime, **how), out)
            low, high = result.interval
            title = f"{run.title}: accuracy {result.right / result.n:.3f} ({low:.3f} to {high:.3f})"
            save(plot_classification(result, classification.class_names(images, run.shape.classes), title), plot)

        on_rank_zero(runtime, write)
        print_on_rank_zero(runtime, f"{result.table()}\n{out}\n{plot}")
