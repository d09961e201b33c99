"""Causal attention within rows and within columns of tokens (Child et al. 2019, "Sparse Transformers", section 4).

In turns they reach the whole image: a token sees its own row and the row above it, or those above it in its column.
The products are written out, since flash kernels are several times slower for such short sequences on CPUs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Pattern = Literal["full", "rows", "columns"]


def attend_in_rows(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"], row: int
) -> Float[Tensor, "b heads n d"]:
    """Attention to the tokens up to the own one in its row, and to all of the row above. row: the tokens in one."""
    q, k, v = (rearrange(x, "b heads (r s) d -> b heads r s d", s=row) for x in (q, k, v))
    k, v = (torch.cat([F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], dim=3) for x in (k, v))
    here = torch.ones(row, row, dtype=torch.bool, device=q.device).triu(1)
    hidden = torch.cat([torch.zeros_like(here), here], dim=1).repeat(q.shape[2], 1, 1)
    hidden[0, :, :row] = True  # there is no row above the first one
    return rearrange(_attend(q, k, v, hidden), "b heads r s d -> b heads (r s) d")


def attend_in_columns(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"], row: int
) -> Float[Tensor, "b heads n d"]:
    """Attention to the tokens up to the own one in its column."""
    q, k, v = (rearrange(x, "b heads (r s) d -> b heads s r d", s=row) for x in (q, k, v))
    hidden = torch.ones(q.shape[3], q.shape[3], dtype=torch.bool, device=q.device).triu(1)
    return rearrange(_attend(q, k, v, hidden), "b heads s r d -> b heads (r s) d")


def attend_to(
    q: Float[Tensor, "b heads m d"], k: Float[Tensor, "b heads n d"], v: Float[Tensor, "b heads n d"]
) -> Float[Tensor, "b heads m d"]:
    """Attention of every query to all keys."""
    return _attend(q, k, v, None)


def seen_by_next(pattern: Pattern, i: int, row: int) -> slice:
    """The tokens that token i sees."""
    if pattern == "columns":
        return slice(i % row, i + 1, row)
    return slice(max(0, (i // row - 1) * row) if pattern == "rows" else 0, i + 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> Tensor:
    """hidden: the keys that each query does not see."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    return scores.float().softmax(dim=-1).to(v.dtype) @ v
