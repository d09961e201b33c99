"""`diffpipe interpolate RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.cli import options
from diffpipe.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe interpolate runs/vae between.png --shards shards/photos --n 4")
    options.add_run(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture, a .png")
    parser.add_argument("--shards", help="interpolate between these images, by their latents (default: between noises)")
    options.add_count(parser, 8, "pairs, one row each")
    parser.add_argument("--columns", type=int, default=9, help="points from one to the other (default %(default)s)")
    options.add_sampling(parser)


def run(args: argparse.Namespace) -> None:
    import torch
    from einops import rearrange

    from diffpipe.evaluation.interpolation import interpolate_images, interpolate_noise
    from diffpipe.evaluation.map_over_ranks import on_rank_zero
    from diffpipe.experiment.run import open_run
    from diffpipe.report.labelled_grid import labelled_grid, require_png, save
    from diffpipe.train.logs import print_on_rank_zero
    from diffpipe.train.runtime import Runtime

    if args.n < 1 or args.columns < 2:
        raise UserError(f"--n {args.n} --columns {args.columns}: give 1 or more pairs and 2 or more points")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: require_png(args.out))
        run = open_run(args.run, options.sampling_overrides(args), runtime, raw=args.raw)
        t = torch.linspace(0, 1, args.columns, dtype=torch.float64)
        columns = [f"{fraction:.3g}" for fraction in t.tolist()]
        how = {"n": args.n, "seed": args.seed, "label": args.label}
        if args.shards:
            ends, cells = interpolate_images(run, args.shards, t, runtime, **how)
            columns = ["image", *columns, "image"]
            title = "between the latents of two images" + ("" if ends.labels is None else " of a class")
        else:
            cells, title = interpolate_noise(run, t, runtime, **how), "between two noises"
        picture = labelled_grid(rearrange(cells, "n k c h w -> (n k) c h w"), columns, f"{run.title}: {title}")
        on_rank_zero(runtime, lambda: save(picture, args.out))
        print_on_rank_zero(runtime, f"{args.n} pairs, {args.columns} points from one to the other: {args.out}")
