"""Folders as diffusers writes them: a small random UNet2DModel or DiTTransformer2DModel with a scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel

from tests.support.randomized import randomized

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}


def unet2d(**changes: Any) -> UNet2DModel:
    """The model, its weights moved off their start."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = UNet2DModel(**{**UNET, **changes})
    return randomized(model)  # pyright: ignore[reportReturnType]


def dit_transformer(**changes: Any) -> DiTTransformer2DModel:
    """Of images of 3×8×8, its weights moved off their start; each block has the first one's embeddings."""
    keys = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 3, "num_layers": 2, "sample_size": 8}
    model: Any = randomized(DiTTransformer2DModel(**{**keys, "num_embeds_ada_norm": 5, **changes}))
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    return model


def saved_folder(folder: Path, scheduler: Any = None, **changes: Any) -> Path:
    """A folder by save_pretrained."""
    model: Any = unet2d(**changes)
    DDPMPipeline(model, scheduler or DDPMScheduler()).save_pretrained(folder)
    return folder
