"""The options of accelerate launch: FSDP is honoured, and an option without effect here is refused."""

from __future__ import annotations

import os

from diffpipe.errors import UserError, raise_first

# By environment variable: its default, and what to use here instead.
_REFUSED = {
    "ACCELERATE_MIXED_PRECISION": ("no", "train.precision"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "train.compile=true"),
    "ACCELERATE_USE_DEEPSPEED": ("false", "train.parallel=fsdp"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "train.parallel=fsdp"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "train.parallel=hsdp"),
}
_REFUSED_WITH_FSDP = {
    "FSDP_VERSION": ("2", "--fsdp_version 2"),
    "FSDP_SHARDING_STRATEGY": ("full_shard", "train.parallel=hsdp"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "the default"),
    "FSDP_OFFLOAD_PARAMS": ("false", "train.activation_checkpointing=true"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "train.activation_checkpointing=true"),
}


def launched_for_fsdp() -> bool:
    """Whether accelerate launch was started with FSDP. It is switched off there, since `ParallelStrategy` shards.

    accelerate shards one network only, and none on a CPU. Raises UserError for an option that has no effect here.
    """
    fsdp = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    refused = [
        UserError(
            f"accelerate launch was given an option that diffpipe does not use ({name}={value}); leave it out, and "
            f"use {instead} instead"
        )
        for name, (default, instead) in (_REFUSED | (_REFUSED_WITH_FSDP if fsdp else {})).items()
        if (value := os.environ.get(name, default)).lower() != default
    ]
    raise_first(refused)
    return fsdp
