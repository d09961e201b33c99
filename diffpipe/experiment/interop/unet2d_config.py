"""The config of diffusers' UNet2DModel and the network of ours that computes the same, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from torch import Tensor

from diffpipe.config import Config, validate
from diffpipe.errors import UserError
from diffpipe.experiment.interop.renaming import Names, to_ours, to_theirs
from diffpipe.experiment.interop.unet2d_names import unet2d_names
from diffpipe.nn.levels import Positive
from diffpipe.nn.unet import UNetConfig
from diffpipe.resolution import Resolution, parse_resolution

# A config from elsewhere may ask for a network that cannot even be described.
_MOST_BLOCKS = 1000
_LABEL = "label.weight"
Width = Annotated[int, Field(ge=1, le=1 << 16)]
Rows = Annotated[int, Field(ge=1, le=1 << 24)]


class UNet2DConfig(Config):
    """The keys of a UNet2DModel's config.json, with what they mean where they are left out (diffusers 0.42).

    A `Literal` has the values that our UNet computes.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: Width = 3
    out_channels: Width = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: Literal[0, 1] = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[Width, ...] = (224, 448, 672, 896)
    layers_per_block: Positive = 2
    mid_block_scale_factor: Literal[1] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: Positive | None = 8
    norm_num_groups: Positive = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: Literal[True] = True
    class_embed_type: None = None
    num_class_embeds: Rows | None = None
    num_train_timesteps: int | None = None


class UNet2D(NamedTuple):
    """A UNet2DModel as we have it.

    channels, out_channels: of its input and output. rows: of its class embedding; None: it has none.
    """

    network: UNetConfig
    channels: int
    out_channels: int
    resolution: Resolution
    rows: int | None = None

    def count_classes(self, given: int | None, where: str) -> int:
        """The classes of our network, where `given` is their number or not known. Raises UserError."""
        rows = self.rows
        if rows is None and not given:
            return 0
        if rows is None:
            raise UserError(f"{where}: its network has no class embedding; leave out --classes")
        if given is None or not rows - 1 <= given <= rows or given < 1:
            raise UserError(
                f"{where}: its class embedding has {rows} rows; give --classes {rows}, or --classes {rows - 1} where "
                f"the last row is the empty label of classifier-free guidance"
            )
        return given

    def has_empty_label(self, classes: int) -> bool:
        return classes != self.rows

    def their_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our network's tensors as theirs. Without a row of its own, the empty label has none there."""
        return to_theirs({key: t[: self.rows] if key == _LABEL else t for key, t in tensors.items()}, self.names)

    def our_tensors(self, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their tensors as ours. A class embedding without a row for the empty label gets one of zeros.

        expected: our network's tensors, without values.
        """
        ours = to_ours(tensors, self.names)
        if _LABEL in ours:
            rows = ours[_LABEL]
            ours[_LABEL] = rows.new_zeros(expected[_LABEL].shape)
            ours[_LABEL][: len(rows)] = rows
        return ours

    @property
    def attends(self) -> list[bool]:
        """For each level whether it has attention."""
        return [self.resolution.shorter >> i in self.network.attention for i in range(len(self.network.channel_mult))]

    @property
    def names(self) -> Names:
        """Our modules with their names."""
        return unet2d_names(self.attends, self.network.blocks)


def to_unet2d(model: UNet2D) -> UNet2DConfig:
    """The UNet2DModel's config. Raises UserError where none computes what our network does."""
    network, attends = model.network, model.attends
    if network.patch > 1:
        raise UserError(
            f"stage.network.patch is {network.patch}, and diffusers' UNet2DModel has no patches; "
            f"export --to safetensors"
        )
    if network.channel_mult[0] != 1:
        raise UserError(
            f"stage.network.channel_mult starts with {network.channel_mult[0]}, and the timestep embedding of "
            f"diffusers' UNet2DModel is as wide as its first level; export --to safetensors"
        )
    widths = [mult * network.channels for mult in network.channel_mult]
    attended = {widths[-1], *(width for width, attention in zip(widths, attends, strict=True) if attention)}
    head_width = network.head_channels
    if head_width is None and network.heads > 1:
        if len(attended) > 1:
            raise UserError(
                f"stage.network.heads is {network.heads} at {len(attended)} widths, and diffusers' UNet2DModel has "
                f"heads of one width; export --to safetensors"
            )
        head_width = widths[-1] // network.heads
    return UNet2DConfig(
        sample_size=model.resolution.height if model.resolution.is_square else model.resolution,
        in_channels=model.channels,
        out_channels=model.out_channels,
        freq_shift=network.frequency_shift,
        flip_sin_to_cos=network.cos_first,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in attends[::-1]),
        block_out_channels=tuple(widths),
        layers_per_block=network.blocks,
        downsample_padding=0 if network.downsample_padding == "end" else 1,
        dropout=network.dropout,
        attention_head_dim=head_width,
        norm_num_groups=network.groups,
        norm_eps=network.norm_eps,
        num_class_embeds=model.rows,
    )


def from_unet2d(tree: Mapping[str, Any], where: str) -> UNet2D:
    """The network of a config.json. Raises UserError, which begins with `where`, where ours does not compute it."""
    named = {key: value for key, value in tree.items() if not key.startswith("_")}
    known = {key: value for key, value in named.items() if value is not None or key in UNet2DConfig.model_fields}
    config = validate(UNet2DConfig, known, where)
    attends = [_attention(kind, "Down", where) for kind in config.down_block_types]
    if [_attention(kind, "Up", where) for kind in config.up_block_types] != attends[::-1]:
        raise UserError(f"{where}: up_block_types has attention at other levels than down_block_types, as no UNet here")
    if len(attends) * config.layers_per_block > _MOST_BLOCKS:
        raise UserError(f"{where}: layers_per_block is {config.layers_per_block}, at {len(attends)} levels; too many")
    resolution, widths = _resolution(config.sample_size, where), config.block_out_channels
    if not widths or len(widths) != len(attends) or any(width % widths[0] for width in widths):
        raise UserError(
            f"{where}: block_out_channels is {list(widths)} for {len(attends)} levels; diffpipe's UNet has a multiple "
            f"of the first level's channels at each"
        )
    if config.time_embedding_dim not in (None, 4 * widths[0]):
        raise UserError(f"{where}: time_embedding_dim is {config.time_embedding_dim}; here it is {4 * widths[0]}")
    if config.attn_norm_num_groups not in (None, config.norm_num_groups):
        raise UserError(f"{where}: attn_norm_num_groups differs from norm_num_groups, as in no UNet here")
    network = {
        "channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "blocks": config.layers_per_block,
        "attention": [resolution.shorter >> i for i, attention in enumerate(attends) if attention],
        "head_channels": config.attention_head_dim,
        "groups": config.norm_num_groups,
        "dropout": config.dropout,
        "norm_eps": config.norm_eps,
        "frequency_shift": config.freq_shift,
        "cos_first": config.flip_sin_to_cos,
        "downsample_padding": "both" if config.downsample_padding else "end",
    }
    unet = validate(UNetConfig, network, where)
    return UNet2D(unet, config.in_channels, config.out_channels, resolution, config.num_class_embeds)


def _attention(kind: str, way: str, where: str) -> bool:
    known = {f"{way}Block2D": False, f"Attn{way}Block2D": True}
    name = kind.removeprefix("UNetRes")  # as diffusers reads early configs
    if name not in known:
        raise UserError(f"{where}: it has a {kind[:60]}; diffpipe's UNet is made of {' and '.join(known)}")
    return known[name]


def _resolution(size: int | tuple[int, int] | None, where: str) -> Resolution:
    try:
        return parse_resolution(size)
    except ValueError as error:
        raise UserError(f"{where}: sample_size is {size}; give it the height and width of the images") from error
