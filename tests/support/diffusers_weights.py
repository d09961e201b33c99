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


_RESIDUAL = {"time_emb_proj": "emb", "conv_shortcut": "skip"}
_ATTENTION = {"group_norm": "norm", "to_out.0": "out"}
_ADM = {"time_embedding.linear_1": "time.0", "time_embedding.linear_2": "time.2", "class_embedding": "label"}
_ADM |= {"conv_in": "stem", "conv_norm_out": "norm", "conv_out": "out"}


def adm_weights(theirs: dict[str, Tensor], levels: int, blocks: int) -> dict[str, Tensor]:
    """The weights of a `UNet2DModel` whose residual blocks change the resolution.

    A level of ours begins with its downsampling, and one of theirs ends with it.
    """
    places = {f"mid_block.resnets.{i}": f"middle.{2 * i}" for i in range(2)} | {"mid_block.attentions.0": "middle.1"}
    for side, per_level, resampler in (("down", blocks, "downsamplers"), ("up", blocks + 1, "upsamplers")):
        for level in range(levels):
            start = level * (per_level + 1)
            for i in range(per_level):
                places[f"{side}_blocks.{level}.resnets.{i}"] = f"{side}.{start + i}.0"
                places[f"{side}_blocks.{level}.attentions.{i}"] = f"{side}.{start + i}.1"
            places[f"{side}_blocks.{level}.{resampler}.0"] = f"{side}.{start + per_level}"
    weights: dict[str, Tensor] = {}
    for module, kind in _split(theirs):
        place = next((place for place in places if module.startswith(f"{place}.")), None)
        if place is None:
            weights[f"{_ADM[module]}.{kind}"] = theirs[f"{module}.{kind}"]
        elif module.endswith((".to_q", ".to_k", ".to_v")):
            weights |= qkv(theirs, place, f"{places[place]}.qkv")
        else:
            part = module.removeprefix(f"{place}.")
            part = (_RESIDUAL | _ATTENTION).get(part, part)
            weights[f"{places[place]}.{part}.{kind}"] = theirs[f"{module}.{kind}"]
    return weights


def qkv(theirs: dict[str, Tensor], name: str, ours: str) -> dict[str, Tensor]:
    """The three projections of an attention as one."""
    return {
        f"{ours}.{kind}": torch.cat([theirs[f"{name}.to_{part}.{kind}"] for part in "qkv"])
        for kind in ("weight", "bias")
    }


def _split(theirs: dict[str, Tensor]) -> list[tuple[str, str]]:
    return [(module, kind) for module, _, kind in (name.rpartition(".") for name in theirs)]
