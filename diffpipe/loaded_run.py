"""A trained run, to sample from and to measure."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from jaxtyping import Int, UInt8
from torch import Tensor, nn

from diffpipe.diffusion.ode_likelihood import Solver, ode_settings
from diffpipe.errors import UserError
from diffpipe.evaluation.anomaly import AnomalyDetection, detect_anomalies
from diffpipe.evaluation.classification import ClassifiedImages, classify_images
from diffpipe.evaluation.compressed_shards import compress_shards
from diffpipe.evaluation.compression import BATCH, BLOCK, strided
from diffpipe.evaluation.compression_report import CompressionReport
from diffpipe.evaluation.counts import note_count
from diffpipe.evaluation.export import ExportFormat, export
from diffpipe.evaluation.image_sources import TensorImages, require_image_tensor, require_label_tensor
from diffpipe.evaluation.nll import NLL, measure_nll
from diffpipe.evaluation.overlap import overlap_check
from diffpipe.evaluation.score_files import score_file
from diffpipe.evaluation.score_remarks import TrainingData, print_remarks, score_remarks
from diffpipe.evaluation.score_sources import floor_count, score_sources
from diffpipe.evaluation.scores import score
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.run import open_run
from diffpipe.experiment.sampling_options import SamplingOptions
from diffpipe.loaded_latents import LoadedLatents
from diffpipe.loaded_samples import LoadedSamples
from diffpipe.metrics.names import DEFAULT_METRICS
from diffpipe.metrics.protocol import Result
from diffpipe.train.runtime import Device, Precision, Runtime


@dataclass(frozen=True)
class LoadedRun(LoadedSamples, LoadedLatents):
    """A trained run, to sample from and to measure. `load` makes it.

    Options of a method that are None are as the run's config says. It is a context manager: under several processes,
    leaving it leaves their group.

    Images are generated in the precision that `load` was given. Likelihoods and latents are computed in that of their
    method. Methods that generate take the options of `diffpipe sample` by the same names: see `SamplingOptions`.
    """

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
        """The kind of the weights: "raw", the trained ones; "ema", their average; "ema 0.1", the one of that length."""
        return self._run.weights

    @property
    def title(self) -> str:
        """The title in pictures, such as `ddpm, step 1500`."""
        return self._run.title

    def score_file(self, kind: str, n: int, protocol: Mapping[str, Any]) -> Path:
        """The file in the run's scores/ of a score of n images with this protocol. kind: the command."""
        return score_file(self._run.home, kind, self.step, n, protocol)

    def score(
        self,
        reference: str | Path,
        *,
        n: int | None = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        seed: int = 0,
        label: int | str | None = None,
        floor: str | None = None,
        inception: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> Result:
        """The scores of n generated images, as `diffpipe eval` computes them: `.scores`, `.floor` and `.protocol`.

        reference: a folder, a zip, an npz or shards of real images. n: None for 1000, or as many as the floor has where
        these are fewer. floor: real images that the reference does not hold, whose score shows how low one can get;
        None or "split": one half of the reference against the other. inception: a file with the weights of fid and kid;
        None: they are downloaded once. options: see `SamplingOptions`.

        >>> result = run.score(shards, n=4, metrics=["fd_efficientnet_lite0"], steps=2, floor="split")
        >>> result.scores["fd_efficientnet_lite0"] > 0
        True
        """
        runtime, shape = self._runtime, self._run.shape
        count = runtime.comm.raise_on_all_ranks(lambda: floor_count(floor)) if n is None else n
        note_count(n, count, str(floor), runtime)
        generated = self._generated(options, n=count, seed=seed, label=label)
        sources = runtime.comm.raise_on_all_ranks(
            lambda: score_sources(generated, str(reference), floor, shape.resolution)
        )
        check = overlap_check(sources, runtime, floor=floor)
        result = score(*sources, metrics, runtime, inception_weights=inception, on_hashes=check)
        print_remarks(score_remarks(result.protocol, TrainingData.of(self._run)), runtime)
        return result

    def nll(
        self,
        images: str | Path | UInt8[Tensor, "n c h w"],
        *,
        labels: Int[Tensor, " n"] | None = None,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        importance_samples: int | None = None,
        ode: bool = False,
        solver: Solver | None = None,
        probes: int | None = None,
        precision: Precision = "fp32",
    ) -> NLL:
        """The negative log-likelihood of each image: `.likelihoods`, and their mean with its protocol in `.result`.

        images: shards, of which n are taken (None: 1000, or all where they are fewer), or images at the run's
        resolution, with labels for a class-conditional run. steps: network evaluations per image for a diffusion's
        bound. importance_samples: latents per image for a VAE's. ode: by a diffusion's probability flow instead, whose
        steps, solver and probes are those of `ODESettings`. Raises UserError where the run has no such likelihood.

        >>> nll = run.nll(shards, n=4, steps=2)
        >>> nll.likelihoods.unit, nll.likelihoods.values["score"].shape
        ('bits/dim', torch.Size([4]))
        """
        settings = ode_settings(ode=ode, steps=steps, solver=solver, probes=probes)
        chosen = self._with(vlb_steps=None if ode else steps, importance_samples=importance_samples)
        runtime = self._runtime.in_precision(precision)
        if isinstance(images, str | Path):
            if labels is not None:
                raise UserError("shards have labels of their own; leave out labels")
            return measure_nll(chosen, str(images), runtime, n=n, seed=seed, ode=settings)
        if n is not None:
            raise UserError("n is for shards; give as many images as are to be scored")
        require_image_tensor(images, self._run.shape)
        if labels is not None:
            require_label_tensor(labels, len(images), self._run.shape.classes)
        source = TensorImages(images, labels)
        return measure_nll(chosen, source, runtime, n=source.n, seed=seed, ode=settings)

    def classify(
        self,
        shards: str,
        *,
        n: int | None = None,
        prior: str | None = None,
        seed: int = 0,
        steps: int | None = None,
        precision: Precision = "fp32",
    ) -> ClassifiedImages:
        """The likeliest class of n labelled images, and the calibration of p(y|x).

        n: None for 1000, or all where they are fewer. prior: p(y), `data` (the shares of the classes in the training
        data), `uniform`, or other shards with labels; None: `data` of a run that this user trained. steps: network
        evaluations per image and class for a diffusion's bound. Raises UserError where the run is not
        class-conditional.

        >>> run.classify(shards, n=4, steps=2, prior="uniform").classification.n
        4
        """
        runtime = self._runtime.in_precision(precision)
        return classify_images(self._with(vlb_steps=steps), shards, runtime, n=n, prior=prior, seed=seed)

    def detect_anomalies(
        self,
        normal: str,
        abnormal: str,
        *,
        training: str | None = None,
        n: int = 1000,
        seed: int = 0,
        steps: int | None = None,
        precision: Precision = "fp32",
    ) -> AnomalyDetection:
        """How well the run's score separates up to n images of the shards `abnormal` from as many of `normal`.

        training: shards that the run was trained on, for the typicality; None: those of a run that this user trained.
        Raises UserError for a run without a score, a class-conditional one, and images of another size than the run's.
        """
        runtime = self._runtime.in_precision(precision)
        chosen = self._with(vlb_steps=steps)
        return detect_anomalies(chosen, normal, abnormal, runtime, training=training, n=n, seed=seed)

    def compress(
        self,
        shards: str,
        out: str | Path,
        *,
        n: int | None = None,
        seed: int = 0,
        block: int = BLOCK,
        batch: int = BATCH,
        steps: int | None = None,
        verify: bool = False,
        compare: bool = True,
    ) -> CompressionReport:
        """Write the images of shards into one file, losslessly, in about as many bits as the run's likelihood says.

        n: images; None: all. block: the most images of a part that is coded by itself. batch: the most images that go
        through the networks together. steps: network evaluations per image of a diffusion, along a shorter chain; None:
        one at every timestep. verify: decode each block again before the file is written. compare: measure the run's
        likelihood of the same images, and their size as PNG, WebP and JPEG XL. `diffpipe.decompress` reads the file.
        Raises UserError where the run has no likelihood that codes images.

        >>> report = run.compress(shards, "images.dpi", n=2, compare=False)
        >>> len(report.compression.file.header.keys)
        2
        """
        if self._overrides:
            raise UserError(
                f"a file is decoded by the run as it was trained; to compress, load it without {self._overrides[0]}"
            )
        options = {"n": n, "seed": seed, "block": block, "batch": batch, "verify": verify, "compare": compare}
        runtime = self._runtime.in_precision("fp32")
        run, nets = runtime.comm.raise_on_all_ranks(lambda: strided(self._run, steps)), self.networks
        if runtime.memory_format != self._runtime.memory_format:  # `decompress` has float32's, and bits depend on it
            nets = {name: runtime.place(copy.deepcopy(net)) for name, net in nets.items()}
        return compress_shards(replace(run, nets=nets), shards, Path(out), runtime, **options)

    def export(self, out: str | Path, to: ExportFormat = "safetensors", *, merge: bool = False) -> list[str]:
        """Write the weights for other programs. Returns sentences on what the files do not say. Raises UserError.

        safetensors: one file per network and the config in the folder `out`, or all in one file, where its name ends in
        .safetensors: `diffpipe.import_run` reads it. diffusers: a folder for DDPMPipeline, DDIMPipeline or
        DiTPipeline; of a run with `lora` its adapter, or with `merge` that folder with the adapter in its weights.

        >>> run.export("weights/tiny.safetensors")
        []
        """
        return self._runtime.comm.on_rank_zero(lambda: export(self._run, Path(out), to, merge=merge))


def load(
    run: str | Path,
    *,
    raw: bool = False,
    ema: float | None = None,
    overrides: Sequence[str] = (),
    precision: Precision = "auto",
    device: Device = "auto",
) -> LoadedRun:
    """Load a run directory, or one checkpoint in it. Raises UserError.

    raw: the trained weights instead of their moving average. ema: the length of the average, such as 0.1, where the run
    has ema.kind=power; None: the first of ema.sigma_rel. overrides: of the run's config, such as `stage.codec.run=PATH`
    where the VAE of a latent diffusion has moved.

    >>> run = diffpipe.load("runs/tiny")
    >>> run.config.stage.kind, run.step, list(run.networks)
    ('ddpm', 2, ['denoiser'])
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides is {overrides!r}; give a list of key=value words")
    if raw and ema is not None:
        raise UserError("raw takes the trained weights, and ema an average of them; give one of the two")
    runtime = Runtime.start(precision, device)
    return LoadedRun(open_run(Path(run), overrides, runtime, raw=raw, ema=ema), runtime, tuple(overrides))
