"""`diffpipe attribute RUN SHARDS OUT --from CLASS --to CLASS`."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from diffpipe import __version__
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.attributes import FEWEST, STRENGTHS, Moved, move
from diffpipe.evaluation.latent_space import LatentSpace, class_names, drawn_of_class, labelled_shards
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.experiment.run import Run, open_run
from diffpipe.metrics import protocol
from diffpipe.report.labelled_grid import labelled_grid, require_png, save
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="a run that encodes and knows no classes, or a checkpoint"
    )
    parser.add_argument("shards", metavar="SHARDS", help="labelled images, taken at the run's resolution")
    parser.add_argument("out", type=Path, metavar="OUT", help="the picture, a .png; figures are beside it as .json")
    parser.add_argument("--from", type=int, required=True, dest="source", metavar="CLASS", help="of the images to move")
    parser.add_argument("--to", type=int, required=True, dest="target", metavar="CLASS", help="where to move them")
    parser.add_argument("--n", type=int, default=500, help="images a class in its mean, at most (default %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="images in the picture (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which images are taken (default %(default)s)")
    parser.add_argument("--raw", action="store_true", help="the trained weights instead of their moving average")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(args: argparse.Namespace) -> None:
    if args.source == args.target:
        raise UserError(f"--from {args.source} and --to {args.target} are one class; give two")
    if args.n < FEWEST or args.rows < 1:
        raise UserError(f"--n {args.n} --rows {args.rows}: a mean needs {FEWEST} images or more, and a picture a row")
    with Runtime.start(args.precision, args.device) as runtime:
        runtime.comm.raise_on_all_ranks(lambda: require_png(args.out))
        opened = open_run(args.run, [], runtime, raw=args.raw)
        space = LatentSpace(opened.stage, opened.nets, opened.shape, runtime, args.seed)
        if is_conditional(opened):
            raise UserError(
                f"{args.run}: a class-conditional stage has the class from the label, and its latents lack it; "
                f"give a run trained with stage.conditional=false, or sample a class with --label"
            )
        shards = runtime.comm.raise_on_all_ranks(lambda: labelled_shards(args.shards))
        classes = (args.source, args.target)
        places = runtime.comm.raise_on_all_ranks(
            lambda: drawn_of_class(shards, classes, args.n, args.seed, least=FEWEST)
        )
        found = move(space, shards, places[args.source], places[args.target])
        runtime.comm.raise_on_all_ranks(
            lambda: _write(found, opened, shards, places, args, runtime) if runtime.main else None
        )
        names = class_names(shards)
        print_on_rank_zero(runtime, f"{_table(found, names[args.source], names[args.target])}\n{args.out}")


def _table(found: Moved, source: str, target: str) -> str:
    words = " ".join(f"{100 * share:.0f}%" for share in found.shares)
    strengths = " ".join(f"{strength:g}" for strength in STRENGTHS)
    return (
        f"nearer to {target} than to {source} at strengths {strengths}: {words} "
        f"(real {source}: {100 * found.real[0]:.0f}%, real {target}: {100 * found.real[1]:.0f}%)"
    )


def _write(
    found: Moved,
    opened: Run,
    shards: ShardSet,
    places: dict[int, np.ndarray],
    args: argparse.Namespace,
    runtime: Runtime,
) -> None:
    """The picture, a row an image with the original at its left, and the figures."""
    (n_from, n_to), (source, target) = map(len, places.values()), (class_names(shards)[label] for label in places)
    channels, resolution, _ = opened.shape
    rows = found.images[: args.rows]
    originals = sequential_reader.images(shards, places[args.source][: len(rows)], resolution, channels)
    cells = rearrange(torch.cat([originals[:, None], rows], dim=1), "n k c h w -> (n k) c h w")
    title = f"{opened.title}: {source} to {target}, along the difference of their mean latents"
    save(labelled_grid(cells, ["image", *(f"{strength:g}" for strength in STRENGTHS)], title), args.out)
    said: dict[str, Any] = {
        "model": {"stage": opened.experiment.stage.kind, **opened.describe()},
        "precision": str(runtime.dtype).removeprefix("torch."),
        "seed": args.seed,
        "shards": {"paths": shards.paths, "fingerprint": shards.fingerprint},
        "versions": {"diffpipe": __version__, "torch": str(torch.__version__)},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    tree = {
        "from": {"class": args.source, "name": source, "n": n_from},
        "to": {"class": args.target, "name": target, "n": n_to},
        "nearer_to": {
            "n": len(found.images),
            "moved": [{"strength": s, "share": share} for s, share in zip(STRENGTHS, found.shares, strict=True)],
            "real_from": found.real[0],
            "real_to": found.real[1],
        },
        "protocol": said,
    }
    protocol.write_json(tree, args.out.with_suffix(".json"))
