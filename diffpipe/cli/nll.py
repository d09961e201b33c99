"""`diffpipe nll RUN SHARDS`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from diffpipe.cli import options
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example(
        "diffpipe nll runs/photos shards/photos --n 100 --steps 60",
        "diffpipe nll runs/photos shards/photos --n 100 --ode",
    )
    options.add_run(parser)
    options.add_shards(parser, "images to score; read at the run's resolution")
    options.add_measured_count(parser, "images to score")
    parser.add_argument(
        "--steps",
        type=int,
        help="network evaluations per image for a diffusion's bound (default: every timestep), or steps of --ode "
        "(default 50)",
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        metavar="K",
        help="latents per image for a VAE's bound; with more than 1 it is the importance-weighted bound (default: by "
        "the run's config)",
    )
    parser.add_argument("--ode", action="store_true", help="the likelihood by a diffusion's probability flow instead")
    text = "of --ode: rk4 evaluates the network four times a step, heun twice (default rk4)"
    parser.add_argument("--solver", choices=("rk4", "heun"), help=text)
    text = "of --ode: random directions per evaluation that estimate the divergence, two or more (default 2)"
    parser.add_argument("--probes", type=int, metavar="K", help=text)
    options.add_seed(parser, "seed of the noise in a bound")
    options.add_weights(parser)
    options.add_runtime(parser)
    options.add_output_file(parser, "the JSON file; the plot of a diffusion is written beside it")


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load
    from diffpipe.evaluation.score_files import require_own_folder
    from diffpipe.metrics import protocol
    from diffpipe.report.picture_file import save
    from diffpipe.report.vlb_plot import plot_vlb

    if args.out is None:
        require_own_folder(args.run)
    runtime = options.values(args, "precision", "device")
    measured = options.values(args, "n", "seed", "steps", "importance_samples", "ode", "solver", "probes", "precision")
    with load(args.run, raw=args.raw, ema=args.ema, **runtime) as run:
        nll = run.nll(args.shards, **measured)
    if is_main_process():
        out = args.out or run.score_file(nll.name, nll.likelihoods.n, nll.result.protocol)
        protocol.write(nll.result, out)
        files = [out]
        if nll.likelihoods.vlb_by_timestep:
            files.append(out.with_suffix(".png"))
            save(plot_vlb(nll, run.title), files[-1])
        about = options.about_run(args.run, run) | {"n": nll.likelihoods.n}
        options.print_result(nll.table(), *files, **about, **asdict(nll.result))
