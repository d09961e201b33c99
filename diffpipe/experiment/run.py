"""Open a run, or one of its checkpoints, to generate from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from diffpipe.config import validate
from diffpipe.errors import UserError
from diffpipe.evaluation.image_sources import GeneratedImages
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.stored_config import stored_config
from diffpipe.interfaces import ImageShape, Stage
from diffpipe.stages.codec import VAECodecConfig
from diffpipe.stages.ddpm import DDPMConfig
from diffpipe.stages.latents import LatentCodec, unfit
from diffpipe.stages.vae import VAE
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.distributed import Communicator
from diffpipe.train.runtime import Runtime

# What an option of a command overrides in a run's config, and whose it is: a stage that lacks the key refuses it so.
OPTIONS = {
    "stage.codec.run": ("--codec", "a latent diffusion (stage.codec.kind vae)"),
    "stage.sampler.kind": ("--sampler", "a diffusion's sampling"),
    "stage.sampler.steps": ("--steps", "a diffusion's sampling"),
    "stage.sampler.eta": ("--eta", "a diffusion's sampling"),
    "stage.sampler.guidance": ("--guidance", "a diffusion's sampling"),
    "stage.sampler.temperature": ("--temperature", "the sampling of a flow, VAE, GAN or adversarial denoiser"),
    "stage.sampler.vlb_steps": ("--steps", "a diffusion's bound"),
    "stage.sampler.importance_samples": ("--importance-samples", "a VAE's bound"),
}


# Where a run says in what place another lies that it needs, by what that is to it.
_PLACES = {
    "VAE": "stage.codec.run=PATH in training, --codec PATH elsewhere",
    "teacher": "stage.teacher.run=PATH",
}


@dataclass(frozen=True)
class Run:
    """A trained stage: its config as it was trained (with what the command line overrode) and its networks."""

    checkpoint: Checkpoint
    experiment: Experiment
    shape: ImageShape
    stage: Stage
    nets: dict[str, nn.Module]
    weights: str

    @property
    def home(self) -> Path:
        """The run's directory."""
        return self.checkpoint.path.parents[1]

    @property
    def title(self) -> str:
        """What pictures call it, such as `ddpm, step 1500`."""
        return f"{self.home.name}, step {self.checkpoint.step}"

    def describe(self) -> dict[str, Any]:
        """What a score's protocol says of the weights and of how they generate."""
        sampler = self.experiment.stage.sampler.model_dump(mode="json")
        digest = self.checkpoint.manifest_sha256
        step = self.checkpoint.step
        return {"checkpoint": digest, "step": step, "images_seen": self.checkpoint.state.position} | {
            "weights": self.weights,
            "sampler": sampler,
        }


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory or a checkpoint."""
    return (path / checkpoints.MANIFEST).exists() or (path / "checkpoints").is_dir()


def find_checkpoint(path: Path, runtime: Runtime) -> Checkpoint:
    """The checkpoint at `path`, or the newest valid one of the run there. A collective. Raises UserError."""
    if (path / checkpoints.MANIFEST).exists():
        return checkpoints.open_checkpoint(path, runtime.comm)
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; give a run directory or one of its checkpoints")
    found, _ = checkpoints.newest_valid(path / "checkpoints", runtime.comm)
    if found is None:
        raise UserError(f"{path}: no checkpoint in it; give a run directory that training has saved to")
    return found


def open_run(path: Path, overrides: Sequence[str], runtime: Runtime, *, raw: bool = False) -> Run:
    """Build the run's stage and load its averaged weights (`raw`: the trained ones). A collective. Raises UserError."""
    return _opened(find_checkpoint(path, runtime), overrides, runtime, raw=raw)


def _opened(found: Checkpoint, overrides: Sequence[str], runtime: Runtime, *, raw: bool = False) -> Run:
    experiment = _overridden(found, overrides)
    shape = ImageShape(**found.state.shape.model_dump())
    experiment, stage, _ = build_stage(experiment, shape, runtime)
    prefix = "net" if raw else "ema"
    with torch.random.fork_rng(devices=[]):
        nets = {name: runtime.place(net).requires_grad_(False).eval() for name, net in stage.networks().items()}
    tensors = {f"{prefix}.{name}.{key}": t for name, net in nets.items() for key, t in net.state_dict().items()}
    checkpoints.load(found, tensors, Communicator())
    return Run(found, experiment, shape, stage, nets, "raw" if raw else "ema")


def _overridden(found: Checkpoint, overrides: Sequence[str]) -> Experiment:
    """The run's experiment with `key=value` words laid over it. Raises UserError, by the option where one says it."""
    stage = stored_config(found).stage
    for word in overrides:
        key = word.partition("=")[0]
        if key in OPTIONS and not _takes(stage, key):
            option, whose = OPTIONS[key]
            raise UserError(f"{option} is for {whose}, and {found.path.parents[1]} is of stage.kind {stage.kind}")
    return stored_config(found, overrides)


def _takes(stage: Any, key: str) -> bool:
    if key == "stage.codec.run":
        return isinstance(stage, DDPMConfig) and isinstance(stage.codec, VAECodecConfig)
    return key.removeprefix("stage.sampler.") in type(stage.sampler).model_fields


class Built(NamedTuple):
    """An experiment, in which all that its stage needs is pinned by hash, the stage, and its codec's checkpoint."""

    experiment: Experiment
    stage: Stage
    codec: Checkpoint | None = None


def build_stage(
    experiment: Experiment, shape: ImageShape, runtime: Runtime, trained: Checkpoint | None = None
) -> Built:
    """The experiment's stage, and the experiment with the hash of its codec's checkpoint pinned in it. A collective.

    trained: the run's own checkpoint where it has one: it stays with the codec that it was trained with. Raises
    UserError where the stage cannot be built or its codec not be found.
    """
    stage = experiment.stage
    if not isinstance(stage, DDPMConfig) or not isinstance(stage.codec, VAECodecConfig):
        return Built(experiment, runtime.comm.raise_on_all_ranks(lambda: stage.build(shape)))
    before = trained.state.experiment["stage"].get("codec", {}) if trained else {}
    try:
        codec, found = open_codec(Path(stage.codec.run), stage.codec.sha256 or before.get("sha256"), runtime)
    except UserError as error:
        raise UserError(f"stage.codec.run: {error}") from error
    tree = experiment.model_dump(mode="json")
    tree["stage"]["codec"]["sha256"] = found.manifest_sha256
    pinned = validate(Experiment, tree, source=experiment.run.dir)
    return Built(pinned, runtime.comm.raise_on_all_ranks(lambda: stage.build(shape, codec)), found)


def open_pinned(path: Path, sha256: str | None, runtime: Runtime, role: str) -> Run:
    """The run at `path`, at the checkpoint with this hash (None: the newest). A collective. Raises UserError.

    role: what it is to the run that needs it, in one word.
    """
    return _opened(_pinned_checkpoint(path, sha256, runtime, role), [], runtime)


def _pinned_checkpoint(path: Path, sha256: str | None, runtime: Runtime, role: str) -> Checkpoint:
    """The checkpoint at `path`, or that of the run there, which has this hash (None: the newest). A collective."""
    if sha256 is None:
        return find_checkpoint(path, runtime)
    if not path.is_dir():
        raise UserError(
            f"{path}: no such directory; this run needs its {role}, of the checkpoint with sha256 {sha256}; bring it "
            f"back, or give its new place ({_PLACES[role]})"
        )
    there = [path] if (path / checkpoints.MANIFEST).exists() else checkpoints.committed(path / "checkpoints")
    digests = {checkpoints.manifest_sha256(checkpoint): checkpoint for checkpoint in there}
    if sha256 not in digests:
        raise UserError(
            f"{path}: this run needs the checkpoint whose manifest.json has sha256 {sha256}, and there "
            f"{'is only' if len(there) == 1 else 'are'} {', '.join(map(str, digests)) or 'no checkpoint'}; "
            f"bring it back, or train another run on this one"
        )
    return checkpoints.open_checkpoint(digests[sha256], runtime.comm)


def open_codec(path: Path, sha256: str | None, runtime: Runtime) -> tuple[LatentCodec, Checkpoint]:
    """The codec made of the VAE at `path`, of the checkpoint with this hash (None: the newest), and that one.

    A collective. Raises UserError where there is no such checkpoint or it is of no VAE that can be a codec.
    """
    found = _pinned_checkpoint(path, sha256, runtime, "VAE")
    kind = stored_config(found).stage.kind
    if kind != "vae":
        raise UserError(f"{found.path} is a run of stage.kind={kind}; give one of stage.kind=vae with spatial latents")
    vae = _opened(found, [], runtime)
    assert isinstance(vae.stage, VAE)
    complaint = unfit(vae.stage)
    if complaint is None and found.state.latents is None:
        complaint = "its checkpoint says nothing of its latents' mean and deviation; train it on with this version"
    if complaint is not None:
        raise UserError(f"{found.path}: {complaint}")
    assert found.state.latents is not None
    return LatentCodec(vae.stage, vae.nets, found.state.latents.mean, found.state.latents.std), found


def generated_images(run: Run, runtime: Runtime, *, n: int, seed: int, label: int | None) -> GeneratedImages:
    """The run's images of sample indices 0 to n - 1."""
    return GeneratedImages(run.stage, run.nets, run.shape, runtime, n=n, seed=seed, label=label, about=run.describe())
