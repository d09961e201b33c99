"""Width and depth of a convolutional network by level. Each level has half the resolution of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.resolution import Resolution

Positive = Annotated[int, Field(ge=1)]


class LevelsConfig(Config):
    """Width and depth of a network that halves the resolution level by level, or doubles it on the way up."""

    renamed: ClassVar[dict[str, str]] = {"mults": "channel_mult"}

    channels: Positive = 64
    """Channels at full resolution."""
    channel_mult: tuple[Positive, ...] = Field(default=(1, 2, 4), min_length=1)
    """Channels of each level as multiples of `channels`, from full resolution down. Each level after the first halves
    the resolution."""
    blocks: Positive = 1
    """Residual blocks per level."""

    def lowest(self, resolution: Resolution, key: str) -> Resolution:
        """The lowest level's height and width. Raises UserError, naming `key`, where they cannot be halved so often."""
        halvings = len(self.channel_mult) - 1
        if not resolution.divisible_by(2**halvings):
            raise UserError(
                f"data.resolution {resolution} cannot be halved {plural(halvings, 'time')} for {key} "
                f"{list(self.channel_mult)}; take a multiple of {2**halvings} or fewer levels"
            )
        return resolution.divided_by(2**halvings)


class NormalizedLevelsConfig(LevelsConfig):
    """Width and depth of a network with group normalization."""

    groups: Positive = 8
    """Groups of the group normalization; `channels` is a multiple of it."""

    @model_validator(mode="after")
    def _groups_divide(self) -> NormalizedLevelsConfig:
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} must be a multiple of groups {self.groups}")
        return self


def check_attention(attention: Sequence[int], levels: Sequence[int]) -> None:
    """Raise UserError where no level has a resolution that the config names for attention.

    levels: the shorter side of each level's features.
    """
    absent = set(attention) - set(levels)
    if absent:
        raise UserError(
            f"stage.network.attention names resolutions {sorted(absent)} that no level has; the levels are {[*levels]} "
            f"by their shorter side"
        )
