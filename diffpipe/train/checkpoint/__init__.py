"""Checkpoints: each one is complete and verified, or does not exist.

A checkpoint is a directory `step-00001000` of safetensors shards (torch.distributed.checkpoint, written by all ranks),
`state.json`, and `manifest.json` with the size and sha256 of each file. The newest one has the highest number in its
name; times and other files do not count. Nothing is parsed before its hash has been checked, and nothing is unpickled.
"""

from diffpipe.run_folder import MANIFEST, STATE, committed, step_name, step_of
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.checkpoint.format import manifest_sha256
from diffpipe.train.checkpoint.read import Checkpoint, load, newest_valid, open_checkpoint
from diffpipe.train.checkpoint.state import RunState
from diffpipe.train.checkpoint.verify import Damage, damage

__all__ = [
    "MANIFEST",
    "STATE",
    "Checkpoint",
    "CheckpointConfig",
    "Damage",
    "RunState",
    "committed",
    "damage",
    "load",
    "manifest_sha256",
    "newest_valid",
    "open_checkpoint",
    "step_name",
    "step_of",
]
