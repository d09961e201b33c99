"""`diffpipe sample RUN OUT`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options, sampling_options
from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe sample runs/photos samples/photos --n 64 --sampler ddim --steps 50")
    options.add_run(parser)
    parser.add_argument(
        "out", type=types.local_path, metavar="OUT", help="folder for 000000.png … by sample index, and grid.png"
    )
    options.add_count(parser, 64, "images to generate")
    parser.add_argument(
        "--trajectory",
        action="store_true",
        help="also write trajectory.png: how the first 8 images came about, x_t and the x_0 predicted from it at 10 "
        "noise levels",
    )
    sampling_options.add_to(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.report.picture_file import save

    if args.n < 1:
        raise UserError(f"--n {args.n}: give 1 or more")
    runtime, how = options.values(args, "precision", "device"), options.values(args, "seed", "label")
    with load(args.run, raw=args.raw, ema=args.ema, overrides=sampling_options.overrides(args), **runtime) as run:
        trajectory = None
        if args.trajectory:
            from diffpipe.report.trajectory_grid import trajectory_grid

            title = f"{run.title}, {run.weights} weights"
            trajectory = trajectory_grid(run.trajectory(min(args.n, 8), **how), title)
        run.write_samples(args.out, args.n, **how)
    if is_main_process():
        grids = [args.out / "grid.png"]
        if trajectory is not None:
            grids.append(args.out / "trajectory.png")
            save(trajectory, grids[-1])
        text = f"{plural(args.n, 'image')} of step {run.step}, {run.weights} weights: {' and '.join(map(str, grids))}"
        options.print_result(text, args.out, **options.about_run(args.run, run), n=args.n, folder=args.out)
