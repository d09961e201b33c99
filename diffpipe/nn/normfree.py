"""What the networks of a GAN are made of: residual blocks without normalization, at any one resolution."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.contract import UserError
from diffpipe.nn.blocks import zero_init

SLOPE = 0.2


class NormFreeBlock(nn.Module):
    """leaky ReLU → conv, twice, with a skip around, and an embedding added between where there is one.

    Nothing is normalized: a signal that grows with depth is prevented at initialization instead, by a last convolution
    of zeros and a first one scaled by 1/sqrt(depth) (Zhang et al. 2019, "Fixup"; Huang et al. 2024, section 3).

    depth: residual blocks in the whole network. c_emb: channels of the embedding, 0 for none.
    """

    def __init__(self, channels: int, depth: int, c_emb: int = 0):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.emb = nn.Linear(c_emb, channels) if c_emb else None
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))
        nn.init.kaiming_normal_(self.conv1.weight, a=SLOPE)
        self.conv1.weight.data.mul_(depth**-0.5)

    def forward(
        self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b c_emb"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        h = self.conv1(F.leaky_relu(x, SLOPE))
        if self.emb is not None:
            assert emb is not None, "a block with an embedding takes one"
            h = h + rearrange(self.emb(emb), "b c -> b c 1 1")
        return x + self.conv2(F.leaky_relu(h, SLOPE))


def smallest_resolution(resolution: int, levels: int, key: str) -> int:
    """The resolution after one halving for each level but the first. Raises UserError, naming `key`, if it is odd."""
    halvings = levels - 1
    if resolution % 2**halvings:
        raise UserError(
            f"data.resolution {resolution} cannot be halved {halvings} times for {key}; "
            f"take a multiple of {2**halvings} or fewer levels"
        )
    return resolution >> halvings
