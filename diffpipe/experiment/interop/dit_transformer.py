"""diffusers' DiTTransformer2DModel and the DiT of ours that computes the same: config and tensors, both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from diffpipe.config import Config, validate
from diffpipe.errors import UserError
from diffpipe.experiment.interop.renaming import Names, to_ours, to_theirs
from diffpipe.experiment.interop.unet2d_config import Rows, Width
from diffpipe.nn.dit import DiTConfig
from diffpipe.nn.levels import Positive
from diffpipe.plural import plural
from diffpipe.resolution import Resolution, square

_MOST_BLOCKS = 1000  # a config from elsewhere may ask for a network that cannot even be described
_EMBEDDINGS = {
    "time.0": "timestep_embedder.linear_1",
    "time.2": "timestep_embedder.linear_2",
    "label": "class_embedder.embedding_table",
}
"""Modules that theirs has in each block, all alike, under `norm1.emb`."""
_LABEL = "label.weight"


class DiTTransformerConfig(Config):
    """The keys of a DiTTransformer2DModel's config.json, with what they mean where they are left out (diffusers 0.42).

    A `Literal` has the values that our DiT computes.
    """

    num_attention_heads: Positive = 16
    attention_head_dim: Width = 72
    in_channels: Width = 4
    out_channels: Width | None = None
    num_layers: Positive = 28
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    norm_num_groups: int = 32
    attention_bias: Literal[True] = True
    sample_size: Positive = 32
    patch_size: Positive = 2
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    num_embeds_ada_norm: Rows = 1000
    upcast_attention: bool = False
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: float = 1e-5


class DiTTransformer(NamedTuple):
    """A DiTTransformer2DModel as we have it.

    channels, out_channels: of its input and output. resolution: its sample_size. classes: of its embedding, which has a
    row more, the empty label. It always has one: with the class 0 alone, and zeros, where ours has no labels.
    """

    network: DiTConfig
    channels: int
    out_channels: int
    resolution: Resolution
    classes: int

    def count_classes(self, given: int | None, where: str) -> int:
        """The classes of our network, where `given` is their number or not known. Raises UserError."""
        if given not in (None, self.classes) and (given, self.classes) != (0, 1):
            raise UserError(
                f"{where}: its class embedding has {plural(self.classes, 'row')} beside the empty label's; leave out "
                f"--classes"
            )
        return self.classes if given is None else given

    def has_empty_label(self, classes: int) -> bool:
        return True

    @property
    def names(self) -> Names:
        """Our modules with their names. Of the embeddings that each block has, the first block's."""
        names: dict[str, tuple[str, ...]] = {
            "stem": ("pos_embed.proj",),
            "modulation": ("proj_out_1",),
            "out": ("proj_out_2",),
        }
        names |= {ours: (f"{_embeddings(0)}.{theirs}",) for ours, theirs in _EMBEDDINGS.items()}
        for i in range(self.network.depth):
            ours, theirs = f"layers.{i}", f"transformer_blocks.{i}"
            names |= {
                f"{ours}.modulation": (f"{theirs}.norm1.linear",),
                f"{ours}.qkv": tuple(f"{theirs}.attn1.to_{part}" for part in "qkv"),
                f"{ours}.out": (f"{theirs}.attn1.to_out.0",),
                f"{ours}.mlp.0": (f"{theirs}.ff.net.0.proj",),
                f"{ours}.mlp.2": (f"{theirs}.ff.net.2",),
            }
        return names

    def their_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our network's tensors as theirs. The embedding of a network without labels is zero."""
        if _LABEL not in tensors:
            width = self.network.width
            tensors = {**tensors, _LABEL: tensors["modulation.weight"].new_zeros(self.classes + 1, width)}
        theirs = to_theirs(tensors, self.names)
        first = f"{_embeddings(0)}."
        copied = {name.removeprefix(first): tensor for name, tensor in theirs.items() if name.startswith(first)}
        for i in range(1, self.network.depth):
            theirs |= {f"{_embeddings(i)}.{name}": tensor.clone() for name, tensor in copied.items()}
        return theirs

    def our_tensors(self, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors as ours. Raises UserError where theirs is another function than any DiT of ours.

        expected: our network's tensors, without values.
        """
        first = f"{_embeddings(0)}."
        for name, tensor in tensors.items():
            block, found, rest = name.partition(".norm1.emb.")
            if found and not torch.equal(tensor, tensors[first + rest]):
                raise UserError(
                    f"{block} has other values in norm1.emb.{rest} than the first block, and diffpipe's DiT has one "
                    f"embedding for all blocks"
                )
        ours = to_ours(tensors, self.names)
        if _LABEL not in expected and ours.pop(_LABEL).any():
            raise UserError("its class embedding is not zero; give --classes N")
        return ours


def to_dit_transformer(model: DiTTransformer) -> DiTTransformerConfig:
    """The DiTTransformer2DModel's config. Raises UserError, naming the key, where none computes what our DiT does."""
    network = model.network
    for key, value in (("mlp_ratio", 4.0), ("mlp", "gelu"), ("norm", "layer"), ("qk_norm", False), ("rope", False)):
        _require(network, key, value)
    _require(network, "frequency_shift", 1)
    if not model.resolution.is_square:
        raise UserError(
            f"data.resolution: the network denoises {model.resolution}, and diffusers' DiTTransformer2DModel takes "
            f"square images; export --to safetensors"
        )
    return DiTTransformerConfig(
        num_attention_heads=network.heads,
        attention_head_dim=network.width // network.heads,
        in_channels=model.channels,
        out_channels=model.out_channels,
        num_layers=network.depth,
        sample_size=model.resolution.height,
        patch_size=network.patch,
        num_embeds_ada_norm=model.classes,
        norm_eps=network.mlp_norm_eps,
    )


def from_dit_transformer(tree: Mapping[str, Any], where: str) -> DiTTransformer:
    """The network of a config.json. Raises UserError, which begins with `where`, where ours does not compute it.

    Keys of the more general Transformer2DModel, as which DiT was first published, are read where they are off.
    """
    known = DiTTransformerConfig.model_fields
    config = validate(
        DiTTransformerConfig,
        {k: v for k, v in tree.items() if k in known or not (k.startswith("_") or v is None or v is False)},
        where,
    )
    if config.num_layers > _MOST_BLOCKS:
        raise UserError(f"{where}: num_layers is {config.num_layers}; too many")
    network = {
        "kind": "dit",
        "patch": config.patch_size,
        "width": config.num_attention_heads * config.attention_head_dim,
        "depth": config.num_layers,
        "heads": config.num_attention_heads,
        "mlp_norm_eps": config.norm_eps,
    }
    dit = validate(DiTConfig, network, where)
    outputs = config.out_channels or config.in_channels
    return DiTTransformer(dit, config.in_channels, outputs, square(config.sample_size), config.num_embeds_ada_norm)


def _embeddings(block: int) -> str:
    return f"transformer_blocks.{block}.norm1.emb"


def _require(network: DiTConfig, key: str, value: object) -> None:
    if getattr(network, key) != value:
        raise UserError(
            f"stage.network.{key} is {str(getattr(network, key)).lower()}, and diffusers' DiTTransformer2DModel has "
            f"{str(value).lower()}; export --to safetensors"
        )
