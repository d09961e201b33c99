"""Networks with parameters that no initialization left at zero or one, and inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normal(*shape: int) -> Tensor:
    """Standard normal numbers, the same in every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def randomized(net: nn.Module, std: float = 0.1) -> nn.Module:
    """Every parameter moved off its start, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=std)
    return net.eval()
