"""A trained run's latents and reconstructions of images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.evaluation.attributes import AttributeMove, move_between
from diffpipe.evaluation.image_sources import require_image_tensor
from diffpipe.evaluation.interpolation import Interpolation, interpolate
from diffpipe.evaluation.latent_map import Map, map_of_run
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.experiment.run import Run
from diffpipe.interfaces import Reconstructs
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Precision, Runtime


@dataclass(frozen=True)
class LoadedLatents:
    """The methods of a `LoadedRun` that go through latents."""

    _run: Run
    _runtime: Runtime

    def interpolate(
        self, n: int, points: int = 9, *, shards: str | None = None, seed: int = 0, label: int | str | None = None
    ) -> Interpolation:
        """n rows of images at even steps from one end to another: two noises, or two images of the shards.

        Raises UserError where the run generates nothing, or with shards where it has no latents of images.

        >>> run.interpolate(2, points=3).images.shape
        torch.Size([2, 3, 1, 8, 8])
        """
        return interpolate(self._run, shards, self._runtime, n=n, points=points, seed=seed, label=label)

    def move_attribute(
        self, shards: str, source: int, target: int, *, n: int = 500, seed: int = 0, precision: Precision = "fp32"
    ) -> AttributeMove:
        """Images of class `source`, moved in latent space along the direction to class `target`.

        n: most images of a class in its mean. Raises UserError for a run without latents, and a class-conditional one.
        """
        runtime = self._runtime.in_precision(precision)
        return move_between(self._run, shards, source, target, runtime, n=n, seed=seed)

    def latent_map(self, shards: str, *, n: int = 2000, seed: int = 0, precision: Precision = "fp32") -> Map:
        """Up to n images of the shards on a plane through their latents. Raises UserError for a run without latents."""
        return map_of_run(self._run, shards, self._runtime.in_precision(precision), n=n, seed=seed)

    def reconstruct(self, images: UInt8[Tensor, "n c h w"], *, seed: int = 0) -> UInt8[Tensor, "n c h w"]:
        """The images after encoding and decoding, by an autoencoder or a VAE. Raises UserError for other stages."""
        stage = self._run.stage
        if not isinstance(stage, Reconstructs):
            raise UserError(
                f"stage.kind {self._run.experiment.stage.kind} reconstructs no images; load an autoencoder or a vae"
            )

        require_image_tensor(images, self._run.shape)

        def reconstruct(indices: range) -> Tensor:
            rng = KeyedRNG(seed, torch.tensor(indices, device=self._runtime.device))
            chunk = images[indices.start : indices.stop].to(self._runtime.device)
            return stage.reconstruct(self._run.nets, chunk, rng).cpu()

        return torch.cat(map_over_ranks(len(images), reconstruct, self._runtime))
