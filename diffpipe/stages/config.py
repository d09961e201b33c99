"""The part of a stage's config that all families share."""

from __future__ import annotations

from diffpipe.config import Config


class StageConfig(Config):
    """The base of every stage's config. A subclass has `kind`, `sampler` and `build`."""

    def describe(self) -> str:
        """The family in a word or two, such as `latent ddpm` or `flow (glow)`."""
        kind, variant = getattr(self, "kind", ""), getattr(getattr(self, "network", None), "kind", None)
        return f"{kind} ({variant})" if variant else kind
