"""The weights of diffusers' networks under the names that ours have for them."""

from __future__ import annotations

import torch
from torch import Tensor

_DIT_BLOCK = {
    "norm1.linear": "modulation",
    "attn1.to_out.0": "out",
    "ff.net.0.proj": "mlp.0",
    "ff.net.2": "mlp.2",
}
_DIT = {
    "pos_embed.proj": "stem",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "time.0",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "time.2",
    "transformer_blocks.0.norm1.emb.class_embedder.embedding_table": "label",
    "proj_out_1": "modulation",
    "proj_out_2": "out",
}


def dit_weights(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The weights of a `DiTTransformer2DModel`, each block of which holds a copy of the same embeddings."""
    names = dict(_DIT)
    for i in range(depth):
        names |= {f"transformer_blocks.{i}.{name}": f"layers.{i}.{ours}" for name, ours in _DIT_BLOCK.items()}
    weights = {
        f"{names[module]}.{kind}": theirs[f"{module}.{kind}"] for module, kind in _split(theirs) if module in names
    }
    for i in range(depth):
        weights |= qkv(theirs, f"transformer_blocks.{i}.attn1", f"layers.{i}.qkv")
    return weights


def qkv(theirs: dict[str, Tensor], name: str, ours: str) -> dict[str, Tensor]:
    """The three projections of an attention as one."""
    return {
        f"{ours}.{kind}": torch.cat([theirs[f"{name}.to_{part}.{kind}"] for part in "qkv"])
        for kind in ("weight", "bias")
    }


def _split(theirs: dict[str, Tensor]) -> list[tuple[str, str]]:
    return [(module, kind) for module, _, kind in (name.rpartition(".") for name in theirs)]
