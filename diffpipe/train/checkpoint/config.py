"""The checkpoint section of a config."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from diffpipe.config import Config


class CheckpointConfig(Config):
    """When to save and what to keep."""

    model_config = ConfigDict(serialize_by_alias=True)

    every: int = Field(default=1000, ge=0)
    """Steps between checkpoints. The last step is always saved; 0: no other."""
    keep_last: int = Field(default=2, ge=2)
    """Newest checkpoints to keep: at least two, since a disk can lose part of the newest."""
    keep_every: int = Field(default=0, ge=0)
    """Keep the checkpoints of steps that are multiples of this for good; 0: none."""
    asynchronous: bool = Field(default=True, alias="async")
    """Write in a thread beside training, which then waits only for a copy in memory."""
