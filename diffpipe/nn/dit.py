"""The diffusion transformer of Peebles & Xie 2023 (arXiv:2212.09748), which SiT takes over (Ma et al. 2024)."""

from __future__ import annotations

from typing import Literal, cast

from einops import rearrange
from jaxtyping import Float, Int, Real
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.nn.blocks import sinusoidal_embedding, zero_init
from diffpipe.nn.levels import Positive
from diffpipe.nn.norms import Norm, RMSNorm, normalized
from diffpipe.nn.positions import rotary_angles, rotate, sincos_embedding
from diffpipe.resolution import Resolution

_FREQUENCIES = 256
_EPS = 1e-6


class DiTConfig(Config):
    """Patch size, width and depth of the transformer. The defaults are DiT-B/2 of Peebles & Xie 2023, table 1."""

    kind: Literal["dit"]
    """The diffusion transformer (Peebles & Xie 2023) with adaLN-Zero, in pixels or in latents; SiT has the same one."""
    patch: Positive = 2
    """Side of the square patch that is one token, in pixels or latents."""
    width: Positive = 768
    """Channels of the transformer, a multiple of 4."""
    depth: Positive = 12
    """Transformer blocks."""
    heads: Positive = 12
    """Attention heads; `width` is a multiple of it."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    """Channels within the MLP, as a multiple of `width`. swiglu has two thirds of that, for as many parameters."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """gelu: the paper's. swiglu: a gated unit (Shazeer 2020)."""
    norm: Norm = "layer"
    """layer: layer normalization, the paper's. rms: without its mean (Zhang & Sennrich 2019)."""
    qk_norm: bool = False
    """Normalize queries and keys to unit RMS with a learned scale, which keeps the attention of large networks stable
    (Dehghani et al. 2023)."""
    rope: bool = False
    """Rotate queries and keys by row and column (Su et al. 2021), beside the fixed position embedding."""
    frequency_shift: Literal[0, 1] = 1
    """Frequency i of the timestep embedding is 10000^(-i / (128 - frequency_shift)): 1 as diffusers, for which the
    network can then be exported, 0 as the authors' code."""
    mlp_norm_eps: float = Field(default=1e-6, gt=0)
    """Added to the variance in the normalization before the MLP: 1e-6 in the authors' code, 1e-5 by default in
    diffusers. Elsewhere it is 1e-6."""

    @model_validator(mode="after")
    def _divisible(self) -> DiTConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4, for the embedding of rows and columns")
        if self.rope and self.width // self.heads % 4:
            raise ValueError(
                f"rope=true rotates by row and column, so width / heads must be a multiple of 4; width {self.width} "
                f"and heads {self.heads} give {self.width // self.heads}"
            )
        return self

    def build(self, channels: int, resolution: Resolution, classes: int = 0, out_channels: int | None = None) -> DiT:
        """The network for images of this shape. Raises UserError where they do not fit.

        out_channels: None: as many as `channels`.
        """
        return DiT(self, channels, resolution, classes, out_channels)


class DiTBlock(nn.Module):
    """norm → attention → add, norm → MLP → add; the embedding shifts and scales both inputs and gates both outputs.

    The gates start at zero, so a new block is the identity (adaLN-Zero).
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        width = config.width
        self.config = config
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = ((RMSNorm(width // config.heads) if config.qk_norm else None) for _ in range(2))
        self.out = nn.Linear(width, width)
        hidden = round(config.mlp_ratio * width)
        self.mlp = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
            if config.mlp == "gelu"
            else SwiGLU(width, 2 * hidden // 3)
        )

    def forward(
        self,
        h: Float[Tensor, "b n width"],
        emb: Float[Tensor, "b width"],
        angles: Float[Tensor, "n pairs"] | None = None,
    ) -> Float[Tensor, "b n width"]:
        """emb: the embedding of timestep and label, after SiLU. angles: the rotation at each place; None: none."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, dim=-1)
        norm = self.config.norm
        h = h + gate1 * self._attention(normalized(h, norm, _EPS) * (1 + scale1) + shift1, angles)
        return h + gate2 * self.mlp(normalized(h, norm, self.config.mlp_norm_eps) * (1 + scale2) + shift2)

    def _attention(self, h: Tensor, angles: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(h), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.config.heads)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class DiT(nn.Module):
    """Maps (x_t, t, label) to a tensor of x_t's height and width. Raises UserError where the patches do not tile it.

    out_channels: the channels of that tensor; None: those of x_t.
    """

    def __init__(
        self,
        config: DiTConfig,
        channels: int,
        resolution: Resolution,
        classes: int = 0,
        out_channels: int | None = None,
    ):
        super().__init__()
        if not resolution.divisible_by(config.patch):
            fitting = [patch for patch in range(1, resolution.shorter + 1) if resolution.divisible_by(patch)]
            raise UserError(
                f"stage.network.patch {config.patch} must divide the resolution {resolution}; take one of {fitting}"
            )
        self.config = config
        width = config.width
        self.stem = nn.Conv2d(channels, width, config.patch, stride=config.patch)
        self.time = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        # The last row is the empty label: what a dropped label becomes.
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.layers = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, config.patch**2 * (out_channels or channels))
        self._initialize()

    def blocks(self) -> list[nn.Module]:
        return [*self.layers]

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Real[Tensor, " b"], labels: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c_out h w"]:
        """The height and width of x are multiples of the patch. The label `classes` means no label.

        t: timesteps, whole or not.
        """
        config, dtype = self.config, self.stem.weight.dtype
        waves = sinusoidal_embedding(t, _FREQUENCIES, shift=config.frequency_shift, cos_first=True)
        emb = self.time(waves.to(dtype))
        if self.label is not None:
            assert labels is not None, "a class-conditional network takes labels"
            emb = emb + self.label(labels)
        emb = F.silu(emb)

        tokens = self.stem(x)
        rows, columns = tokens.shape[2], tokens.shape[3]
        h = rearrange(tokens, "b c h w -> b (h w) c") + sincos_embedding(rows, columns, config.width, x.device).to(
            dtype
        )
        angles = None
        if config.rope:
            angles = rotary_angles(rows, columns, config.width // config.heads, x.device).to(dtype)
        for layer in self.layers:
            h = layer(h, emb, angles)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=-1)
        patches = self.out(normalized(h, config.norm, _EPS) * (1 + scale) + shift)
        p = config.patch
        return rearrange(patches, "b (h w) (p1 p2 c) -> b c (h p1) (w p2)", h=rows, p1=p, p2=p)

    def _initialize(self) -> None:
        """Xavier-uniform weights and zero biases, except: embeddings from N(0, 0.02²), and zeros (Peebles & Xie 2023).

        Zero are the weights of every modulation and of the last layer, so a new network predicts zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.stem.weight.detach().flatten(1))
        assert self.stem.bias is not None
        nn.init.zeros_(self.stem.bias)
        for embedding in (self.time[0], self.time[2], self.label):
            if isinstance(embedding, (nn.Linear, nn.Embedding)):
                nn.init.normal_(embedding.weight, std=0.02)
        for layer in self.layers:
            zero_init(cast(DiTBlock, layer).modulation)
        zero_init(self.modulation)
        zero_init(self.out)


class SwiGLU(nn.Module):
    """W₃ (SiLU(W₁ x) · W₂ x), with W₁ and W₂ in one layer (Shazeer 2020, equation 6)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_and_value = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)
