"""`diffpipe nll RUN SHARDS`."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import torch

from diffpipe import __version__
from diffpipe.cli.options import bound_overrides
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.evaluation.likelihood import (
    Likelihoods,
    labelled_images,
    require_likelihood,
    score_images,
    scoring,
)
from diffpipe.experiment.run import Run, open_run
from diffpipe.metrics import protocol
from diffpipe.metrics.protocol import Result
from diffpipe.report.vlb_plot import plot_vlb
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one checkpoint in it")
    parser.add_argument("shards", metavar="SHARDS", help="the images to explain, taken at the run's resolution")
    parser.add_argument("--n", type=int, default=1000, help="how many of them (default %(default)s)")
    parser.add_argument(
        "--steps", type=int, help="network evaluations an image for a diffusion's bound (default: at every timestep)"
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        metavar="K",
        help="latents an image for a VAE's bound: more than 1 make it the importance-weighted one (default: as the "
        "run's config says)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise in a bound (default %(default)s)")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the JSON, with a diffusion's plot beside it (default: in scores/)"
    )


def run(args: argparse.Namespace) -> None:
    if args.n < 2:
        raise UserError(f"--n {args.n}: a standard error needs at least 2 images")
    with Runtime.start(args.precision, args.device) as runtime:
        opened = open_run(args.run, bound_overrides(args), runtime, raw=args.raw)
        scoring(opened, likelihood=True)
        images = runtime.comm.raise_on_all_ranks(lambda: labelled_images(args.shards, opened, args.n))
        found = score_images(opened, images, args.seed, runtime)
        require_likelihood(found, opened)
        out = args.out or _default_out(opened, images.n, args)
        plot = out.with_suffix(".png") if found.course else None
        runtime.comm.raise_on_all_ranks(
            lambda: _write(found, opened, images, args.seed, runtime, out, plot) if runtime.main else None
        )
        print_on_rank_zero(runtime, "\n".join([_table(found), str(out), *([str(plot)] if plot else [])]))


def _write(
    found: Likelihoods, opened: Run, images: ShardImages, seed: int, runtime: Runtime, out: Path, plot: Path | None
) -> None:
    """The JSON, and the plot where there is a course to draw."""
    scores = {"nll": found.mean("score"), "nll_standard_error": found.standard_error("score")}
    terms = {name: found.mean(name) for name in found.values if name != "score"}
    pixels = {"levels": 256, "resolution": opened.shape.resolution, "channels": opened.shape.channels}
    precision = str(runtime.dtype).removeprefix("torch.")
    model = {"stage": opened.experiment.stage.kind, "kind": found.kind, "seed": seed, "precision": precision}
    said = {
        "metrics": {"nll": {"unit": found.unit, **pixels}},
        "model": {**model, **opened.describe()},
        "reference": {"n": found.n, **images.describe()},
        "versions": {"diffpipe": __version__, "torch": str(torch.__version__)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    protocol.write(Result(scores | terms, {}, said), out)
    if plot and found.course:
        title = f"{opened.title}: {_line(found, 'score')} ({found.kind})"
        try:
            plot_vlb(found.course, found.mean("L_T"), found.mean("L_0"), title).savefig(plot)
        except OSError as error:
            raise UserError(f"{plot}: cannot write the plot ({error.strerror}); give another --out") from error


def _line(found: Likelihoods, name: str) -> str:
    return f"{found.mean(name):.3f} ± {found.standard_error(name):.3f} {found.unit}"


def _table(found: Likelihoods) -> str:
    """The mean and its standard error, and below it those of each term."""
    titles = {name: "nll" if name == "score" else name for name in found.values}
    width = max(map(len, titles.values()))
    lines = [f"{title:>{width}}  {_line(found, name)}" for name, title in titles.items()]
    return "\n".join([f"{lines[0]} ({found.kind}; {found.n} images)", *lines[1:]])


def _default_out(opened: Run, n: int, args: argparse.Namespace) -> Path:
    how = "" if args.steps is None else f"steps{args.steps}-"
    how += "" if args.importance_samples is None else f"k{args.importance_samples}-"
    name = f"nll-step-{opened.checkpoint.step:08d}-{how}n{n}.json"
    return opened.home / "scores" / name
