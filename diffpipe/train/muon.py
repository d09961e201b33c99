"""Muon for whole and for sharded weights (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffpipe.train.blocks import blocks
from diffpipe.train.distributed import Communicator
from diffpipe.train.parallel import full_tensor, local_tensor, shard_like

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Jordan et al.'s coefficients of the Newton-Schulz iteration. It brings all singular values near 1, within 5 steps."""
_ITERATIONS = 5
_LARGEST_ROUND = 1 << 24
"""Numbers in the matrices that are orthogonalized at once."""


def hidden_matrices(net: nn.Module, *, convolutions: bool = False) -> list[Tensor]:
    """The parameters that Muon is made for: the trained weights of linear layers within the network's blocks.

    convolutions: those of convolutions, too. A matrix of one row or one column is none: its orthogonalized update would
    be its normalized gradient.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd) if convolutions else (nn.Linear,)
    layers = [layer for block in blocks(net) for layer in block.modules() if isinstance(layer, kinds)]
    weights = [layer.weight for layer in layers]
    return [weight for weight in weights if weight.requires_grad and min(_matrix_shape(weight)) > 1]


class Muon(torch.optim.Optimizer):
    """Orthogonalized updates, as torch.optim.Muon makes them with adjust_lr_fn="match_rms_adamw".

    It differs from torch's in that a convolution's weight is a matrix of one row for each output channel, that
    matrices of one shape are iterated together, in float32 on CPUs and in bfloat16 on GPUs, and that nothing changes
    where `found_inf` is 1, as in torch's fused AdamW.

    The processes share the matrices among them, and exchange what they have orthogonalized: so all move by the same
    updates. A sharded weight is gathered before, and each process keeps its own rows of the update.
    """

    found_inf: Tensor

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        momentum: float,
        weight_decay: float,
        comm: Communicator = Communicator(),  # noqa: B008 (frozen)
    ):
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self.comm = comm
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every weight that has a gradient. A collective."""
        for group in self.param_groups:
            for weights in _rounds([p for p in group["params"] if p.grad is not None]):
                self._update(weights, group)

    def _update(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        grads = [p.grad for p in weights if p.grad is not None]
        averages = [self.state[p]["momentum_buffer"].lerp(g, 1 - momentum) for p, g in zip(weights, grads, strict=True)]
        nesterov = [full_tensor(g.lerp(average, momentum)) for g, average in zip(grads, averages, strict=True)]
        updates = shared_orthogonalized([update.flatten(1) for update in nesterov], self.comm)
        for p, average, update in zip(weights, averages, updates, strict=True):
            size = 0.2 * math.sqrt(max(_matrix_shape(p)))  # AdamW's (Liu et al. 2025, eq. 4)
            moved = local_tensor(p) * (1 - lr * group["weight_decay"])
            moved.add_(local_tensor(shard_like(update.to(p.dtype).reshape(p.shape), p)), alpha=-lr * size)
            for tensor, new in ((self.state[p]["momentum_buffer"], local_tensor(average)), (p, moved)):
                local = local_tensor(tensor)
                local.copy_(torch.where(self.found_inf > 0, local, new))


def shared_orthogonalized(matrices: Sequence[Float[Tensor, "_ _"]], comm: Communicator) -> list[Float[Tensor, "_ _"]]:
    """`orthogonalized` of each matrix: each process makes its share, and all of them get all. A collective.

    matrices: the same ones on all processes.
    """
    shares = _shares([(len(matrix), matrix.shape[1]) for matrix in matrices], comm.world)
    updates: dict[int, Tensor] = {}
    for shape in dict.fromkeys(matrices[i].shape for i in shares[comm.rank]):
        same = [i for i in shares[comm.rank] if matrices[i].shape == shape]
        updates |= zip(same, orthogonalized(torch.stack([matrices[i] for i in same])), strict=True)
    if comm.world > 1:
        numbers = [[matrices[i].numel() for i in share] for share in shares]
        own = matrices[0].new_zeros(max(map(sum, numbers)), dtype=_dtype(matrices[0].device))
        own[: sum(numbers[comm.rank])] = torch.cat([own[:0], *(updates[i].flatten() for i in shares[comm.rank])])
        for share, sizes, row in zip(shares, numbers, comm.stack(own), strict=True):
            parts = row[: sum(sizes)].split(sizes)
            updates |= {i: part.view(matrices[i].shape) for i, part in zip(share, parts, strict=True)}
    return [updates[i] for i in range(len(matrices))]


def orthogonalized(
    matrices: Float[Tensor, "n rows columns"], dtype: torch.dtype | None = None
) -> Float[Tensor, "n rows columns"]:
    """About U V^T of each matrix U S V^T: five steps of the quintic Newton-Schulz iteration, which leave the singular
    values between 0.7 and 1.2.

    dtype: that of the iteration and of the result; None: bfloat16 on GPUs. On CPUs, where many emulate it, float32.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.to(dtype or _dtype(matrices.device))
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


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _shares(shapes: Sequence[tuple[int, int]], world: int) -> list[list[int]]:
    """The matrices of each process, by index: the costly ones first, each to the process with the least to do."""
    cost = [min(shape) * math.prod(shape) for shape in shapes]
    shares: list[list[int]] = [[] for _ in range(world)]
    for i in sorted(range(len(shapes)), key=lambda i: -cost[i]):
        min(shares, key=lambda share: sum(cost[j] for j in share)).append(i)
    return [sorted(share) for share in shares]


def _rounds(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The weights in turn, no more numbers than `_LARGEST_ROUND` together, or a single one."""
    gathered: list[Tensor] = []
    for p in weights:
        if gathered and sum(q.numel() for q in [*gathered, p]) > _LARGEST_ROUND:
            yield gathered
            gathered = []
        gathered.append(p)
    if gathered:
        yield gathered
