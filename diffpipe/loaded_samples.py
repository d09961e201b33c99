"""The images that a trained run generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from jaxtyping import UInt8
from torch import Tensor

from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.samples import write_samples
from diffpipe.evaluation.trajectory import Trajectory, trajectory
from diffpipe.experiment.run import Run, generated_images, open_run, reconfigured
from diffpipe.experiment.sampling_options import SamplingOptions, sampling_overrides
from diffpipe.train.runtime import Runtime


@dataclass(frozen=True)
class LoadedSamples:
    """The methods of a `LoadedRun` that generate."""

    _run: Run
    _runtime: Runtime
    _overrides: tuple[str, ...]

    def write_samples(
        self,
        folder: str | Path,
        n: int,
        *,
        seed: int = 0,
        label: int | str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> None:
        """Write n images as `diffpipe sample` does: `000000.png` … by sample index, `grid.png` and `samples.json`.

        The images are those of `sample`. A folder with images of another set is refused, one with images of this set is
        continued. No process holds more of them at a time than a chunk.
        """
        write_samples(self._generated(options, n=n, seed=seed, label=label), Path(folder), self._runtime)

    def sample(
        self, n: int, *, seed: int = 0, label: int | str | None = None, **options: Unpack[SamplingOptions]
    ) -> UInt8[Tensor, "n c h w"]:
        """n images, as `diffpipe sample` writes them: image i depends on (seed, i) and the weights alone.

        label: the class of all images, by its number or its name; None: image i of a class-conditional run is of class
        i mod classes. options: see `SamplingOptions`. Raises UserError for an option that the run's stage does not
        have.

        >>> run.sample(4, seed=1, sampler="dpmpp_2m", steps=2, spacing="log_snr").shape
        torch.Size([4, 1, 8, 8])
        """
        source = self._generated(options, n=n, seed=seed, label=label)
        return torch.cat(map_over_ranks(n, source.images, self._runtime))

    def trajectory(
        self,
        n: int = 8,
        columns: int = 11,
        *,
        seed: int = 0,
        label: int | str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Trajectory:
        """The reverse chain of the first n images of `sample`, from pure noise to x_0, at up to `columns` noise levels.

        options: see `SamplingOptions`. Raises UserError where the run generates without a chain.

        >>> trajectory = run.trajectory(2, columns=3, steps=2)
        >>> trajectory.x_t.shape, trajectory.x0.shape, trajectory.ratios[-1]
        (torch.Size([2, 3, 1, 8, 8]), torch.Size([2, 3, 1, 8, 8]), 0.0)
        """
        chosen = self._sampling(options)
        return trajectory(chosen, self._runtime, n=n, columns=columns, seed=seed, label=label)

    def _generated(self, options: SamplingOptions, *, n: int, seed: int, label: int | str | None) -> GeneratedImages:
        return generated_images(self._sampling(options), self._runtime, n=n, seed=seed, label=label)

    def _sampling(self, options: SamplingOptions) -> Run:
        """The run with these options of sampling. A collective."""
        words, ema = sampling_overrides(options), options.get("ema")
        if ema is None:
            return self._overridden(words)
        return open_run(self._run.checkpoint.path, [*self._overrides, *words], self._runtime, ema=ema)

    def _with(self, **sampler: Any) -> Run:
        """The run with these keys of its sampler; None leaves one as it is."""
        return self._overridden([f"stage.sampler.{key}={value}" for key, value in sampler.items() if value is not None])

    def _overridden(self, words: Sequence[str]) -> Run:
        return reconfigured(self._run, [*self._overrides, *words], self._runtime) if words else self._run
