"""`diffpipe attribute RUN SHARDS OUT --from CLASS --to CLASS`."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from diffpipe import __version__
from diffpipe.cli.encoding import LatentSpace, class_names, drawn_of_class, labelled_shards
from diffpipe.cli.likelihood import is_conditional
from diffpipe.cli.picture import labelled_grid, require_png, save
from diffpipe.cli.runs import Run, open_run
from diffpipe.cli.terminal import say
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.metrics import protocol
from diffpipe.train.runtime import Runtime

STRENGTHS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FEWEST = 2  # images of a class: the mean of one is no mean
JUDGED = 100  # moved images that are encoded again to see which class they have come to


class Moved(NamedTuple):
    """Images moved along the direction from one class's mean latent to another's, as `move` describes it."""

    images: UInt8[Tensor, "n strengths c h w"]
    shares: list[float]
    real: tuple[float, float]


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
        runtime.together(lambda: require_png(args.out))
        opened = open_run(args.run, [], runtime, raw=args.raw)
        space = LatentSpace(opened.stage, opened.nets, opened.shape, runtime, args.seed)
        if is_conditional(opened):
            raise UserError(
                f"{args.run}: a class-conditional stage has the class from the label, and its latents lack it; "
                f"give a run trained with stage.conditional=false, or sample a class with --label"
            )
        shards = runtime.together(lambda: labelled_shards(args.shards))
        classes = (args.source, args.target)
        places = runtime.together(lambda: drawn_of_class(shards, classes, args.n, args.seed, least=FEWEST))
        found = move(space, shards, places[args.source], places[args.target])
        runtime.together(lambda: _write(found, opened, shards, places, args, runtime) if runtime.main else None)
        names = class_names(shards)
        say(runtime, f"{_table(found, names[args.source], names[args.target])}\n{args.out}")


def move(space: LatentSpace, shards: ShardSet, source: Int[np.ndarray, " n"], target: Int[np.ndarray, " m"]) -> Moved:
    """Up to `JUDGED` images of the source class, moved by each of the `STRENGTHS`. A collective.

    The direction is the difference of the mean latents of all source and all target images: strength 1 moves the one
    mean to the other. shares: how many of the moved images, decoded and encoded again, lie nearer to the target's mean,
    by strength; real: how many of the real source and of the real target images do.
    """
    z_from, z_to = (space.of_shards(shards, places, None) for places in (source, target))
    z = along(z_from[:JUDGED], direction(z_from, z_to), STRENGTHS)
    images = space.images_of(rearrange(z, "n k ... -> (n k) ..."), None)
    again = rearrange(space.of_images(images, None), "(n k) ... -> k n ...", k=len(STRENGTHS))
    shares = [share_nearer(each, z_from, z_to) for each in again]
    real = share_nearer(z_from, z_from, z_to), share_nearer(z_to, z_from, z_to)
    return Moved(rearrange(images, "(n k) c h w -> n k c h w", k=len(STRENGTHS)), shares, real)


def direction(z_from: Float[Tensor, " n *latent"], z_to: Float[Tensor, " m *latent"]) -> Float64[Tensor, "*latent"]:
    """From the mean of the one to the mean of the other."""
    return z_to.double().mean(0) - z_from.double().mean(0)


def along(
    z: Float[Tensor, " n *latent"], step: Float64[Tensor, "*latent"], strengths: Sequence[float]
) -> Float[Tensor, "n k *latent"]:
    """Each latent with the step added to it at each strength."""
    return torch.stack([(z.double() + strength * step).to(z.dtype) for strength in strengths], dim=1)


def share_nearer(
    z: Float[Tensor, " n *latent"], z_from: Float[Tensor, " _ *latent"], z_to: Float[Tensor, " _ *latent"]
) -> float:
    """How many of the latents are nearer to the mean of `z_to` than to that of `z_from`, as a share."""
    squares = [(z.double() - each.double().mean(0)).flatten(1).square().sum(1) for each in (z_from, z_to)]
    return float((squares[1] < squares[0]).double().mean())


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
