"""Residual blocks without normalization, for a discriminator of patches."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from diffpipe.nn.blocks import zero_init

SLOPE = 0.2


class NormFreeBlock(nn.Module):
    """leaky ReLU → conv, twice, with a skip around.

    Initialization takes the place of normalization: the last convolution is zero and the first one scaled by
    1/sqrt(depth), so signals do not grow with depth (Zhang et al. 2019, "Fixup"; Huang et al. 2024, section 3).

    depth: the number of residual blocks in the whole network.
    """

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))
        nn.init.kaiming_normal_(self.conv1.weight, a=SLOPE)
        self.conv1.weight.data.mul_(depth**-0.5)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        h = self.conv1(F.leaky_relu(x, SLOPE))
        return x + self.conv2(F.leaky_relu(h, SLOPE))
