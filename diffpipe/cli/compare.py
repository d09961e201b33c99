"""`diffpipe compare RUN… [--row NAME RUN [key=value …]] --reference SHARDS --out DIR`."""

from __future__ import annotations

import argparse

from diffpipe.cli import argument_types as types
from diffpipe.cli import options

_METRICS = [f"{kind}_efficientnet_lite0" for kind in ("fd", "kid", "precision", "recall", "density", "coverage")]
_EXAMPLE = """diffpipe compare runs/vae runs/ddpm --row "DDIM at 4 steps" runs/ddpm sampler=ddim steps=4 \\
    --reference shards/test --out compare"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    notes = "The example compares a VAE and a DDPM, and the same DDPM with a faster sampler."
    parser.epilog = options.example(_EXAMPLE, notes=notes)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run or a checkpoint; a row named after its directory")
    parser.add_argument(
        "--row",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME RUN", "key=value"),
        help="a row with its own name and sampler, repeatable; below the plain RUNs. The keys: sampler, steps, eta, "
        "guidance, temperature and codec are the options of `diffpipe sample`; vlb_steps=60 estimates a diffusion's "
        "bits/dim from 60 timesteps instead of all",
    )
    parser.add_argument("--reference", required=True, metavar="SHARDS", help="the real images to compare with")
    parser.add_argument(
        "--out", required=True, type=types.local_path, metavar="DIR", help="for index.html, compare.json, …"
    )
    parser.add_argument(
        "--n", type=int, help="images per run to generate and score (default: 1000, or all of a smaller floor)"
    )
    options.add_seed(parser, "seed of the images and of the likelihood's noise")
    parser.add_argument(
        "--nll-n",
        type=int,
        default=500,
        help="reference images for bits/dim and the reconstruction (default %(default)s)",
    )
    parser.add_argument(
        "--metrics",
        default=",".join(_METRICS),
        metavar="NAMES",
        help="separated by commas: fid, kid, or fd, kid, precision, recall, density or coverage with "
        "_efficientnet_lite0 (default: all six of them)",
    )
    parser.add_argument(
        "--floor",
        metavar="SHARDS|split",
        help="other real images to score, too, or 'split' for the halves of the reference (default: those a run was "
        "trained on, or split where the reference holds some of them)",
    )
    text = "compress the images of --nll-n, too: by each run that can, and as PNG, WebP and JPEG XL"
    parser.add_argument("--compress", action="store_true", help=text)
    parser.add_argument("--inception", metavar="FILE", help="Inception weights for fid and kid (default: downloaded)")
    parser.add_argument("--fresh", action="store_true", help="measure also the scores that the runs hold already")
    options.add_weights(parser)
    options.add_runtime(parser, "auto")


def run(args: argparse.Namespace) -> None:
    from diffpipe.report.comparison import compare
    from diffpipe.report.comparison_rows import comparison_rows
    from diffpipe.report.comparison_runner import ComparisonSettings
    from diffpipe.report.comparison_table import markdown

    names = ("reference", "n", "nll_n", "seed", "floor", "inception", "fresh", "raw", "ema", "compress")
    shared = options.values(args, *names, "precision", "device")
    settings = ComparisonSettings(metrics=args.metrics.split(","), **shared)
    comparison = compare(comparison_rows(args.runs, args.row), settings, args.out)
    if comparison is not None:  # rank 0 of several processes
        files = [args.out / name for name in ("index.html", "compare.json", "table.md", "samples.png")]
        options.print_result(markdown(comparison), *files, **comparison.tree())
