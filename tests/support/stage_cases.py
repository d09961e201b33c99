"""Every stage for the all-stages tests: the configs for Fashion-MNIST, made tiny, one list for all properties."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import torch

from diffpipe.config import load_config
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.dependency import TrainedStage
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Batch, ImageShape, Stage
from diffpipe.resolution import Resolution, square
from tests.support.commands import SHARDS, TINY_RUN, tiny_stage

FASHION = SHARDS.parent
SHAPE = ImageShape(channels=1, resolution=square(8), classes=10)
# Penalties of their own, at steps 0, 3, 6, …: out of step with checkpoints at every other.
_ADM = "stage.network={kind: adm, channels: 8, channel_mult: [1, 2], blocks: 1, attention: [4], head_channels: 8, "
_ADM += "groups: 4, dropout: 0.0}"
_EDM2 = "stage.network={kind: edm2, channels: 8, channel_mult: [1, 2], blocks: 1, attention: [4], head_channels: 8}"
_DIT = "stage.network={kind: dit, patch: 2, width: 16, depth: 2, heads: 2, qk_norm: true, rope: true}"
LAZY = ("stage.penalty_every=3",)
# Each choice of diffpipe.diffusion in one of three: targets, schedules, draws, weightings, samplers.
EDM = (
    "stage.prediction=edm",
    "stage.schedule={kind: edm}",
    "stage.weighting.kind=learned",
    "stage.timesteps.low_discrepancy=true",
    "stage.sampler.kind=edm",
    "stage.sampler.churn=2",
)
FLOW = (
    "stage.prediction=flow",
    "stage.schedule={kind: flow, shift: 2.0}",
    "stage.sampler.kind=heun",
    "stage.sampler.vlb_steps=5",
)
V = (
    "stage.prediction=v",
    "stage.schedule.zero_terminal_snr=true",
    "stage.weighting.kind=min_snr",
    "stage.learned_variance=true",
    "stage.sampler.kind=ancestral",
)

GPT = (
    "stage.network.attention=full",
    "stage.network.mlp=swiglu",
    "stage.network.norm=rms",
    "stage.network.qk_norm=true",
    "stage.tokens.head={kind: logistic_mixture, mixtures: 3}",
    "stage.tokens.neighbourhood=0",
    "stage.label_dropout=0.2",
    "stage.sampler={temperature: 0.9, top_k: 100, top_p: 0.95, guidance: 1.5}",
)


class Case(NamedTuple):
    """A config of configs/fashion_mnist, and what is laid over it beside the tiny network."""

    config: str
    words: tuple[str, ...] = ()
    codec: str | None = None
    """The case whose run it needs."""
    resolution: Resolution = SHAPE.resolution

    @property
    def path(self) -> Path:
        return FASHION / f"{self.config}.yaml"

    def overrides(self) -> list[str]:
        stage = load_config(Experiment, self.path).stage.model_dump()
        tiny = tiny_stage(stage)
        size = f"data.resolution={self.resolution.plain()}"
        return [*tiny, *TINY_RUN, size, "data.workers=0", "eval.reconstruction=0", "train.minutes=null", *self.words]

    def experiment(self, *more: str) -> Experiment:
        return load_config(Experiment, self.path, [*self.overrides(), *more])

    def stage(self) -> Stage:
        """Built in this process; where it needs a codec, that is one as it is before any training."""
        shape = SHAPE._replace(resolution=self.resolution)
        codec = CASES[self.codec]._replace(resolution=self.resolution) if self.codec else None
        return self.experiment().stage.build(shape, {"codec": _untrained(codec, shape)} if codec else {})


CASES = {
    "adversarial": Case("adversarial", LAZY),
    "adversarial, x_prev": Case("adversarial", (*LAZY, "stage.discriminator_input=x_prev")),
    "autoencoder": Case("autoencoder"),
    "autoregressive": Case("autoregressive"),
    "autoregressive, full": Case("autoregressive", GPT),
    "autoregressive, codes": Case("vq_autoregressive", codec="vq"),
    "autoregressive, scales": Case(
        "vq_autoregressive",
        ("stage.label_dropout=0.2", "stage.sampler={temperature: 0.9, top_k: 10, top_p: 0.95, guidance: 1.5}"),
        codec="vq, scales",
    ),
    "ddpm": Case("ddpm"),
    "ddpm, adm": Case("ddpm", (_ADM,)),
    "ddpm, edm": Case("ddpm", EDM),
    "ddpm, edm2": Case("ddpm", (_EDM2, *EDM)),
    "ddpm, dit, flow": Case("ddpm", (_DIT, *FLOW)),
    "ddpm, v": Case("ddpm", V),
    "ddpm, x0": Case("demo"),
    "denoising_autoencoder": Case("denoising_autoencoder"),
    "flow": Case("flow"),
    "flow, variational": Case("flow", ("stage.dequantization={kind: variational, steps: 1, hidden: 4}",)),
    "gan": Case("gan", LAZY),
    "latent_ddpm": Case("latent_ddpm", codec="latent_vae"),
    "latent_vae": Case("latent_vae"),
    "latent_vae, patch": Case("latent_vae", ("stage.patch={start: 3, network: {channels: 8, channel_mult: [1, 2]}}",)),
    "tarflow": Case("tarflow"),
    "vae": Case("vae"),
    "vq": Case("vq", ("stage.quantizer.normalize=true",)),
    "vq, fsq": Case("vq", ("stage.quantizer={kind: fsq, levels: [16, 15, 9]}", "stage.network.latent_channels=3")),
    "vq, patch": Case(
        "vq",
        (
            "stage.quantizer.restart=0.09",
            "stage.patch={start: 3, network: {channels: 8, channel_mult: [1, 2]}}",
        ),
    ),
    "vq, scales": Case("vq", ("stage.quantizer.scales=[1, 2, 4]",)),
}

RUNS = CASES | {
    "ddpm, dit, muon": Case("ddpm", (_DIT, *FLOW, "optimizer.kind=muon", "optimizer.muon_lr=1e-3")),
    "ddpm, dit, not square": Case("ddpm", (_DIT,), resolution=Resolution(8, 12)),
}
"""The cases, and those that differ from one of them in how they are trained or in the size of their images."""

TOKENS = tuple(name for name in CASES if name.startswith(("autoregressive", "vq")))
"""The cases of tokens: autoregressive models of pixels and of codes, and the autoencoders whose codes they are."""


@functools.cache
def real_batch(n: int, resolution: Resolution = SHAPE.resolution) -> Batch:
    """The first n test images at the cases' size, with their labels, at positions 0 to n - 1."""
    shards = shard_set.load(str(SHARDS / "test"))
    images = sequential_reader.images(shards, range(n), resolution, SHAPE.channels)
    return Batch(images, sequential_reader.labels(shards, range(n)), torch.arange(n), [f"key{i}" for i in range(n)])


def _untrained(case: Case, shape: ImageShape) -> TrainedStage:
    stage = case.stage()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = stage.networks()
    return TrainedStage(Path(case.config), case.experiment().stage, shape, stage, nets, None)
