"""`diffpipe latent-map RUN SHARDS OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, UInt8
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from diffpipe.cli.encoding import LatentSpace, class_names, drawn, labelled_shards
from diffpipe.cli.images import grid
from diffpipe.cli.likelihood import is_conditional
from diffpipe.cli.picture import require_png, save
from diffpipe.cli.runs import Run, open_run
from diffpipe.cli.terminal import say
from diffpipe.data.index.shard_set import ShardSet, number_of_classes
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.train.runtime import Runtime

SIDE = 15  # decoded images along each side of the plane
MIDDLE = (0.02, 0.98)  # the quantiles of the map between which it is decoded


class Plane(NamedTuple):
    """Where the map lies among the latents, taken as vectors of d numbers: z = origin + x axes[0] + y axes[1].

    explained: the share of the latents' variance along each axis; None where the latents are the plane.
    """

    origin: Float64[Tensor, " d"]
    axes: Float64[Tensor, "2 d"]
    explained: tuple[float, float] | None

    def points(self, z: Float[Tensor, "n d"]) -> Float64[Tensor, "n 2"]:
        return (z.double() - self.origin) @ self.axes.T

    def latents(self, points: Float64[Tensor, "n 2"]) -> Float[Tensor, "n d"]:
        return (self.origin + points @ self.axes).float()


class Map(NamedTuple):
    """Latents on their plane with their labels, and the images of a lattice on it, the top row first.

    corners: of the lattice, its lowest and its highest x and y.
    """

    plane: Plane
    points: Float64[Tensor, "n 2"]
    labels: Int[Tensor, " n"]
    corners: Float64[Tensor, "2 2"]
    decoded: UInt8[Tensor, "m c h w"] | None


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
        runtime.together(lambda: require_png(args.out))
        opened = open_run(args.run, [], runtime, raw=args.raw)
        space = LatentSpace(opened.stage, opened.nets, opened.shape, runtime, args.seed)
        shards = runtime.together(lambda: _shards(args.shards, opened))
        found = latent_map(space, shards, drawn(shards, args.n, args.seed), conditional=is_conditional(opened))
        given = ", each given its class" if is_conditional(opened) else ""
        picture = draw(found, class_names(shards), f"{opened.title}: the latents of {len(found.points)} images{given}")
        runtime.together(lambda: save(picture, args.out) if runtime.main else None)
        say(runtime, f"{len(found.points)} latents{_explained(found.plane)}: {args.out}")


def _shards(patterns: str, opened: Run) -> ShardSet:
    shards, classes = labelled_shards(patterns), opened.shape.classes
    if is_conditional(opened) and number_of_classes(shards) > classes:
        raise UserError(f"{patterns} holds {number_of_classes(shards)} classes and the run was trained on {classes}")
    return shards


def latent_map(
    space: LatentSpace, shards: ShardSet, places: Int[np.ndarray, " n"], *, conditional: bool = False
) -> Map:
    """The map of the images at these places. A collective.

    Nothing is decoded of a class-conditional stage: a point of the plane has no class. Raises UserError for latents of
    one number.
    """
    labels = space.runtime.together(lambda: sequential_reader.labels(shards, places))
    z = space.of_shards(shards, places, labels if conditional else None)
    latent, z = z.shape[1:], z.flatten(1)
    if z.shape[1] < 2:
        raise UserError("the latents of this run are one number each, and a map needs two")
    plane = principal(z)
    points = plane.points(z)
    corners = torch.quantile(points, torch.tensor(MIDDLE, dtype=torch.float64), dim=0)
    decoded = None
    if not conditional:
        cells = plane.latents(lattice(corners, SIDE))
        decoded = space.images_of(cells.reshape(-1, *latent), None)
    return Map(plane, points, labels, corners, decoded)


def principal(z: Float[Tensor, "n d"]) -> Plane:
    """The plane of latents of two numbers; else of the first two principal components (Pearson 1901).

    An axis points where its largest number is positive, so that it does not depend on who computes it.
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


def draw(found: Map, names: Sequence[str], title: str) -> Figure:
    """The map coloured by class, and beside it what the stage decodes on its plane."""
    panels = 1 if found.decoded is None else 2
    figure = Figure(figsize=(1.6 + 6 * panels, 6.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    k = len(names)
    colours = colormaps["tab10" if k <= 10 else "tab20" if k <= 20 else "turbo"]
    shades = [colours(i if k <= 20 else i / (k - 1)) for i in range(k)]
    axes[0].scatter(*found.points.T, c=[shades[label] for label in found.labels.tolist()], s=9, linewidths=0, alpha=0.8)
    axes[0].set_title("images by their class")
    dots = [Line2D([], [], marker="o", linestyle="", color=shade) for shade in shades]
    figure.legend(dots, names, loc="outside right upper", ncols=-(-k // 25), frameon=False)
    if found.decoded is not None:
        (left, bottom), (right, top) = found.corners.tolist()
        axes[0].add_patch(
            Rectangle((left, bottom), right - left, top - bottom, fill=False, linestyle="--", edgecolor="grey")
        )
        cells = np.asarray(grid(found.decoded, columns=SIDE))
        axes[1].imshow(cells, extent=(left, right, bottom, top), aspect="auto", cmap="gray", vmin=0, vmax=255)
        axes[1].set_title("decoded: what lies where, in the dashed frame")
    for each in axes:
        each.set(xlabel=_axis(found.plane, 0), ylabel=_axis(found.plane, 1))
    figure.suptitle(title)
    return figure


def _axis(plane: Plane, i: int) -> str:
    if plane.explained is None:
        return f"latent {i + 1}"
    return f"principal component {i + 1} ({100 * plane.explained[i]:.1f}% of the variance)"


def _explained(plane: Plane) -> str:
    if plane.explained is None:
        return ""
    return f" on the first two principal components, {100 * sum(plane.explained):.1f}% of their variance"
