"""The latents of images on a plane, and the images of the plane."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from diffpipe.data.index.shard_set import ShardSet, number_of_classes
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.latent_space import LatentSpace, class_names, drawn, labelled_shards
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.experiment.run import Run
from diffpipe.plural import plural
from diffpipe.train.runtime import Runtime

SIDE = 15  # decoded images along each side of the plane
MIDDLE = (0.02, 0.98)  # quantiles of the points: the part of the plane that is decoded


class Plane(NamedTuple):
    """The plane of the map in the space of flattened latents: z = origin + x axes[0] + y axes[1].

    explained: the share of the latents' variance along each axis; None where the latents have two dimensions.
    """

    origin: Float64[Tensor, " d"]
    axes: Float64[Tensor, "2 d"]
    explained: tuple[float, float] | None

    def points(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, "n 2"]:
        return (z.double() - self.origin) @ self.axes.T

    def text(self) -> str:
        """The variance that the plane explains; empty where it is all of it."""
        if self.explained is None:
            return ""
        return f" on the first two principal components, {100 * sum(self.explained):.1f}% of their variance"

    def latents(self, points: Float64[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        return (self.origin + points @ self.axes).float()


class Map(NamedTuple):
    """Latents on their plane with their labels, and the decoded images of a lattice on it, the top row first.

    classes: their names. corners: the lowest and the highest x and y of the lattice. decoded: None for a
    class-conditional stage.
    """

    plane: Plane
    points: Float64[Tensor, "n 2"]
    labels: Int[Tensor, " n"]
    classes: list[str]
    corners: Float64[Tensor, "2 2"]
    decoded: UInt8[Tensor, "m c h w"] | None


def map_of_run(run: Run, patterns: str, runtime: Runtime, *, n: int, seed: int) -> Map:
    """The map of up to n images of the shards. A collective.

    Raises UserError for a stage without latents, and classes that the run was not trained on.
    """
    if n < 3:
        raise UserError(f"n is {n}; a map needs 3 images or more")
    space = LatentSpace(run.stage, run.nets, run.shape, runtime, seed)
    shards = runtime.comm.raise_on_all_ranks(lambda: _labelled_shards(patterns, run))
    return latent_map(space, shards, drawn(shards, n, seed), conditional=is_conditional(run))


def _labelled_shards(patterns: str, run: Run) -> ShardSet:
    shards, classes = labelled_shards(patterns), run.shape.classes
    if is_conditional(run) and number_of_classes(shards) > classes:
        raise UserError(
            f"{patterns} holds {plural(number_of_classes(shards), 'class', 'classes')} and the run was trained on "
            f"{classes}"
        )
    return shards


def latent_map(
    space: LatentSpace, shards: ShardSet, places: Int[np.ndarray, " n"], *, conditional: bool = False
) -> Map:
    """The map of the images at these places. A collective.

    A class-conditional stage decodes nothing, because a point of the plane has no class. Raises UserError for latents
    of one dimension.
    """
    labels = space.runtime.comm.raise_on_all_ranks(lambda: sequential_reader.labels(shards, places))
    z = space.of_shards(shards, places, labels if conditional else None)
    latent, z = z.shape[1:], z.flatten(1)
    if z.shape[1] < 2:
        raise UserError("the latents of this run have one dimension, and a map needs two")
    plane = principal(z)
    points = plane.points(z)
    corners = torch.quantile(points, torch.tensor(MIDDLE, dtype=torch.float64), dim=0)
    decoded = None
    if not conditional:
        cells = plane.latents(lattice(corners, SIDE))
        decoded = space.images_of(cells.reshape(-1, *latent), None)
    return Map(plane, points, labels, class_names(shards), corners, decoded)


def principal(z: Float[Tensor, "n d"]) -> Plane:
    """The plane of the first two principal components (Pearson 1901), or all of two-dimensional latents.

    The sign of an axis makes its largest entry positive, so that it does not depend on the machine.
    """
    if z.shape[1] == 2:
        return Plane(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), None)
    z = z.double()
    origin = z.mean(0)
    _, singular, rows = torch.linalg.svd(z - origin, full_matrices=False)
    largest = rows[:2].gather(1, rows[:2].abs().argmax(dim=1, keepdim=True))
    shares = singular.square() / singular.square().sum()
    return Plane(origin, rows[:2] * largest.sign(), (float(shares[0]), float(shares[1])))


def lattice(corners: Float64[Tensor, "2 2"], side: int) -> Float64[Tensor, "m 2"]:
    """The middles of side × side equal cells between the corners, row by row from the top (the largest y)."""
    steps = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    x, y = (corners[0] + steps[:, None] * (corners[1] - corners[0])).T
    return torch.stack([x.repeat(side), y.flip(0).repeat_interleave(side)], dim=1)
