"""Muon for whole and for sharded weights (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffpipe.train.blocks import blocks
from diffpipe.train.parallel import full_tensor, local_tensor, shard_like

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan et al.'s coefficients of the Newton-Schulz iteration. It brings all singular values near 1, within 5 steps."""
_ITERATIONS = 5
_LARGEST_STACK = 1 << 24
"""Numbers in the matrices that are iterated at once."""


def hidden_matrices(net: nn.Module, *, convolutions: bool = False) -> list[Tensor]:
    """The parameters that Muon is made for: the weights of linear layers within the network's blocks.

    convolutions: those of convolutions, too. A matrix of one row or one column is none: its orthogonalized update would
    be its normalized gradient.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd) if convolutions else (nn.Linear,)
    layers = [layer for block in blocks(net) for layer in block.modules() if isinstance(layer, kinds)]
    weights = [layer.weight for layer in layers]
    return [weight for weight in weights if min(_matrix_shape(weight)) > 1]


class Muon(torch.optim.Optimizer):
    """Orthogonalized updates, as torch.optim.Muon makes them with adjust_lr_fn="match_rms_adamw".

    It differs from torch's in that a convolution's weight is a matrix of one row for each output channel, that
    matrices of one shape are iterated together, in float32 on CPUs and in bfloat16 on GPUs, and that nothing changes
    where `found_inf` is 1, as in torch's fused AdamW.

    A sharded weight is gathered for the iteration, which each process makes on the whole of it before it keeps its own
    rows. So the result is the same for any number of processes.
    """

    found_inf: Tensor

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, weight_decay: float):
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient."""
        for group in self.param_groups:
            for stack in _stacks([p for p in group["params"] if p.grad is not None]):
                self._update(stack, group)

    def _update(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        """One update of weights that are matrices of one shape."""
        momentum, lr = group["momentum"], group["lr"]
        grads = [p.grad for p in weights if p.grad is not None]
        averages = [self.state[p]["momentum_buffer"].lerp(g, 1 - momentum) for p, g in zip(weights, grads, strict=True)]
        nesterov = [full_tensor(g.lerp(average, momentum)) for g, average in zip(grads, averages, strict=True)]
        updates = orthogonalized(torch.stack([update.flatten(1) for update in nesterov]))
        size = 0.2 * math.sqrt(max(_matrix_shape(weights[0])))  # AdamW's (Liu et al. 2025, eq. 4)
        for p, average, update in zip(weights, averages, updates, strict=True):
            moved = local_tensor(p) * (1 - lr * group["weight_decay"])
            moved.add_(local_tensor(shard_like(update.to(p.dtype).reshape(p.shape), p)), alpha=-lr * size)
            for tensor, new in ((self.state[p]["momentum_buffer"], local_tensor(average)), (p, moved)):
                local = local_tensor(tensor)
                local.copy_(torch.where(self.found_inf > 0, local, new))


def orthogonalized(
    matrices: Float[Tensor, "n rows columns"], dtype: torch.dtype | None = None
) -> Float[Tensor, "n rows columns"]:
    """About U V^T of each matrix U S V^T: five steps of the quintic Newton-Schulz iteration, which leave the singular
    values between 0.7 and 1.2.

    dtype: that of the iteration; None: bfloat16 on GPUs. On CPUs, where many emulate it, float32.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.to(dtype or (torch.float32 if matrices.device.type == "cpu" else torch.bfloat16))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    x = _iterated_on_grams(x) if x.dtype == torch.float32 else _iterated(x)
    return x if wide is matrices else x.mT


def _iterated(x: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _iterated_on_grams(x: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """`_iterated` with half the multiplications for a convolution's wide matrices.

    A step multiplies X by Q = a + b G + c G^2, where G = X X^T. So G becomes Q G Q, and the product of all Q is
    multiplied by the first X alone. Its rounding errors are larger, which bfloat16 has no digits for.
    """
    a, b, c = _QUINTIC
    gram, product = x @ x.mT, None
    for step in range(_ITERATIONS):
        q = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        q.diagonal(dim1=1, dim2=2).add_(a)
        product = q if product is None else q @ product
        if step < _ITERATIONS - 1:
            gram = q @ gram @ q
    assert product is not None
    return product @ x


def _matrix_shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], math.prod(weight.shape[1:])


def _stacks(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The weights in stacks of one matrix shape, none larger than `_LARGEST_STACK` but of a single weight."""
    of_shape: dict[tuple[int, int], list[Tensor]] = {}
    for p in weights:
        of_shape.setdefault(_matrix_shape(p), []).append(p)
    for shape, same in of_shape.items():
        many = max(1, _LARGEST_STACK // math.prod(shape))
        yield from (same[i : i + many] for i in range(0, len(same), many))
