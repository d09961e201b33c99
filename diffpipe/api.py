"""The Python API: `diffpipe.load`, `diffpipe.stream` and `diffpipe.train`. The commands do the same.

Under `accelerate launch` every process makes the same calls, and all get the same results.
"""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe import plugins
from diffpipe.config import load_config, override, validate
from diffpipe.data.config import DataConfig
from diffpipe.data.loader import mixture
from diffpipe.data.loader.stream import batches
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import TensorImages
from diffpipe.evaluation.likelihood import Likelihoods, require_likelihood, score_images, scoring_stage
from diffpipe.evaluation.map_over_ranks import map_over_ranks
from diffpipe.evaluation.nll import measure_nll
from diffpipe.evaluation.samples import write_samples
from diffpipe.evaluation.score_sources import score_sources
from diffpipe.evaluation.scores import score
from diffpipe.experiment import training
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import Run, generated_images, open_run, reconfigured
from diffpipe.interfaces import Batch, Reconstructs
from diffpipe.metrics.protocol import Result
from diffpipe.rng import KeyedRNG
from diffpipe.train.callbacks import Callback
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Device, Precision, Runtime

__all__ = ["Callback", "LoadedRun", "load", "load_plugin", "stream", "train"]


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, to sample from and to score. `load` makes it.

    Options of a method that are None are as the run's config says. It is a context manager: under several processes,
    leaving it leaves their group.
    """

    _run: Run
    _runtime: Runtime
    _overrides: tuple[str, ...]

    def __enter__(self) -> LoadedRun:
        return self

    def __exit__(self, *error: Any) -> None:
        self._runtime.__exit__(*error)

    @property
    def config(self) -> Experiment:
        """The run's config, as it was trained."""
        return self._run.experiment

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by name, on the device, in evaluation mode."""
        return self._run.nets

    @property
    def step(self) -> int:
        """The steps that the weights were trained for."""
        return self._run.checkpoint.step

    @property
    def weights(self) -> str:
        """The kind of the weights: "ema", their moving average, or "raw", the trained ones."""
        return self._run.weights

    def print(self, message: str) -> None:
        """Print a line on stderr, on rank 0 alone."""
        print_on_rank_zero(self._runtime, message)

    def write_samples(self, folder: Path, n: int, *, seed: int = 0, label: int | None = None) -> None:
        """Write n images as `diffpipe sample` does: `000000.png` … by sample index, and `grid.png` with the first ones.

        The images are those of `sample`. No process holds more of them at a time than a chunk.
        """
        write_samples(generated_images(self._run, self._runtime, n=n, seed=seed, label=label), folder, self._runtime)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: int | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
    ) -> UInt8[Tensor, "n c h w"]:
        """n images, as `diffpipe sample` writes them: image i depends on (seed, i) and the weights alone.

        label: the class of all images; None: image i of a class-conditional run is of class i mod classes. steps:
        network evaluations per image. Raises UserError for an option that the run's stage does not have.

        >>> run.sample(4, seed=1, steps=2).shape
        torch.Size([4, 1, 8, 8])
        """
        if n < 1:
            raise UserError(f"n is {n}; give 1 or more")
        chosen = self._with(kind=sampler, steps=steps, eta=eta, guidance=guidance, temperature=temperature)
        source = generated_images(chosen, self._runtime, n=n, seed=seed, label=label)
        return torch.cat(map_over_ranks(n, source.images, self._runtime))

    def score(
        self,
        reference: str | Path,
        *,
        n: int = 1000,
        metrics: Sequence[str] = ("fd_efficientnet_lite0", "kid_efficientnet_lite0"),
        seed: int = 0,
        label: int | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        floor: str | None = None,
        inception: str | None = None,
    ) -> Result:
        """The scores of n generated images, as `diffpipe eval` computes them: `.scores`, `.floor` and `.protocol`.

        reference: a folder or shards of real images. floor: other real images, whose score shows how low one can get;
        None: the run's training shards; "split": the halves of the reference. inception: a file with the weights of
        fid and kid; None: they are downloaded once.

        >>> result = run.score(shards, n=4, metrics=["fd_efficientnet_lite0"], steps=2, floor="split")
        >>> result.scores["fd_efficientnet_lite0"] > 0
        True
        """
        chosen = self._with(kind=sampler, steps=steps)
        generated = generated_images(chosen, self._runtime, n=n, seed=seed, label=label)
        sources = self._runtime.comm.raise_on_all_ranks(lambda: score_sources(generated, chosen, str(reference), floor))
        return score(*sources, metrics, self._runtime, inception_weights=inception)

    def nll(
        self,
        images: str | UInt8[Tensor, "n c h w"],
        *,
        labels: Int[Tensor, " n"] | None = None,
        n: int = 1000,
        seed: int = 0,
        steps: int | None = None,
        importance_samples: int | None = None,
    ) -> Likelihoods:
        """The negative log-likelihood of each image, as `diffpipe nll` computes it, in fp32.

        images: shards, of which n are taken, or images at the run's resolution, with labels for a class-conditional
        run. steps: network evaluations per image for a diffusion's bound. importance_samples: latents per image for a
        VAE's. Raises UserError where the run has no likelihood.

        >>> likelihoods = run.nll(shards, n=4, steps=2)
        >>> likelihoods.unit, likelihoods.values["score"].shape
        ('bits/dim', torch.Size([4]))
        """
        runtime = replace(self._runtime, dtype=torch.float32)
        chosen = self._with(vlb_steps=steps, importance_samples=importance_samples)
        if isinstance(images, str):
            return measure_nll(chosen, images, runtime, n=n, seed=seed).likelihoods
        scoring_stage(chosen, likelihood=True)
        likelihoods = score_images(chosen, TensorImages(images, labels), seed, runtime)
        require_likelihood(likelihoods, chosen)
        return likelihoods

    def reconstruct(self, images: UInt8[Tensor, "n c h w"], *, seed: int = 0) -> UInt8[Tensor, "n c h w"]:
        """The images after encoding and decoding, by an autoencoder or a VAE. Raises UserError for other stages."""
        stage = self._run.stage
        if not isinstance(stage, Reconstructs):
            raise UserError(f"stage.kind {self.config.stage.kind} reconstructs no images; load an autoencoder or a vae")

        def again(indices: range) -> Tensor:
            rng = KeyedRNG(seed, torch.tensor(indices, device=self._runtime.device))
            chunk = images[indices.start : indices.stop].to(self._runtime.device)
            return stage.reconstruct(self.networks, chunk, rng).cpu()

        return torch.cat(map_over_ranks(len(images), again, self._runtime))

    def _with(self, **sampler: Any) -> Run:
        """The run with these keys of its sampler; None leaves one as it is."""
        words = [f"stage.sampler.{key}={value}" for key, value in sampler.items() if value is not None]
        return reconfigured(self._run, [*self._overrides, *words], self._runtime) if words else self._run


def load(
    run: str | Path,
    *,
    raw: bool = False,
    overrides: Sequence[str] = (),
    precision: Precision = "auto",
    device: Device = "auto",
) -> LoadedRun:
    """Load a run directory, or one checkpoint in it. Raises UserError.

    raw: the trained weights instead of their moving average. overrides: of the run's config, such as
    `stage.codec.run=PATH` where the VAE of a latent diffusion has moved.

    >>> run = diffpipe.load("runs/tiny")
    >>> run.config.stage.kind, run.step, list(run.networks)
    ('ddpm', 2, ['denoiser'])
    """
    runtime = Runtime.start(precision, device)
    return LoadedRun(open_run(Path(run), overrides, runtime, raw=raw), runtime, tuple(overrides))


def stream(
    shards: str | Sequence[str],
    *,
    batch_size: int,
    resolution: int,
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    **options: Any,
) -> Generator[Batch, None, None]:
    """The batches that training would see: without end, from position `start` of the stream on.

    shards: as `data.train`. batch_size: over all `world` ranks; this rank gets its share. options: other keys of the
    `data` section, such as channels=1, labels=True, flip=True, workers=4. Close the generator to end its workers.
    Raises UserError.

    >>> batch = next(diffpipe.stream(shards, batch_size=4, resolution=8, channels=1, workers=0))
    >>> batch.images.shape, batch.images.dtype, batch.positions.tolist()
    (torch.Size([4, 1, 8, 8]), torch.uint8, [0, 1, 2, 3])
    """
    places = shards if isinstance(shards, str) else list(shards)
    tree = {"train": places, "batch_size": batch_size, "resolution": resolution, **options}
    config = validate(DataConfig, tree, source="diffpipe.stream")
    shard_set = mixture.load_sources(config.train, config.sources, config.shard_cache)
    return batches(config, shard_set, seed, start=start, rank=rank, world=world)


def train(
    config: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, callbacks: Sequence[Callback] = ()
) -> signal.Signals | None:
    """Train as `diffpipe train` does: resume where the run directory has checkpoints.

    config: a YAML file, or its sections as a mapping. overrides: `key=value` words laid over it. callbacks: see
    `Callback`. Returns None after the last step, or the signal that stopped the run, which has saved then. Raises
    UserError.

    >>> class Printer(diffpipe.Callback):
    ...     def on_log(self, values, step):
    ...         print(step, "loss" in values)
    >>> diffpipe.train(config, ["run.dir=runs/tiny", "train.steps=2"], callbacks=[Printer()])
    1 True
    2 True
    """
    if isinstance(config, Mapping):
        tree: dict[str, Any] = {
            key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()
        }
        for word in overrides:
            override(tree, word)
        experiment = validate(Experiment, tree, source="diffpipe.train")
    else:
        experiment = load_config(Experiment, config, list(overrides))
    return training.train(experiment, callbacks)


def load_plugin(module: str) -> None:
    """Add the stages, networks, … of a module or a `.py` file, as `--plugin` does. Raises UserError."""
    plugins.load(module)
