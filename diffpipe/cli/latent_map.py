"""`diffpipe latent-map RUN SHARDS OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe latent-map runs/vae shards/photos map.png")
    options.add_run(parser, "a run of an autoencoder, VAE or flow, or one checkpoint in it")
    options.add_shards(parser, "labelled images; read at the run's resolution")
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture, a .png")
    options.add_count(parser, 2000, "most images in the map")
    options.add_seed(parser, "seed that draws the images")
    options.add_weights(parser)
    options.add_runtime(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.evaluation.latent_map import map_of_run
    from diffpipe.evaluation.latent_space import class_names
    from diffpipe.evaluation.likelihood import is_conditional
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.experiment.run import open_run
    from diffpipe.report.labelled_grid import require_png, save
    from diffpipe.report.latent_map_plot import plot_latent_map
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    if args.n < 3:
        raise UserError(f"--n {args.n}: a map needs 3 images or more")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: require_png(args.out))
        run = open_run(args.run, [], runtime, raw=args.raw)
        shards, latents = map_of_run(run, args.shards, runtime, n=args.n, seed=args.seed)
        n, by_class = len(latents.points), ", each given its class" if is_conditional(run) else ""
        picture = plot_latent_map(latents, class_names(shards), f"{run.title}: the latents of {n} images{by_class}")
        on_rank_zero(runtime, lambda: save(picture, args.out))
        print_on_rank_zero(runtime, f"{n} latents{latents.plane.text()}: {args.out}")
