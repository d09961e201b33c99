"""What the parts of the house say to each other: the batch, the loss, the phase and the stage.

The loader makes a `Batch`, the trainer carries it, a `Stage` turns it into a `Loss`; none of them imports another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from diffpipe.rng import RNG, KeyedRNG


class Batch(NamedTuple):
    """The samples of one micro-batch on one rank.

    images: uint8 [b, c, h, w]; of shards of latents float32 [b, 2c, h, w], what an encoder said of each image.
    labels: int64 [b], or None where the shards carry no classes or the config does not ask for them.
    positions: int64 [b], each sample's position in the stream, which keys all of its randomness.
    keys: the samples' names in their shards.
    valid: bool [b], false for a sample that could not be had: its pixels are zeros and its label 0, and it counts
    nowhere. None, the same for all batches of a run: all are, for a bad one would end it.
    errors: what is wrong with each sample that is not valid.
    """

    images: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"] | None
    positions: Int[Tensor, " b"]
    keys: Sequence[str]
    valid: Bool[Tensor, " b"] | None = None
    errors: Sequence[str] = ()


@dataclass(frozen=True)
class Loss:
    """One loss a sample, float32 [b], and further quantities to log, each [b]. The trainer takes the means."""

    per_sample: Float[Tensor, " b"]
    metrics: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """How well a stage explains each sample, float32 [b]: the smaller, the better explained.

    unit: "bits/dim" of a negative log-likelihood, or what else is measured, such as "mse".
    kind: an "exact" likelihood, an upper "bound" on the negative one, an "estimate" of it, or an "error" that is none.
    terms: what it is the sum of, each [b], by name.
    """

    per_sample: Float[Tensor, " b"]
    unit: str
    kind: Literal["exact", "bound", "estimate", "error"]
    terms: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)


class Phase(NamedTuple):
    """One optimizer update within a step.

    trains: the networks whose parameters move; phases that train the same ones share an optimizer. It is due at steps
    start, start + every, … before step `until` (None: for good).

    penalizes: its loss holds gradients with respect to images, which the update differentiates once more.
    """

    name: str
    trains: tuple[str, ...]
    every: int = 1
    start: int = 0
    until: int | None = None
    penalizes: bool = False

    def due(self, step: int) -> bool:
        over = self.until is not None and step >= self.until
        return step >= self.start and not over and (step - self.start) % self.every == 0


class ImageShape(NamedTuple):
    """What the data hands to a stage, and how many classes label it (0: none)."""

    channels: int
    resolution: int
    classes: int = 0


@dataclass(frozen=True)
class Dependency:
    """Another run, or a feature network, that a stage needs.

    role: the word for it, and its name in what the config builds with: "codec", "teacher", "features". Shards of
    latents have to be of the run that is the "codec". section: the part of the config that names it, `stage.codec`.
    kind: "run", a trained stage, or "features", feature maps; also the key of that section that says where it is.
    source: that key's value. sha256: the hash of the run's checkpoint or of the network's weights; None: not yet fixed.
    needed: "always"; "training"; or at its "start", until the run has its first checkpoint.
    """

    role: str
    section: str
    kind: Literal["run", "features"]
    source: str
    sha256: str | None
    needed: Literal["always", "training", "start"]

    @property
    def key(self) -> str:
        """The config's key that says where it is, `stage.codec.run`."""
        return f"{self.section}.{self.kind}"


class TrainedStage(NamedTuple):
    """A trained run, as the stage that depends on it gets it.

    path: its checkpoint. config: its stage's config. shape: of the images that it was trained on. nets: the averaged
    networks, frozen and on the device. latents: mean and standard deviation of each latent channel, which a VAE's
    checkpoints of format 1 have.
    """

    path: Path
    config: Any
    shape: ImageShape
    stage: Stage
    nets: Mapping[str, nn.Module]
    latents: tuple[Sequence[float], Sequence[float]] | None


@runtime_checkable
class Network(Protocol):
    """A network that a stage trains: any `nn.Module` that also names its blocks."""

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated parts that hold most of the network: the units of sharding, recomputation and compilation.

        Each block is called as a module by the network's forward pass. No block holds another one or shares a
        parameter with it. The order is that of registration. An option that needs blocks is refused where there are
        none.
        """
        ...


@runtime_checkable
class Stage(Protocol):
    """A family of generators: its networks and its losses.

    The trainer calls it with wrapped networks (DDP, FSDP2), under autocast and on the right device. What a family can
    do beyond training it says by further methods: see `Generates`, `Reconstructs`, `Encodes`, `Scores`.
    """

    def networks(self) -> dict[str, nn.Module]:
        """Fresh networks by name: the names of optimizer groups, averages and checkpoint entries."""
        ...

    def phases(self) -> Sequence[Phase]:
        """The updates of a step, in order."""
        ...

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        """The phase's loss for each sample. All randomness comes from `rng`."""
        ...


@runtime_checkable
class Starts(Protocol):
    """A stage that sets something from data once, before the first step: an ActNorm, the scale of latents."""

    @property
    def start_samples(self) -> int:
        """How many samples it needs. 0: there is nothing to set, and `start` is not called.

        They are the first of the training stream, positions 0 to start_samples - 1, whatever the batch size.
        """
        ...

    def start(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> None:
        """Set parameters and buffers of the networks in place.

        nets: as `networks()` built them, on the device and in float32, before they are wrapped, sharded or averaged.
        batch: all `start_samples` samples, the same on every process. Samples that are not valid are to be left out.
        """
        ...


@runtime_checkable
class Borrows(Protocol):
    """A stage that generates with networks of another run, such as a codec's."""

    def borrowed_networks(self) -> dict[str, nn.Module]:
        """These frozen networks by name, such as `codec.decoder`. They are not trained, averaged or saved."""
        ...


@runtime_checkable
class Generates(Protocol):
    """A stage that makes images from noise."""

    @property
    def generating(self) -> Sequence[str]:
        """The names of the networks that take part, of its own and of those that it borrows."""
        ...

    def evaluations(self) -> int | None:
        """How often an image passes through the stage's own networks while it is generated, with labels where it can.

        None where that is no measure of the cost, as for the inverse of a flow.
        """
        ...

    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """An image for each position of `rng`; the positions are sample indices."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A stage that encodes images and decodes them again."""

    def reconstruct(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], rng: KeyedRNG
    ) -> UInt8[Tensor, "b c h w"]:
        """What is left of each image after its code."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """A stage with a latent for each image and an image for each latent.

    normal_latents: whether training draws the latents to a standard normal distribution.
    """

    normal_latents: bool

    def encode_latents(
        self,
        nets: Mapping[str, nn.Module],
        images: UInt8[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | None,
        rng: KeyedRNG,
    ) -> Float[Tensor, " b *latent"]:
        """One latent an image, float32: that of a distribution's mean; what has to be random is by `rng`.

        A class-conditional stage needs the labels, and its latents say what they do not.
        """
        ...

    def decode_latents(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, " b *latent"], labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """The images of latents; nothing is drawn. A class-conditional stage needs the labels."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A stage that has a likelihood of images, a bound on it, or an error."""

    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        """The score of each sample, with the plain networks in evaluation mode. All randomness comes from `rng`."""
        ...
