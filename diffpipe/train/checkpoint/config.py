"""The checkpoint section of a config."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from diffpipe.config import Config


class CheckpointConfig(Config):
    """When to save and what to keep."""

    model_config = ConfigDict(serialize_by_alias=True)

    every: int = Field(default=1000, ge=0)
    """Steps between checkpoints; the last step is always saved; 0 saves the last step only."""
    keep_last: int = Field(default=2, ge=2)
    """How many to keep: at least two, since the newest may yet be lost with its disk block."""
    keep_every: int = Field(default=0, ge=0)
    """Keep the checkpoints of steps that are multiples of it for good; 0 keeps none so."""
    asynchronous: bool = Field(default=True, alias="async")
    """`checkpoint.async`: write in a thread beside training, which waits only for a copy in memory."""
