"""The types that the parts of the package exchange: the batch, the loss, the phase, the stage and its abilities.

The loader makes a `Batch`, the trainer passes it on, and a `Stage` turns it into a `Loss`. None imports another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from diffpipe.resolution import Resolution
from diffpipe.rng import RNG, KeyedRNG


class Batch(NamedTuple):
    """The samples of one micro-batch on one rank.

    images: uint8 [b, c, h, w]. From shards of latents: float32 [b, 2c, h, w], mean and log-variance of q(z|x). From
    shards of codes: int32 [b, 1, 1, n].
    labels: int64 [b]. None where the shards have no classes or the config does not ask for them.
    positions: int64 [b], each sample's position in the stream. It keys all of the sample's randomness.
    keys: the samples' names in their shards.
    valid: bool [b], false for a sample that could not be read: its pixels are zeros, its label is 0, and it contributes
    to no loss, gradient or metric. None in all batches of a run that tolerates no bad sample: all samples are valid.
    errors: an error message for each sample that is not valid.
    """

    images: UInt8[Tensor, "b c h w"] | Float[Tensor, "b c h w"] | Int[Tensor, "b 1 1 n"]
    labels: Int[Tensor, " b"] | None
    positions: Int[Tensor, " b"]
    keys: Sequence[str]
    valid: Bool[Tensor, " b"] | None = None
    errors: Sequence[str] = ()


@dataclass(frozen=True)
class Loss:
    """The loss of each sample, float32 [b], and further quantities to log, each [b]. The trainer takes the means.

    sums: of any shape, each a sum over the valid samples of the micro-batch, for a stage that `Tracks`.
    """

    per_sample: Float[Tensor, " b"]
    metrics: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """A score of each sample under a stage, float32 [b]. Smaller is better.

    unit: "bits/dim" for a negative log-likelihood, else the measured quantity, such as "mse".
    kind: an "exact" negative log-likelihood, an upper "bound" on it, an "estimate" of it, or an "error"
    of another kind.
    terms: the terms of the sum, each [b], by name.
    """

    per_sample: Float[Tensor, " b"]
    unit: str
    kind: Literal["exact", "bound", "estimate", "error"]
    terms: Mapping[str, Float[Tensor, " b"]] = field(default_factory=dict)


class Phase(NamedTuple):
    """One optimizer update within a step.

    trains: the networks that it updates. Phases that train the same networks share an optimizer. every, start, until:
    it is due at steps start, start + every, … before step `until` (None: without end). penalizes: its loss contains
    gradients with respect to images, so the update needs second derivatives. exact: parts of its loss are computed in
    IEEE float32, such as a flow's likelihood or a perceptual distance, and so is its backward pass. lazy: its loss is a
    regularizing term of another phase's, as a rarer update of its own. The optimizer corrects its learning rate and
    betas for that update: see `train.optimizer`.
    """

    name: str
    trains: tuple[str, ...]
    every: int = 1
    start: int = 0
    until: int | None = None
    penalizes: bool = False
    exact: bool = False
    lazy: bool = False

    def due(self, step: int) -> bool:
        over = self.until is not None and step >= self.until
        return step >= self.start and not over and (step - self.start) % self.every == 0


class ImageShape(NamedTuple):
    """The shape of the data's images, and the number of classes (0: no labels)."""

    channels: int
    resolution: Resolution
    classes: int = 0

    @property
    def chw(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, self.resolution.height, self.resolution.width


@runtime_checkable
class Network(Protocol):
    """A network that a stage trains: any `nn.Module` that also names its blocks."""

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated parts that hold most of the network: the units of sharding, recomputation and compilation.

        Each block is called as a module by the network's forward pass. No block holds another one or shares a
        parameter with it. The order is that of registration. An option that needs blocks is refused where there are
        none.

        Sharding gives a block its parameters in the type that autocast computes in. A block whose parameters must be
        float32, because it switches autocast off, has an attribute `float32 = True`.
        """
        ...


@runtime_checkable
class Projects(Protocol):
    """A network that keeps its parameters to a constraint, such as weights of unit norm."""

    def after_step(self, taken: Bool[Tensor, ""]) -> None:
        """Project the parameters in place, after each update of an optimizer that trains the network.

        taken: on the device; false where the update was left out because it was not finite, and nothing may change.
        Sharded parameters are DTensors, each with its rows on this process.
        """
        ...


@runtime_checkable
class Stage(Protocol):
    """A family of generators: its networks and its losses.

    The trainer calls it with wrapped networks (DDP, FSDP2), under autocast and on the right device. Further abilities
    are protocols of their own: `Starts`, `Tracks`, `Borrows`, `Generates`, `Reconstructs`, `Encodes`, `Scores`.
    """

    def networks(self) -> dict[str, nn.Module]:
        """Fresh networks by name. The names are those of optimizer groups, averages and tensors in checkpoints.

        A parameter that is built without `requires_grad` is never trained. Averages have the same, and a checkpoint
        holds it once.
        """
        ...

    def phases(self) -> Sequence[Phase]:
        """The updates of a step, in order."""
        ...

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        """The loss of each sample in this phase. All randomness comes from `rng`."""
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
class Tracks(Protocol):
    """A stage that tracks statistics of its training samples in buffers, such as how often each code is used.

    The statistics are functions of sums over whole global batches. So they depend on no process, and a forward pass
    changes nothing.
    """

    def track(
        self, phase: Phase, nets: Mapping[str, nn.Module], sums: Mapping[str, Tensor], taken: Bool[Tensor, ""]
    ) -> None:
        """Set buffers of the networks in place, after each update of a phase whose losses have sums.

        nets: without wrappers. sums: `Loss.sums`, added up over the micro-batches and processes of the step, the same
        on all processes. taken: on the device; false where the update was left out because it was not finite, and
        nothing may change.
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
        """How often an image passes through the networks of the stage, or of its guide, while it is generated.

        It is generated with labels where the stage can. None where that is no measure of the cost, as for the inverse
        of a flow.
        """
        ...

    def generate(
        self, nets: Mapping[str, nn.Module], rng: RNG, labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """An image for each position of `rng`. The positions are sample indices. labels: None draws them at random."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """A stage that encodes images and decodes them again."""

    def reconstruct(
        self, nets: Mapping[str, nn.Module], images: UInt8[Tensor, "b c h w"], rng: KeyedRNG
    ) -> UInt8[Tensor, "b c h w"]:
        """Each image, encoded and decoded again."""
        ...


@runtime_checkable
class Encodes(Protocol):
    """A stage that maps images to latents and latents to images.

    normal_latents: whether training pulls the latents towards a standard normal distribution.
    """

    normal_latents: bool

    def encode_latents(
        self,
        nets: Mapping[str, nn.Module],
        images: UInt8[Tensor, "b c h w"],
        labels: Int[Tensor, " b"] | None,
        rng: KeyedRNG,
    ) -> Float[Tensor, " b *latent"]:
        """The latent of each image, float32. Where it is a distribution: its mean. Randomness comes from `rng`.

        A class-conditional stage needs the labels. Its latents hold what the labels do not determine.
        """
        ...

    def decode_latents(
        self, nets: Mapping[str, nn.Module], z: Float[Tensor, " b *latent"], labels: Int[Tensor, " b"] | None
    ) -> UInt8[Tensor, "b c h w"]:
        """The images of latents, without randomness. A class-conditional stage needs the labels."""
        ...


@runtime_checkable
class Scores(Protocol):
    """A stage that scores images: by their likelihood, a bound on it, or an error."""

    def score(self, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Score:
        """The score of each sample. All randomness comes from `rng`. nets: without wrappers, in evaluation mode."""
        ...


@runtime_checkable
class Unscored(Protocol):
    """A stage that says why it scores no images, such as one that models the codes of another stage."""

    no_likelihood: str
    """The reason, and which run to give instead: it follows the path of the run in a message."""
