"""`diffpipe eval RUN|IMAGES --reference IMAGES`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from diffpipe.cli import argument_types as types
from diffpipe.cli import options, sampling_options
from diffpipe.errors import UserError
from diffpipe.files import user_path
from diffpipe.metrics.names import DEFAULT_METRICS, METRICS, parse_metric
from diffpipe.process import is_main_process


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = options.example("diffpipe eval runs/photos --reference shards/photos --n 1000 --steps 50")
    parser.add_argument(
        "images", metavar="RUN|IMAGES", help="to score: a run or checkpoint, or a folder, zip, npz or shards"
    )
    parser.add_argument("--reference", required=True, metavar="IMAGES", help="the real images to compare with")
    parser.add_argument(
        "--n", type=int, help="images to score (default: 1000 of a run, or as many as FLOOR has; all of other images)"
    )
    defaults, known = ",".join(DEFAULT_METRICS), ", ".join(METRICS)
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        default=defaults,
        help=f"separated by commas (default %(default)s); known: {known}",
    )
    parser.add_argument("--inception", metavar="FILE", help="Inception weights for fid and kid (default: downloaded)")
    parser.add_argument(
        "--floor",
        metavar="IMAGES|split",
        help="other real images: n of them against the reference show how low a score can get; 'split' compares one "
        "half of the reference with the other (default: split)",
    )
    parser.add_argument(
        "--resolution",
        type=types.resolution,
        metavar="N|HxW",
        help="side, or height and width, to which all images are resized and cropped (default: a run's, else theirs)",
    )
    options.add_output_file(parser, "the JSON file")
    sampling_options.add_to(parser)


def run(args: argparse.Namespace) -> None:
    from diffpipe.api import load, score
    from diffpipe.evaluation.score_files import require_own_folder
    from diffpipe.evaluation.scores import table
    from diffpipe.metrics import protocol
    from diffpipe.run_folder import is_run

    metrics = args.metrics.split(",")
    for name in metrics:
        parse_metric(name)
    how = {"metrics": metrics, **options.values(args, "reference", "floor", "inception")}
    runtime = options.values(args, "precision", "device")
    if is_run(user_path(args.images)):
        if args.out is None:
            require_own_folder(user_path(args.images))
        with load(
            args.images, raw=args.raw, ema=args.ema, overrides=sampling_options.overrides(args), **runtime
        ) as run:
            if args.resolution not in (None, run.config.data.resolution):
                size = run.config.data.resolution
                raise UserError(
                    f"--resolution {args.resolution}: the run makes images of {size.height}x{size.width}; leave it out"
                )
            result = run.score(n=args.n, seed=args.seed, label=args.label, **how)
        out = args.out or run.score_file("eval", result.protocol["generated"]["n"], result.protocol)
        about = options.about_run(args.images, run)
    else:
        result, out = score(args.images, n=args.n, resolution=args.resolution, **how, **runtime), args.out
        about = {}
    if is_main_process():
        about |= {"images": args.images, "n": result.protocol["generated"]["n"]}
        if out is not None:
            protocol.write(result, out)
        options.print_result(table(result), *([] if out is None else [out]), **about, **asdict(result))
