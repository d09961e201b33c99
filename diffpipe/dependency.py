"""Dependencies of a stage: another run, such as a codec's, or a feature network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from diffpipe.interfaces import ImageShape, Stage


@dataclass(frozen=True)
class Dependency:
    """Another run, or a feature network, that a stage needs.

    role: the word for it, and its name in what the config builds with: "codec", "teacher", "features". Shards of
    latents have to be of the run that is the "codec". section: the part of the config that names it, `stage.codec`.
    kind: "run", a trained stage, or "features", feature maps; also the key of that section that says where it is.
    source: that key's value. sha256: the hash of the run's checkpoint or of the network's weights; None: not yet fixed.
    needed: "always"; for "training"; at its "start", until the run has its first checkpoint; or for "generation". The
    last is opened while training, which makes samples, and where the user names it: never for a stored config alone.
    """

    role: str
    section: str
    kind: Literal["run", "features"]
    source: str
    sha256: str | None
    needed: Literal["always", "training", "start", "generation"]

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
