"""Images moved in latent space along the direction from one class to another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from diffpipe.data.index.shard_set import ShardSet
from diffpipe.errors import UserError
from diffpipe.evaluation.latent_space import LatentSpace, class_names, drawn_of_class, labelled_shards
from diffpipe.evaluation.likelihood import is_conditional
from diffpipe.experiment.run import Run
from diffpipe.metrics.protocol import provenance
from diffpipe.train.runtime import Runtime

STRENGTHS = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
FEWEST = 2  # images of a class that a mean needs
ENCODED_AGAIN = 100  # most moved images that are encoded again, to see which class they are nearer to


class Moved(NamedTuple):
    """Images moved from one class towards another, as `move` describes.

    shares: of the moved images nearer to the target, by strength. real: of the real source and the real target images.
    """

    images: UInt8[Tensor, "n strengths c h w"]
    shares: list[float]
    real: tuple[float, float]

    def text(self, source: str, target: str) -> str:
        """The shares in one line. source, target: the names of the classes."""
        shares = " ".join(f"{100 * share:.0f}%" for share in self.shares)
        strengths = " ".join(f"{strength:g}" for strength in STRENGTHS)
        return (
            f"nearer to {target} than to {source} at strengths {strengths}: {shares} "
            f"(real {source}: {100 * self.real[0]:.0f}%, real {target}: {100 * self.real[1]:.0f}%)"
        )


class ClassPair(NamedTuple):
    """Labelled shards, two classes, and the places of their images in the shards."""

    shards: ShardSet
    source: int
    target: int
    places: dict[int, Int[np.ndarray, " _"]]

    @property
    def names(self) -> tuple[str, str]:
        names = class_names(self.shards)
        return names[self.source], names[self.target]


class AttributeMove(NamedTuple):
    """The images of one class moved towards another, with the protocol."""

    pair: ClassPair
    moved: Moved
    protocol: dict[str, Any]

    def text(self) -> str:
        """The shares in one line."""
        return self.moved.text(*self.pair.names)

    def tree(self) -> dict[str, Any]:
        """JSON values: the classes, the shares by strength, and the protocol."""
        pair, moved = self.pair, self.moved
        (n_source, n_target), (source, target) = map(len, pair.places.values()), pair.names
        return {
            "from": {"class": pair.source, "name": source, "n": n_source},
            "to": {"class": pair.target, "name": target, "n": n_target},
            "nearer_to": {
                "n": len(moved.images),
                "moved": [{"strength": s, "share": share} for s, share in zip(STRENGTHS, moved.shares, strict=True)],
                "real_from": moved.real[0],
                "real_to": moved.real[1],
            },
            "protocol": self.protocol,
        }


def move_between(
    run: Run, patterns: str, source: int, target: int, runtime: Runtime, *, n: int, seed: int
) -> AttributeMove:
    """Move images of class `source` towards `target`; up to n images of each make the means. A collective.

    Raises UserError for one class, a stage without latents, a class-conditional one, and a class with fewer than
    `FEWEST` images.
    """
    if source == target:
        raise UserError(f"class {source} is both the one to move from and the one to move to; give two classes")
    if n < FEWEST:
        raise UserError(f"n is {n}; the mean of a class needs {FEWEST} images or more")
    space = LatentSpace(run.stage, run.nets, run.shape, runtime, seed)
    if is_conditional(run):
        raise UserError(
            f"{run.home}: a class-conditional stage has the class from the label, and its latents lack it; "
            f"give a run trained with stage.conditional=false, or sample a class by its label"
        )
    shards = runtime.comm.raise_on_all_ranks(lambda: labelled_shards(patterns))
    classes = (source, target)
    places = runtime.comm.raise_on_all_ranks(lambda: drawn_of_class(shards, classes, n, seed, least=FEWEST))
    protocol = {
        "model": {"stage": run.experiment.stage.kind, **run.describe()},
        "precision": str(runtime.dtype).removeprefix("torch."),
        "seed": seed,
        "shards": {"paths": shards.paths, "fingerprint": shards.fingerprint},
        **provenance(),
    }
    moved = move(space, shards, places[source], places[target])
    return AttributeMove(ClassPair(shards, source, target, places), moved, protocol)


def move(space: LatentSpace, shards: ShardSet, source: Int[np.ndarray, " n"], target: Int[np.ndarray, " m"]) -> Moved:
    """Up to `ENCODED_AGAIN` images of the source class, moved by each of the `STRENGTHS`. A collective.

    The direction is the difference of the mean latents of all source and all target images: strength 1 moves the one
    mean to the other. The shares are of images that lie nearer to the target's mean; the moved ones are decoded and
    encoded again to tell.
    """
    z_from, z_to = (space.of_shards(shards, places, None) for places in (source, target))
    z = along(z_from[:ENCODED_AGAIN], direction(z_from, z_to), STRENGTHS)
    images = space.images_of(rearrange(z, "n k ... -> (n k) ..."), None)
    z_moved = rearrange(space.of_images(images, None), "(n k) ... -> k n ...", k=len(STRENGTHS))
    shares = [share_nearer(z, z_from, z_to) for z in z_moved]
    real = share_nearer(z_from, z_from, z_to), share_nearer(z_to, z_from, z_to)
    return Moved(rearrange(images, "(n k) c h w -> n k c h w", k=len(STRENGTHS)), shares, real)


def direction(z_from: Float[Tensor, " n *latent"], z_to: Float[Tensor, " m *latent"]) -> Float64[Tensor, "*latent"]:
    """The difference of the means."""
    return z_to.double().mean(0) - z_from.double().mean(0)


def along(
    z: Float[Tensor, " n *latent"], step: Float64[Tensor, "*latent"], strengths: Sequence[float]
) -> Float[Tensor, "n k *latent"]:
    """Each latent with the step added to it at each strength."""
    return torch.stack([(z.double() + strength * step).to(z.dtype) for strength in strengths], dim=1)


def share_nearer(
    z: Float[Tensor, " n *latent"], z_from: Float[Tensor, " _ *latent"], z_to: Float[Tensor, " _ *latent"]
) -> float:
    """The share of the latents `z` that are nearer to the mean of `z_to` than to that of `z_from`."""
    squares = [(z.double() - others.double().mean(0)).flatten(1).square().sum(1) for others in (z_from, z_to)]
    return float((squares[1] < squares[0]).double().mean())
