"""`diffpipe sample RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

from diffpipe.cli.images import collect, grid, save_pngs, share_out
from diffpipe.cli.runs import add_sampling_arguments, generated_images, open_run, sampler_overrides
from diffpipe.cli.terminal import say
from diffpipe.contract import UserError
from diffpipe.train.runtime import Runtime
from diffpipe.train.tracking import progress_bar

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
        runtime.together(lambda: _make_folder(args.out))
        first: dict[int, Tensor] = {}
        with progress_bar("sample", "image", args.n, runtime) as bar:

            def keep(indices: range, images: Tensor) -> None:
                save_pngs(images, indices, args.out)
                if indices.start < GRID:
                    first[indices.start] = images[: GRID - indices.start]
                bar.update(min(len(indices) * runtime.world, args.n - bar.n))

            share_out(source, runtime, keep)
        shown = collect(first, runtime)
        if runtime.main:
            grid(shown, columns=opened.shape.classes or None).save(args.out / "grid.png")
        say(runtime, f"{args.n} images of step {opened.checkpoint.step}, {opened.weights} weights: {args.out}/grid.png")


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror}; give a folder that can be written") from error
