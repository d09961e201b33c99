"""The embeddings of rows and columns: against diffusers' table, and what rotations promise."""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import get_2d_sincos_pos_embed

from diffpipe.nn.positions import rotary_angles, rotary_angles_at, rotate, sincos_embedding
from tests.support.randomized import normal


def test_the_fixed_embedding_is_that_of_diffusers() -> None:
    theirs = get_2d_sincos_pos_embed(24, 5, base_size=5, output_type="pt")
    torch.testing.assert_close(sincos_embedding(5, 5, 24), theirs.double(), rtol=0, atol=1e-6)


def test_the_fixed_embedding_has_columns_in_its_first_half_and_rows_in_its_second() -> None:
    table = sincos_embedding(2, 3, 8).reshape(2, 3, 8)
    assert torch.equal(table[0, :, :4], table[1, :, :4])
    assert torch.equal(table[:, 0, 4:], table[:, 2, 4:])
    expected = [math.sin(2), math.sin(2 / 100), math.cos(2), math.cos(2 / 100)]
    torch.testing.assert_close(table[1, 2, :4], torch.tensor(expected, dtype=torch.float64))


def test_a_product_of_rotated_vectors_depends_on_their_offset_alone() -> None:
    angles = rotary_angles(4, 5, 8)
    q, k = normal(8).double(), normal(8).double().flip(0)
    turned_q, turned_k = (rotate(v.expand(1, 1, 20, 8), angles)[0, 0].reshape(4, 5, 8) for v in (q, k))
    products = torch.einsum("hwd,ijd->hwij", turned_q, turned_k)
    torch.testing.assert_close(products[0, 1, 2, 3], products[1, 2, 3, 4])
    torch.testing.assert_close(products[2, 2, 1, 0], products[3, 4, 2, 2])
    assert not torch.isclose(products[0, 0, 0, 1], products[0, 0, 1, 0])
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(4, 5))
    torch.testing.assert_close(turned_q[0, 0], q)


def test_a_rotation_turns_each_pair_by_its_angle() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(1, 1, 1, 4)
    a, b = 0.3, 1.1
    expected = torch.tensor([math.cos(a), math.sin(a), -math.sin(b), math.cos(b)])
    torch.testing.assert_close(rotate(x, torch.tensor([[a, b]]))[0, 0, 0], expected)
    assert torch.equal(rotary_angles(2, 3, 4)[5], torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_angles_along_one_axis_are_those_of_the_paper() -> None:
    """Su et al. 2021, equation 15: pair i turns by position × 10000^(-2i/d)."""
    angles = rotary_angles_at(torch.tensor([[0.0], [3.0], [7.5]], dtype=torch.float64), 8)
    expected = [[p * 10_000 ** (-2 * i / 8) for i in range(4)] for p in (0, 3, 7.5)]
    torch.testing.assert_close(angles, torch.tensor(expected, dtype=torch.float64))
