"""`diffpipe latent-map RUN SHARDS OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options
from diffpipe.plural import plural
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe latent-map runs/vae shards/photos map.png")
    options.add_run(parser, "a run of an autoencoder, VAE or flow, or one checkpoint in it")
    options.add_shards(parser, "labelled images; read at the run's resolution")
    parser.add_argument("out", type=types.local_path, metavar="OUT", help="the picture, a .png")
    options.add_count(parser, 2000, "most images in the map")
    options.add_seed(parser, "seed that draws the images")
    options.add_weights(parser)
    options.add_runtime(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.report.latent_map_plot import plot_latent_map
    from diffpipe.report.picture_file import require_png, save

    require_png(args.out)
    with load(args.run, raw=args.raw, ema=args.ema, **options.values(args, "precision", "device")) as run:
        latents = run.latent_map(args.shards, **options.values(args, "n", "seed", "precision"))
    if is_main_process():
        n, by_class = len(latents.points), ", each given its class" if latents.decoded is None else ""
        save(plot_latent_map(latents, f"{run.title}: the latents of {plural(n, 'image')}{by_class}"), args.out)
        text = f"{plural(n, 'latent')}{latents.plane.text()}: {args.out}"
        options.print_result(text, args.out, **options.about_run(args.run, run), n=n)
