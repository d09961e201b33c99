"""Images between two images, through their latents, or between two noises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from diffpipe.data.index import shard_set
from diffpipe.data.index.shard_set import ShardSet
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import GeneratedImages, require_images
from diffpipe.evaluation.latent_space import LatentSpace, drawn, drawn_of_class, labelled_shards
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import Run, generated_images
from diffpipe.interfaces import Generates
from diffpipe.plural import plural
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime


class Ends(NamedTuple):
    """The first and the last image of each row, by their places in the shards, and the row's class where it has one."""

    first: Int[np.ndarray, " n"]
    last: Int[np.ndarray, " n"]
    labels: Int[Tensor, " n"] | None


def between_images(
    space: LatentSpace, shards: ShardSet, ends: Ends, t: Float[Tensor, " k"]
) -> UInt8[Tensor, "n k2 c h w"]:
    """A row of images for each pair: the first, the decoded ones at each t in [0, 1], and the last. A collective.

    Between normal latents the path is the arc. Between an autoencoder's it is the straight line: they have no prior
    that the line could leave.
    """
    path = spherical if space.stage.normal_latents else straight
    z_first, z_last = (space.of_shards(shards, places, ends.labels) for places in ends[:2])
    z = torch.stack([path(z_first, z_last, fraction.expand(len(z_first))) for fraction in t], dim=1)
    labels = None if ends.labels is None else ends.labels.repeat_interleave(len(t))
    images = space.images_of(rearrange(z, "n k ... -> (n k) ..."), labels)
    channels, resolution, _ = space.shape
    first, last = (sequential_reader.images(shards, places, resolution, channels)[:, None] for places in ends[:2])
    return torch.cat([first, rearrange(images, "(n k) c h w -> n k c h w", k=len(t)), last], dim=1)


class Interpolation(NamedTuple):
    """Rows of images from one end to another, and the name of each column: the fraction of the way, or `image`.

    between: the ends in words, such as `two noises`.
    """

    images: UInt8[Tensor, "n k c h w"]
    columns: list[str]
    between: str


def interpolate(
    run: Run, patterns: str | None, runtime: Runtime, *, n: int, points: int, seed: int, label: int | str | None
) -> Interpolation:
    """n rows of `points` images each, at even steps from one end to the other. A collective. Raises UserError.

    patterns: shards from which pairs of images are drawn; they stand at the ends of their row, and their latents are
    interpolated. None: from one noise to another. label: the number or the name of the class of the images (see
    `draw_pairs`).
    """
    if n < 1 or points < 2:
        raise UserError(f"{plural(n, 'pair')} and {plural(points, 'point')}; give 1 or more pairs and 2 or more points")
    label = run.class_label(label)
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    columns = [f"{fraction:.3g}" for fraction in t.tolist()]
    if patterns is None:
        if not isinstance(run.stage, Generates):
            kind = run.experiment.stage.kind
            raise UserError(f"a run of stage.kind {kind} generates nothing from noise; give shards with images")
        source = generated_images(run, runtime, n=n, seed=seed, label=label)
        return Interpolation(between_noises(source, t), columns, "two noises")
    space = LatentSpace(run.stage, run.nets, run.shape, runtime, seed)
    shards, ends = runtime.comm.raise_on_all_ranks(lambda: draw_pairs(run, patterns, n, seed, label))
    between = "the latents of two images" + ("" if ends.labels is None else " of a class")
    return Interpolation(between_images(space, shards, ends, t), ["image", *columns, "image"], between)


def draw_pairs(run: Run, patterns: str, n: int, seed: int, label: int | None) -> tuple[ShardSet, Ends]:
    """n pairs of images of the shards, drawn without replacement.

    Without a label they are any images. With one, or where the run is class-conditional, both images of a pair are of
    one class: latents of different classes cannot be compared. Pair i has class i mod classes where none is given.
    Raises UserError.
    """
    classes = run.shape.classes
    if label is None and not is_conditional(run):
        shards = shard_set.load(patterns)
        require_images(shards)
        if shards.total < 2 * n:
            raise UserError(
                f"{patterns} holds {plural(shards.total, 'image')}, and {2 * n} are needed for {plural(n, 'pair')}; "
                "give a smaller n"
            )
        places = drawn(shards, 2 * n, seed)
        return shards, Ends(places[:n], places[n:], None)
    if is_conditional(run) and label is not None and not 0 <= label < classes:
        raise UserError(f"label {label}: the labels of this run are 0 to {classes - 1}")
    shards = labelled_shards(patterns)
    labels = [i % classes if label is None else label for i in range(n)]
    most = 2 * max(map(labels.count, labels))
    places = drawn_of_class(shards, dict.fromkeys(labels), most, seed, least=most)
    pair = [labels[:i].count(c) for i, c in enumerate(labels)]  # the pair's number within its class
    first, last = (np.array([places[c][2 * k + end] for c, k in zip(labels, pair, strict=True)]) for end in (0, 1))
    return shards, Ends(first, last, torch.tensor(labels))


class InterpolatedRNG:
    """Normals on the arc from those of one position to those of another; all other numbers are those of the first.

    first, last: int64 [b]; t: the fraction of the way, in [0, 1]. With it any stage that generates also interpolates.
    """

    def __init__(self, seed: int, first: Int[Tensor, " b"], last: Int[Tensor, " b"], t: Float[Tensor, " b"]):
        self.positions = first
        self._first, self._last, self._t = KeyedRNG(seed, first), KeyedRNG(seed, last), t
        self.bits, self.uniform, self.integers = self._first.bits, self._first.uniform, self._first.integers

    def normal(self, purpose: str, shape: Sequence[int], stream: int = 0) -> Float[Tensor, "b ..."]:
        first, last = (rng.normal(purpose, shape, stream) for rng in (self._first, self._last))
        return spherical(first, last, self._t)


def between_noises(source: GeneratedImages, t: Float[Tensor, " k"]) -> UInt8[Tensor, "n k c h w"]:
    """Row i: from the source's image i to another of its class, from noise on the arc between theirs. A collective."""
    classes, k, device = max(source.shape.classes, 1), len(t), source.runtime.device
    offset = classes * -(-source.n // classes)  # from a row's first sample index to its last: of the same class

    def generate(chunk: range) -> Tensor:
        cells = torch.tensor(chunk, device=device)
        rows = cells // k
        labels = None
        if source.shape.classes:
            labels = rows % classes if source.label is None else torch.full_like(rows, source.label)
        rng = InterpolatedRNG(source.seed, rows, rows + offset, t.to(device)[cells % k])
        return source.stage.generate(source.nets, rng, labels).cpu()

    cells = torch.cat(map_over_ranks(source.n * k, generate, source.runtime, "sample"))
    return rearrange(cells, "(n k) c h w -> n k c h w", k=k)


def straight(
    a: Float[Tensor, " n *latent"], b: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n *latent"]:
    """The point on the line from a (t = 0) to b (t = 1), row by row."""
    t = t.double().reshape(-1, *[1] * (a.ndim - 1))
    return ((1 - t) * a.double() + t * b.double()).to(a.dtype)


def spherical(
    a: Float[Tensor, " n *latent"], b: Float[Tensor, " n *latent"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n *latent"]:
    """The point on the arc from a (t = 0) to b (t = 1), row by row (Shoemake 1985).

    Normal latents of many dimensions all have about the same norm, and so has the arc between two of them. The straight
    line passes nearer to zero, where there are none (White 2016). Parallel vectors are interpolated on the line.
    """
    flat_a, flat_b, t = a.double().flatten(1), b.double().flatten(1), t.double()[:, None]
    lengths = flat_a.norm(dim=1) * flat_b.norm(dim=1)
    cosine = (flat_a * flat_b).sum(1) / lengths.clamp(min=torch.finfo(torch.float64).tiny)
    angle = cosine.clamp(-1, 1).acos()[:, None]
    sine = angle.sin()
    arc = (((1 - t) * angle).sin() * flat_a + (t * angle).sin() * flat_b) / sine.clamp(min=1e-4)
    return torch.where(sine < 1e-4, (1 - t) * flat_a + t * flat_b, arc).reshape(a.shape).to(a.dtype)
