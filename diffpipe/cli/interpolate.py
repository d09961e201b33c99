"""`diffpipe interpolate RUN OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from diffpipe.cli.options import add_sampling_arguments, sampler_overrides
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import require_images
from diffpipe.evaluation.interpolation import Ends, between_images, between_noises
from diffpipe.evaluation.latent_space import LatentSpace, drawn, drawn_of_class, labelled_shards
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.experiment.run import Run, generated_images, open_run
from diffpipe.interfaces import Generates
from diffpipe.report.labelled_grid import labelled_grid, require_png, save
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run directory, or one checkpoint in it")
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture, a .png")
    parser.add_argument("--shards", help="between images of these, by a run that encodes (default: between two noises)")
    parser.add_argument("--n", type=int, default=8, help="how many pairs, a row each (default %(default)s)")
    parser.add_argument("--columns", type=int, default=9, help="points from one to the other (default %(default)s)")
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> None:
    if args.n < 1 or args.columns < 2:
        raise UserError(f"--n {args.n} --columns {args.columns}: give 1 or more pairs and 2 or more points")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: require_png(args.out))
        opened = open_run(args.run, sampler_overrides(args), runtime, raw=args.raw)
        t = torch.linspace(0, 1, args.columns, dtype=torch.float64)
        columns = [f"{each:.3g}" for each in t.tolist()]
        title = f"{opened.title}: "
        if args.shards:
            space = LatentSpace(opened.stage, opened.nets, opened.shape, runtime, args.seed)
            shards, ends = runtime.comm.raise_on_all_ranks(lambda: _pairs(args, opened))
            cells = between_images(space, shards, ends, t)
            two = "two images" if ends.labels is None else "two images of a class"
            columns, title = ["image", *columns, "image"], f"{title}between the latents of {two}"
        else:
            if not isinstance(opened.stage, Generates):
                kind = opened.experiment.stage.kind
                raise UserError(f"a run of stage.kind {kind} makes nothing of noise; give --shards with images")
            source = generated_images(opened, runtime, n=args.n, seed=args.seed, label=args.label)
            cells, title = between_noises(source, t), f"{title}between two noises"
        picture = labelled_grid(rearrange(cells, "n k c h w -> (n k) c h w"), columns, title)
        runtime.comm.raise_on_all_ranks(lambda: save(picture, args.out) if runtime.main else None)
        print_on_rank_zero(runtime, f"{args.n} pairs, {args.columns} points from one to the other: {args.out}")


def _pairs(args: argparse.Namespace, opened: Run) -> tuple[ShardSet, Ends]:
    """Any images; or both of a class, where one is asked for or the latents of a class say nothing in another."""
    n, classes = args.n, opened.shape.classes
    if args.label is None and not is_conditional(opened):
        shards = shard_set.load(args.shards)
        require_images(shards)
        if shards.total < 2 * n:
            raise UserError(f"{args.shards} holds {shards.total} images and {n} pairs need {2 * n}; give a smaller --n")
        places = drawn(shards, 2 * n, args.seed)
        return shards, Ends(places[:n], places[n:], None)
    if is_conditional(opened) and args.label is not None and not 0 <= args.label < classes:
        raise UserError(f"--label {args.label}: the labels of this run are 0 to {classes - 1}")
    shards = labelled_shards(args.shards)
    labels = [i % classes if args.label is None else args.label for i in range(n)]
    most = 2 * max(map(labels.count, labels))
    places = drawn_of_class(shards, dict.fromkeys(labels), most, args.seed, least=most)
    rows = [labels[:i].count(label) for i, label in enumerate(labels)]  # of its class
    first, last = (np.array([places[c][2 * k + end] for c, k in zip(labels, rows, strict=True)]) for end in (0, 1))
    return shards, Ends(first, last, torch.tensor(labels))
