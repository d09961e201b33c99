"""`diffpipe nll RUN SHARDS`."""

from __future__ import annotations

import argparse

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe nll runs/photos shards/photos --n 100 --steps 60")
    options.add_run(parser)
    options.add_shards(parser, "images to score; read at the run's resolution")
    options.add_count(parser, 1000, "images to score")
    parser.add_argument(
        "--steps", type=int, help="network evaluations per image for a diffusion's bound (default: every timestep)"
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        metavar="K",
        help="latents per image for a VAE's bound; with more than 1 it is the importance-weighted bound (default: by "
        "the run's config)",
    )
    options.add_seed(parser, "seed of the noise in a bound")
    options.add_weights(parser)
    options.add_runtime(parser)
    options.add_output_file(parser, "the JSON file; the plot of a diffusion is written beside it")


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.evaluation.nll import default_path, measure_nll
    from diffpipe.experiment.run import open_run
    from diffpipe.metrics import protocol
    from diffpipe.report.labelled_grid import save
    from diffpipe.report.vlb_plot import plot_vlb
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    if args.n < 2:
        raise UserError(f"--n {args.n}: a standard error needs at least 2 images")
    with Runtime.start(args.precision, args.device) as runtime:
        run = open_run(args.run, options.likelihood_overrides(args), runtime, raw=args.raw)
        nll = measure_nll(run, args.shards, runtime, n=args.n, seed=args.seed)
        likelihoods = nll.likelihoods
        out = args.out or default_path(run, likelihoods.n, args.steps, args.importance_samples)
        plot = out.with_suffix(".png") if likelihoods.vlb_by_timestep else None

        def write() -> None:
            protocol.write(nll.result, out)
            if plot and likelihoods.vlb_by_timestep:
                title = f"{run.title}: {nll.text('score')} ({likelihoods.kind})"
                prior, decoder = likelihoods.mean("L_T"), likelihoods.mean("L_0")
                save(plot_vlb(likelihoods.vlb_by_timestep, prior, decoder, title), plot)

        on_rank_zero(runtime, write)
        print_on_rank_zero(runtime, "\n".join([nll.table(), str(out), *([str(plot)] if plot else [])]))
