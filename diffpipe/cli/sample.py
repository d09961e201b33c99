"""`diffpipe sample RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from diffpipe.cli.options import add_sampling_arguments, sampler_overrides
from diffpipe.errors import UserError
from diffpipe.evaluation.image_grid import grid, save_pngs
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import generated_images, open_run
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime

GRID = 100  # images in the grid at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one checkpoint in it")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for 000000.png … by sample index, and grid.png")
    parser.add_argument("--n", type=int, default=64, help="how many images (default %(default)s)")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    if args.n < 1:
        raise UserError(f"--n {args.n}: give 1 or more")
    with Runtime.start(args.precision, args.device) as runtime:
        opened = open_run(args.run, sampler_overrides(args), runtime, raw=args.raw)
        source = generated_images(opened, runtime, n=args.n, seed=args.seed, label=args.label)
        runtime.comm.raise_on_all_ranks(lambda: _make_folder(args.out))

        def make(indices: range) -> Tensor:
            images = source.images(indices)
            save_pngs(images, indices, args.out)
            return images[: max(0, GRID - indices.start)].clone()  # a view would hold on to the others

        shown = torch.cat(map_over_ranks(args.n, make, runtime, "sample"))
        if runtime.main:
            grid(shown, columns=opened.shape.classes or None).save(args.out / "grid.png")
        print_on_rank_zero(
            runtime, f"{args.n} images of step {opened.checkpoint.step}, {opened.weights} weights: {args.out}/grid.png"
        )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a folder that can be written") from error
