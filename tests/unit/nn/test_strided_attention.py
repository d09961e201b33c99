"""Attention within rows and columns: against dense attention with the same mask, at once and token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffpipe.nn.strided_attention import attend_in_columns, attend_in_rows, attend_to, seen_by_next
from tests.support.randomized import normal

ROW, N = 4, 12
ATTEND = {"rows": attend_in_rows, "columns": attend_in_columns}


def sees(pattern: str, i: int, j: int) -> bool:
    """Child et al. 2019, section 4.3, with whole rows instead of a sliding window."""
    rows = i // ROW - j // ROW
    return j <= i and (rows <= 1 if pattern == "rows" else i % ROW == j % ROW)


def qkv() -> list[Tensor]:
    return [*normal(3, 2, 2, N, 8)]


@pytest.mark.parametrize("pattern", ATTEND)
def test_it_is_dense_attention_with_a_mask(pattern: str) -> None:
    q, k, v = qkv()
    mask = torch.tensor([[sees(pattern, i, j) for j in range(N)] for i in range(N)])
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(ATTEND[pattern](q, k, v, ROW), expected)


@pytest.mark.parametrize("pattern", ["full", "rows", "columns"])
def test_the_next_token_sees_what_it_sees_in_the_whole_sequence(pattern: Any) -> None:
    q, k, v = qkv()
    for i in range(N):
        seen = seen_by_next(pattern, i, ROW)
        assert [*range(N)][seen] == [j for j in range(i + 1) if pattern == "full" or sees(pattern, i, j)]
        if pattern in ATTEND:
            one = attend_to(q[:, :, i : i + 1], k[:, :, seen], v[:, :, seen])
            torch.testing.assert_close(one, ATTEND[pattern](q, k, v, ROW)[:, :, i : i + 1])
