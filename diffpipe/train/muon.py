"""Muon for whole and for sharded matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from diffpipe.train.blocks import blocks
from diffpipe.train.parallel import full_tensor, local_tensor, shard_like


def hidden_matrices(net: nn.Module) -> list[Tensor]:
    """The parameters that Muon is made for: the weights of linear layers within the network's blocks.

    A matrix of one row or one column is none: its orthogonalized update would be its normalized gradient.
    """
    layers = [layer for block in blocks(net) for layer in block.modules() if isinstance(layer, nn.Linear)]
    return [layer.weight for layer in layers if min(layer.weight.shape) > 1]


class Muon(torch.optim.Muon):
    """torch's Muon, and like its fused AdamW it changes nothing where `found_inf` is 1.

    A sharded matrix is gathered for the Newton-Schulz iteration, which each process makes on the whole of it before it
    keeps its own rows. So the matrix is the same for any number of processes: torch's own step would leave the sums of
    the iteration, in bfloat16, to the shards.
    """

    found_inf: Tensor

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, weight_decay: float):
        super().__init__(groups, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, grad: Tensor, group: Mapping[str, Any]) -> None:
        buffer, lr = self.state[p]["momentum_buffer"], group["lr"]
        average = buffer.lerp(grad, 1 - group["momentum"])
        update = full_tensor(grad.lerp(average, group["momentum"]))  # Nesterov's
        update = _zeropower_via_newtonschulz(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
        moved = local_tensor(p) * (1 - lr * group["weight_decay"])
        moved.add_(local_tensor(shard_like(update, p)), alpha=-_adjust_lr(lr, group["adjust_lr_fn"], p.shape))
        for tensor, new in ((local_tensor(buffer), local_tensor(average)), (local_tensor(p), moved)):
            tensor.copy_(torch.where(self.found_inf > 0, tensor, new))
