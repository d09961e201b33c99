"""`diffpipe anomaly RUN --normal SHARDS --abnormal SHARDS`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe anomaly runs/photos --normal shards/photos --abnormal shards/defects --n 500"
    )
    options.add_run(parser)
    parser.add_argument("--normal", required=True, metavar="SHARDS", help="images like those it was trained on")
    parser.add_argument("--abnormal", required=True, metavar="SHARDS", help="images that it should tell from them")
    options.add_count(parser, 1000, "most images of each set")
    options.add_seed(parser, "seed of the noise in a score")
    parser.add_argument("--steps", type=int, help="network evaluations per image for a diffusion's bound")
    options.add_weights(parser)
    options.add_runtime(parser)
    options.add_output_file(parser, "the JSON file; an image grid is written beside it")


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.anomaly import default_path, detect_anomalies
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.experiment.run import open_run
    from diffpipe.metrics import protocol
    from diffpipe.report.anomaly_grid import most_and_least_anomalous
    from diffpipe.report.labelled_grid import save
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    with Runtime.start(args.precision, args.device) as runtime:
        run = open_run(args.run, options.likelihood_overrides(args), runtime, raw=args.raw)
        result = detect_anomalies(run, args.normal, args.abnormal, runtime, n=args.n, seed=args.seed)
        out = args.out or default_path(run)
        picture = out.with_suffix(".png")

        def write() -> None:
            protocol.write_json(result.tree(), out)
            save(most_and_least_anomalous(result.scores, result.pixels), picture)

        on_rank_zero(runtime, write)
        print_on_rank_zero(runtime, f"{result.table()}\n{out}\n{picture}")
