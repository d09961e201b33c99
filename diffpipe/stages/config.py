"""The part of a stage's config that all families share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from diffpipe.config import Config
from diffpipe.dependency import Dependency


class StageConfig(Config):
    """The base of every stage's config.

    A subclass has `kind`, `sampler` and `build(shape, dependencies)`, which returns the stage for images of this shape.
    It gets by role what `dependencies()` asks for: a `TrainedStage` for a run, a function for a feature network. A role
    that is not needed at the time is not there. It raises UserError where something does not fit.
    """

    generates: ClassVar[bool] = True
    """Whether its stage makes images from noise (`interfaces.Generates`)."""

    def dependencies(self) -> Sequence[Dependency]:
        """The other runs and feature networks that the stage needs."""
        return ()

    def describe(self) -> str:
        """The family in a word or two, such as `latent ddpm` or `flow (glow)`."""
        kind, variant = getattr(self, "kind", ""), getattr(getattr(self, "network", None), "kind", None)
        return f"{kind} ({variant})" if variant else kind
