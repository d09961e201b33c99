"""`diffpipe latent-map RUN SHARDS OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffpipe.data.index.shard_set import ShardSet, number_of_classes
from diffpipe.errors import UserError
from diffpipe.evaluation.latent_map import Plane, latent_map
from diffpipe.evaluation.latent_space import LatentSpace, class_names, drawn, labelled_shards
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.experiment.run import Run, open_run
from diffpipe.report.labelled_grid import require_png, save
from diffpipe.report.latent_map_plot import plot_latent_map
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run of an autoencoder, VAE or flow, or one checkpoint")
    parser.add_argument("shards", metavar="SHARDS", help="labelled images, taken at the run's resolution")
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture, a .png")
    parser.add_argument("--n", type=int, default=2000, help="how many images, at most (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which images are taken (default %(default)s)")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(args: argparse.Namespace) -> None:
    if args.n < 3:
        raise UserError(f"--n {args.n}: a map needs 3 images or more")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: require_png(args.out))
        opened = open_run(args.run, [], runtime, raw=args.raw)
        space = LatentSpace(opened.stage, opened.nets, opened.shape, runtime, args.seed)
        shards = runtime.comm.raise_on_all_ranks(lambda: _shards(args.shards, opened))
        found = latent_map(space, shards, drawn(shards, args.n, args.seed), conditional=is_conditional(opened))
        given = ", each given its class" if is_conditional(opened) else ""
        picture = plot_latent_map(
            found, class_names(shards), f"{opened.title}: the latents of {len(found.points)} images{given}"
        )
        runtime.comm.raise_on_all_ranks(lambda: save(picture, args.out) if runtime.main else None)
        print_on_rank_zero(runtime, f"{len(found.points)} latents{_explained(found.plane)}: {args.out}")


def _shards(patterns: str, opened: Run) -> ShardSet:
    shards, classes = labelled_shards(patterns), opened.shape.classes
    if is_conditional(opened) and number_of_classes(shards) > classes:
        raise UserError(f"{patterns} holds {number_of_classes(shards)} classes and the run was trained on {classes}")
    return shards


def _explained(plane: Plane) -> str:
    if plane.explained is None:
        return ""
    return f" on the first two principal components, {100 * sum(plane.explained):.1f}% of their variance"
