"""`diffpipe interpolate RUN OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from diffpipe.cli.encoding import LatentSpace, drawn, drawn_of_class, labelled_shards
from diffpipe.cli.images import GeneratedImages, require_images
from diffpipe.cli.likelihood import is_conditional
from diffpipe.cli.picture import labelled_grid, require_png, save
from diffpipe.cli.runs import Run, add_sampling_arguments, generated_images, open_run, sampler_overrides
from diffpipe.cli.sharing import in_chunks
from diffpipe.cli.terminal import say
from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.interfaces import Generates
from diffpipe.rng import Draws
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
        runtime.together(lambda: require_png(args.out))
        opened = open_run(args.run, sampler_overrides(args), runtime, raw=args.raw)
        t = torch.linspace(0, 1, args.columns, dtype=torch.float64)
        columns = [f"{each:.3g}" for each in t.tolist()]
        title = f"{opened.title}: "
        if args.shards:
            space = LatentSpace(opened.stage, opened.nets, opened.shape, runtime, args.seed)
            shards, ends = runtime.together(lambda: _pairs(args, opened))
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
        runtime.together(lambda: save(picture, args.out) if runtime.main else None)
        say(runtime, f"{args.n} pairs, {args.columns} points from one to the other: {args.out}")


class Ends(NamedTuple):
    """The images that rows begin and end with, by their places in the shards, and a row's class, where it matters."""

    first: Int[np.ndarray, " n"]
    last: Int[np.ndarray, " n"]
    labels: Int[Tensor, " n"] | None


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


def between_images(
    space: LatentSpace, shards: ShardSet, ends: Ends, t: Float[Tensor, " k"]
) -> UInt8[Tensor, "n k2 c h w"]:
    """A row of images for each pair: the first, those decoded on the way at each t, and the last. A collective.

    The way is the arc between normal latents and the straight line between an autoencoder's, which keep to no prior
    that the line could leave.
    """
    way = spherical if space.stage.normal_latents else straight
    z_first, z_last = (space.of_shards(shards, places, ends.labels) for places in ends[:2])
    z = torch.stack([way(z_first, z_last, each.expand(len(z_first))) for each in t], dim=1)
    labels = None if ends.labels is None else ends.labels.repeat_interleave(len(t))
    images = space.images_of(rearrange(z, "n k ... -> (n k) ..."), labels)
    channels, resolution, _ = space.shape
    first, last = (sequential_reader.images(shards, places, resolution, channels)[:, None] for places in ends[:2])
    return torch.cat([first, rearrange(images, "(n k) c h w -> n k c h w", k=len(t)), last], dim=1)


class Between(Draws):
    """Normals on the arc from those of one position to those of another, and all else as at the first.

    first, last: int64 [b]; t: where on the way, in [0, 1]. So any stage that generates also interpolates.
    """

    def __init__(self, seed: int, first: Int[Tensor, " b"], last: Int[Tensor, " b"], t: Float[Tensor, " b"]):
        super().__init__(seed, first)
        self.last, self.t = Draws(seed, last), t

    def normal(self, purpose: str, shape: Sequence[int], stream: int = 0) -> Float[Tensor, "b ..."]:
        return spherical(super().normal(purpose, shape, stream), self.last.normal(purpose, shape, stream), self.t)


def between_noises(source: GeneratedImages, t: Float[Tensor, " k"]) -> UInt8[Tensor, "n k c h w"]:
    """A row from the source's image i to another of its class, made of the noises between theirs. A collective."""
    classes, k, device = max(source.shape.classes, 1), len(t), source.runtime.device
    away = classes * -(-source.n // classes)

    def each(chunk: range) -> Tensor:
        cells = torch.tensor(chunk, device=device)
        rows = cells // k
        labels = None
        if source.shape.classes:
            labels = rows % classes if source.label is None else torch.full_like(rows, source.label)
        draws = Between(source.seed, rows, rows + away, t.to(device)[cells % k])
        return source.stage.generate(source.nets, draws, labels).cpu()

    cells = torch.cat(in_chunks(source.n * k, each, source.runtime, "sample"))
    return rearrange(cells, "(n k) c h w -> n k c h w", k=k)


def straight(
    a: Float[Tensor, " n *latent"], b: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n *latent"]:
    """On the line from a (t = 0) to b (t = 1), row by row."""
    t = t.double().reshape(-1, *[1] * (a.ndim - 1))
    return ((1 - t) * a.double() + t * b.double()).to(a.dtype)


def spherical(
    a: Float[Tensor, " n *latent"], b: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n *latent"]:
    """On the arc from a (t = 0) to b (t = 1), row by row (Shoemake 1985).

    Normal latents of many numbers all lie about equally far from zero, and so does the arc between two of them; the
    straight line passes nearer to zero, where there are none (White 2016). Where the two are parallel it is the line.
    """
    flat_a, flat_b, t = a.double().flatten(1), b.double().flatten(1), t.double()[:, None]
    lengths = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = (flat_a * flat_b).sum(1) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    angle = cosine.clamp(-1, 1).acos()[:, None]
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * flat_a + (t * angle).sin() * flat_b) / sine.clamp(min=1e-4)
    return torch.where(sine < 1e-4, (1 - t) * flat_a + t * flat_b, arc).reshape(a.shape).to(a.dtype)
