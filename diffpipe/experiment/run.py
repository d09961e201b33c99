"""Open a run, or one of its checkpoints, to generate from it."""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diffpipe.data.index.scan import CLASS_DIGITS
from diffpipe.dependency import TrainedStage
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.experiment import post_hoc_ema, sampling_options
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.dependencies import OpenStage, resolve
from diffpipe.experiment.find_checkpoint import find_checkpoint
from diffpipe.experiment.stored_config import stored_config
from diffpipe.experiment.stored_tensors import Adapters, load_networks, load_part
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.nearest import did_you_mean
from diffpipe.stages.shard_codec import ShardCodec, shard_codec
from diffpipe.train.checkpoint.read import Checkpoint, limited_to
from diffpipe.train.ema import prefix
from diffpipe.train.network_limits import MOST_TENSORS, MOST_VALUES, limited_networks
from diffpipe.train.runtime import Runtime

# The option of a command, and argument of a method, for a key of the config, and the stages that have it. Others refuse
# it by this name, which is right for both.
_OPTIONS = {
    "stage.codec.run": ("codec", "a latent diffusion (stage.codec.kind vae) or an autoregressive model of codes (vq)"),
    "stage.sampler.kind": ("sampler", "a diffusion's sampling"),
    **{f"stage.sampler.{name}": (name, "a diffusion's sampling") for name in sampling_options.OF_DIFFUSION},
    "stage.sampler.guide.run": ("guide", "a diffusion's sampling"),
    "stage.sampler.guidance": ("guidance", "the sampling of a diffusion or an autoregressive model"),
    "stage.sampler.temperature": (
        "temperature",
        "the sampling of a flow, VAE, GAN, adversarial denoiser or autoregressive model",
    ),
    **{f"stage.sampler.{name}": (name, "the sampling of an autoregressive model") for name in ("top_k", "top_p")},
    "stage.sampler.vlb_steps": ("steps", "a diffusion's bound"),
    "stage.sampler.importance_samples": ("importance_samples", "a VAE's bound"),
}

_NAMED_CLASSES = 20
_TOO_LARGE = (
    f"the networks of section stage have more than {MOST_TENSORS:,} tensors or {MOST_VALUES:.0e} values: too large for "
    "any machine; give smaller sizes there"
)


@dataclass(frozen=True)
class Run:
    """A trained stage: its config as it was trained (with what the command line overrode) and its networks.

    weights: `raw`, `ema`, or `ema 0.1`, a power-function average and its length. about_weights: the part of a score's
    protocol about an average that was made from snapshots. adapters: of a run with `lora`; the networks contain them.
    """

    checkpoint: Checkpoint
    experiment: Experiment
    shape: ImageShape
    stage: Stage
    nets: dict[str, nn.Module]
    weights: str
    about_weights: dict[str, Any] = field(default_factory=dict)
    adapters: Adapters = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The run's directory."""
        return self.checkpoint.path.parents[1]

    @property
    def title(self) -> str:
        """The title in pictures, such as `ddpm, step 1500`."""
        return f"{self.home.name}, step {self.checkpoint.step}"

    def class_label(self, label: int | str | None) -> int | None:
        """The number of a class that is given by its number or its name. Raises UserError for an unknown name."""
        if label is not None and not self.shape.classes:
            raise UserError(f"label {label}: this run was trained without labels; give none")
        if label is None or isinstance(label, int):
            return label
        if label.isascii() and label.isdigit() and str(int(label[:CLASS_DIGITS])) == label:
            return int(label)
        names = self.experiment.data.class_names
        if label in names:
            return names.index(label)
        if not names:
            raise UserError(f"label {label}: {self.checkpoint.path} has no names of classes; give the class's number")
        hint = did_you_mean(label, names) or f"its classes are {', '.join(names[:_NAMED_CLASSES])}"
        raise UserError(f"label {label}: no class of this run has this name; {hint}")

    def as_dependency(self) -> TrainedStage:
        """This run, for the stage of a run that depends on it."""
        latents = self.checkpoint.state.latents
        scale = None if latents is None else (latents.mean, latents.std)
        return TrainedStage(self.checkpoint.path, self.experiment.stage, self.shape, self.stage, self.nets, scale)

    def describe(self) -> dict[str, Any]:
        """The part of a score's protocol about the weights and how they generate."""
        sampler = self.experiment.stage.sampler.model_dump(mode="json")
        if sampler.get("guide"):
            sampler["guide"] = sampler["guide"]["sha256"]  # the same wherever it lies
        digest = self.checkpoint.manifest_sha256
        step = self.checkpoint.step
        return {"checkpoint": digest, "step": step, "images_seen": self.checkpoint.state.position} | {
            "weights": self.weights,
            **self.about_weights,
            "sampler": sampler,
        }


def open_run(
    path: Path, overrides: Sequence[str], runtime: Runtime, *, raw: bool = False, ema: float | None = None
) -> Run:
    """Build the run's stage and load its averaged weights. A collective. Raises UserError.

    raw: the trained weights instead. ema: the length of a power-function average, made from the run's snapshots.
    """
    return _opened(find_checkpoint(path, runtime), overrides, runtime, raw=raw, ema=ema)


def reconfigured(run: Run, overrides: Sequence[str], runtime: Runtime) -> Run:
    """The run with other `key=value` overrides, and the same networks. A collective. Raises UserError."""
    experiment, stage, _ = build_stage(
        _overridden(run.checkpoint, overrides), run.shape, runtime, named=_keys(overrides)
    )
    return replace(run, experiment=experiment, stage=stage)


def _opened(
    found: Checkpoint, overrides: Sequence[str], runtime: Runtime, *, raw: bool = False, ema: float | None = None
) -> Run:
    average = post_hoc_ema.average(found, ema, runtime)
    experiment = _overridden(found, overrides)
    shape = ImageShape(**dict(found.state.shape))
    experiment, stage, _ = build_stage(experiment, shape, runtime, named=_keys(overrides))
    with torch.random.fork_rng(devices=[]), limited_to(found):
        nets = {name: runtime.place(net).requires_grad_(False).eval() for name, net in stage.networks().items()}
    tensors = {f"{name}.{key}": tensor for name, net in nets.items() for key, tensor in net.state_dict().items()}
    weights, about = ("raw", {}) if raw else (average.name, average.describe())
    load = functools.partial(load_part, found, "net") if raw else average.load
    adapters = load_networks(found, tensors, "net" if raw else prefix(0), load, experiment.lora)
    _require_finite(found, nets, weights)
    return Run(found, experiment, shape, stage, nets, weights, about, adapters)


def _require_finite(found: Checkpoint, nets: Mapping[str, nn.Module], weights: str) -> None:
    """Raise UserError where a weight is not finite: every image and every score would be wrong."""
    for network, net in nets.items():
        for name, parameter in net.named_parameters():
            if not torch.isfinite(parameter).all():
                raise UserError(
                    f"{found.path}: {network}.{name} of its {weights} weights has values that are not finite: the "
                    f"training diverged; take an earlier checkpoint"
                )


def _overridden(found: Checkpoint, overrides: Sequence[str]) -> Experiment:
    """The run's experiment with `key=value` overrides. Raises UserError, which names the command's option."""
    stage = stored_config(found).stage
    for word in overrides:
        (key,) = _keys([word])
        if key in _OPTIONS and not _takes(stage, key):
            option, whose = _OPTIONS[key]
            raise UserError(f"{option} is for {whose}, and {found.path.parents[1]} is of stage.kind {stage.kind}")
    return stored_config(found, overrides)


def _keys(overrides: Sequence[str]) -> set[str]:
    return {word.partition("=")[0] for word in overrides}


def _takes(stage: Any, key: str) -> bool:
    if any(key == dependency.key for dependency in stage.dependencies()):
        return True
    return key.removeprefix("stage.sampler.").partition(".")[0] in type(stage.sampler).model_fields


def open_dependency(runtime: Runtime) -> OpenStage:
    """The function that opens a run for the stage of a run that depends on it."""
    return lambda checkpoint: _opened(checkpoint, [], runtime).as_dependency()


class Built(NamedTuple):
    """An experiment with the hash of each dependency in its config, the stage, and the runs among them by role."""

    experiment: Experiment
    stage: Stage
    runs: dict[str, Checkpoint]


def build_stage(
    experiment: Experiment,
    shape: ImageShape,
    runtime: Runtime,
    *,
    training: bool = False,
    trained: Checkpoint | None = None,
    named: Container[str] = (),
) -> Built:
    """The experiment's stage with all that it depends on. A collective. Raises UserError.

    training, trained, named: see `dependencies.resolve`.
    """
    resolved = resolve(
        experiment, shape, runtime, open_dependency(runtime), training=training, trained=trained, named=named
    )

    def build() -> Stage:
        with limited_networks(_TOO_LARGE):
            return resolved.experiment.stage.build(shape, resolved.opened)

    stage = runtime.comm.raise_on_all_ranks(build)
    return Built(resolved.experiment, stage, resolved.runs)


def open_codec(path: Path, runtime: Runtime) -> tuple[ShardCodec, Checkpoint]:
    """The codec made of the VAE or the vector-quantized autoencoder at `path`, and its checkpoint. A collective.

    Raises UserError where it can be none.
    """
    run = open_run(path, [], runtime)
    return shard_codec(run.as_dependency()), run.checkpoint


def generated_images(run: Run, runtime: Runtime, *, n: int, seed: int, label: int | str | None) -> GeneratedImages:
    """The run's images of sample indices 0 to n - 1. label: the number or the name of the class of all of them."""
    about, label = run.describe(), run.class_label(label)
    return GeneratedImages(run.stage, run.nets, run.shape, runtime, n=n, seed=seed, label=label, about=about)
