"""The modules of our UNet as diffusers' UNet2DModel names them."""

from __future__ import annotations

from collections.abc import Sequence

from diffpipe.experiment.interop.renaming import Names

_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
_ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def unet2d_names(attends: Sequence[bool], blocks: int) -> Names:
    """Our modules with their names, those that some networks lack included.

    attends: for each level, from full resolution down, whether it has attention. blocks: residual blocks per level.
    Ours counts the layers through all levels; a level begins with its downsampling, and theirs ends with it.
    """
    names = {
        "time.0": ("time_embedding.linear_1",),
        "time.2": ("time_embedding.linear_2",),
        "label": ("class_embedding",),
        "stem": ("conv_in",),
        "norm": ("conv_norm_out",),
        "out": ("conv_out",),
    }
    i = 0
    for level, attention in enumerate(attends):
        if level:
            names[f"down.{i}"] = (f"down_blocks.{level - 1}.downsamplers.0.conv",)
            i += 1
        for k in range(blocks):
            names |= _block(f"down.{i}", f"down_blocks.{level}", k, attention=attention)
            i += 1
    names |= _residual("middle.0", "mid_block.resnets.0") | _residual("middle.2", "mid_block.resnets.1")
    names |= _attention("middle.1", "mid_block.attentions.0")
    i = 0
    for level, attention in enumerate(reversed(attends)):
        for k in range(blocks + 1):
            names |= _block(f"up.{i}", f"up_blocks.{level}", k, attention=attention)
            i += 1
        if level < len(attends) - 1:
            names[f"up.{i}.conv"] = (f"up_blocks.{level}.upsamplers.0.conv",)
            i += 1
    return names


def current_name(key: str) -> str:
    """A tensor's name as diffusers has it since version 0.16, which reads and renames earlier ones."""
    module, _, leaf = key.rpartition(".")
    parent, _, last = module.rpartition(".")
    old = ".attentions." in module and last in _OLD_ATTENTION
    return f"{parent}.{_OLD_ATTENTION[last]}.{leaf}" if old else key


def _block(ours: str, theirs: str, k: int, *, attention: bool) -> dict[str, tuple[str, ...]]:
    names = _residual(f"{ours}.0", f"{theirs}.resnets.{k}")
    return names | _attention(f"{ours}.1", f"{theirs}.attentions.{k}") if attention else names


def _residual(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{part}": (f"{theirs}.{name}",) for part, name in _RESIDUAL.items()}


def _attention(ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    return {f"{ours}.{part}": tuple(f"{theirs}.{name}" for name in names) for part, names in _ATTENTION.items()}
