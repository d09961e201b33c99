"""State dicts with the names of guided-diffusion (Dhariwal & Nichol 2021) as our ADM network.

theirs                                     ours
time_embed.0, .2                           time.0, .2
label_emb                                  label, with a row of zeros for the empty label
input_blocks.0.0                           stem
input_blocks.{i+1}.0, .1                   down.{i}.0, .1: a block and its attention
input_blocks.{i+1}.0, between two levels   down.{i}: the block that halves the resolution
middle_block.0, .1, .2                     middle.0, .1, .2
output_blocks.{j}.0, .1                    up.{j + levels before}.0, .1
the last of output_blocks.{j} in a level   up.{j + levels before + 1}: the block that doubles the resolution
out.0, out.2                               norm, out
in_layers.0, .2, emb_layers.1              norm1, conv1, emb
out_layers.0, .3, skip_connection          norm2, conv2, skip
norm, qkv, proj_out                        norm, qkv, out: a matrix here, a convolution of width 1 there
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from diffpipe.config import validate
from diffpipe.errors import UserError
from diffpipe.experiment.interop.renaming import Names, to_ours
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.nn.adm import ADMConfig
from diffpipe.resolution import Resolution

AttentionOrder = Literal["legacy", "new"]
"""The order of the rows of qkv: queries, keys and values of each head, or of all heads (use_new_attention_order)."""
_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
_STEM, _TIME, _LABEL, _OUT = "input_blocks.0.0.weight", "time_embed.0.weight", "label_emb.weight", "out.2.weight"


class GuidedDiffusion(NamedTuple):
    """A state dict's network as we have it, with the heads of the default config: no shape tells them.

    attends: for each level, from full resolution down, whether it has attention.
    """

    network: ADMConfig
    channels: int
    out_channels: int
    classes: int
    attends: tuple[bool, ...]

    @property
    def names(self) -> Names:
        """Our modules with their names."""
        names = {
            "time.0": "time_embed.0",
            "time.2": "time_embed.2",
            "label": "label_emb",
            "stem": "input_blocks.0.0",
            "norm": "out.0",
            "out": "out.2",
        }
        names |= _residual("middle.0", "middle_block.0") | _attention("middle.1", "middle_block.1")
        names |= _residual("middle.2", "middle_block.2")
        blocks, i, j = self.network.blocks, 0, 0
        for level, attention in enumerate(self.attends):
            if level:
                names |= _residual(f"down.{i}", f"input_blocks.{i + 1}.0")
                i += 1
            for _ in range(blocks):
                names |= _block(f"down.{i}", f"input_blocks.{i + 1}", attention=attention)
                i += 1
        i = 0
        for level, attention in reversed([*enumerate(self.attends)]):
            for _ in range(blocks + 1):
                names |= _block(f"up.{i}", f"output_blocks.{j}", attention=attention)
                i, j = i + 1, j + 1
            if level:
                names |= _residual(f"up.{i}", f"output_blocks.{j - 1}.{1 + attention}")
                i += 1
        return {ours: (theirs,) for ours, theirs in names.items()}


def is_guided_diffusion(weights: WeightsFile) -> bool:
    return weights.shapes.keys() >= {_TIME, _STEM, _OUT}


def from_guided_diffusion(weights: WeightsFile, resolution: Resolution) -> GuidedDiffusion:
    """The network of a state dict for images of this size. Raises UserError where ours does not compute it.

    The last level of the decoder that has a further block, the one that doubles the resolution, tells the blocks per
    level.
    """
    shapes, where = weights.shapes, str(weights.path)
    resampled = next((name for name in shapes if name.endswith((".op.weight", ".conv.weight"))), None)
    if resampled is not None:
        raise UserError(
            f"{where}: {resampled} is a convolution between levels, where diffpipe's adm has residual blocks "
            f"(resblock_updown)"
        )
    channels, stem = weights.shape(_TIME, 2)[1], weights.shape(_STEM, 4)
    blocks = [f"output_blocks.{j}" for j in range(len(shapes)) if f"output_blocks.{j}.0.in_layers.0.weight" in shapes]
    count = len(blocks)
    doubling = [j for j, block in enumerate(blocks) if _doubles(shapes, block)]
    per_level = doubling[0] + 1 if doubling else count
    levels = len(doubling) + 1
    if per_level < 2 or count != per_level * levels:
        raise UserError(f"{where}: its output_blocks are not as many at each level, as in every adm")
    firsts = [f"input_blocks.{1 + level * per_level}" for level in range(levels)]
    widths = [weights.shape(f"{first}.0.out_layers.3.weight", 4)[0] for first in firsts]
    if weights.shape(f"{firsts[0]}.0.emb_layers.1.weight", 2)[0] != 2 * widths[0]:
        raise UserError(
            f"{where}: its embedding only shifts (use_scale_shift_norm=False), and diffpipe's adm scales too"
        )
    if stem[0] != channels or any(width % channels for width in widths):
        raise UserError(
            f"{where}: its levels are {widths} wide, and diffpipe's adm has multiples of the timestep embedding's "
            f"{channels}, that number itself in the first layer"
        )
    attends = tuple(_attends(shapes, first) for first in firsts)
    tree = {
        "kind": "adm",
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "blocks": per_level - 1,
        "attention": [resolution.shorter >> level for level, attention in enumerate(attends) if attention],
    }
    classes = weights.shape(_LABEL, 2)[0] if _LABEL in shapes else 0
    network = validate(ADMConfig, tree, where)
    return GuidedDiffusion(network, stem[1], weights.shape(_OUT, 4)[0], classes, attends)


def guided_diffusion_tensors(
    weights: WeightsFile,
    model: GuidedDiffusion,
    network: ADMConfig,
    order: AttentionOrder,
    expected: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The weights of our network. Raises UserError where the file has others.

    network: with the heads that it has. expected: our network's tensors, without values.
    """
    names = model.names
    if {key.rpartition(".")[0] for key in expected} - names.keys():
        raise UserError(f"{weights.path}: stage.network has other blocks than its shapes tell; leave those keys out")
    shapes = {}
    for key, tensor in expected.items():
        module, _, leaf = key.rpartition(".")
        shape = [model.classes, *tensor.shape[1:]] if key == "label.weight" else [*tensor.shape]
        matrix = leaf == "weight" and module.endswith((".qkv", ".1.out"))
        shapes[f"{names[module][0]}.{leaf}"] = [*shape, 1] if matrix else shape
    weights.require(shapes, "the adm network that its shapes tell")
    ours = to_ours(weights.read(), names)
    for key, tensor in ours.items():
        module, _, leaf = key.rpartition(".")
        if leaf == "weight" and module.endswith((".qkv", ".1.out")):
            ours[key] = tensor.squeeze(-1)
        if module.endswith(".qkv") and order == "legacy":
            heads = network.heads_of(len(tensor) // 3)
            rows = rearrange(ours[key], "(heads qkv d) ... -> (qkv heads d) ...", heads=heads, qkv=3)
            ours[key] = rows.contiguous()
    if "label.weight" in ours:
        ours["label.weight"] = torch.cat(
            [ours["label.weight"], ours["label.weight"].new_zeros(1, 4 * network.channels)]
        )
    return ours


def _doubles(shapes: Mapping[str, object], block: str) -> bool:
    """Whether a block of the decoder ends with one that doubles the resolution."""
    return f"{block}.{1 + _attends(shapes, block)}.in_layers.0.weight" in shapes


def _attends(shapes: Mapping[str, object], block: str) -> bool:
    return f"{block}.1.qkv.weight" in shapes


def _block(ours: str, theirs: str, *, attention: bool) -> dict[str, str]:
    names = _residual(f"{ours}.0", f"{theirs}.0")
    return names | _attention(f"{ours}.1", f"{theirs}.1") if attention else names


def _residual(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{name}" for part, name in _RESIDUAL.items()}


def _attention(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{name}" for part, name in _ATTENTION.items()}
