"""Typed configuration: YAML and dotted overrides in, frozen pydantic models out."""

from diffpipe.config.base import Config
from diffpipe.config.load import dump_yaml, load_config, rename_keys, validate
from diffpipe.config.overrides import override

__all__ = ["Config", "dump_yaml", "load_config", "override", "rename_keys", "validate"]
