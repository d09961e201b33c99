"""The initial weights of Ho et al. 2020."""

from __future__ import annotations

from torch import nn

from diffpipe.nn.blocks import ResBlock, SelfAttention, zero_init


def variance_scaling(net: nn.Module) -> None:
    """Draw the weights of every convolution and linear layer from U(-a, a), a² = 3 / mean(fan in, fan out).

    Biases are 0. So are the weights of the last layer of each residual block and of each attention, where the code of
    Ho et al. has a variance 10^-10 times as large as elsewhere. The three projections of an attention are drawn as
    layers of their own (Glorot & Bengio 2010, equation 16; Ho et al. 2020, `default_init` in the code).
    """
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, ResBlock):
            zero_init(module.conv2)
        elif isinstance(module, SelfAttention):
            for projection in module.qkv.weight.detach().chunk(3):
                nn.init.xavier_uniform_(projection)
            zero_init(module.out)
