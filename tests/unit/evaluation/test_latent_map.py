"""The map's plane against scikit-learn's principal components, and what is decoded where on it."""

from __future__ import annotations

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from diffpipe.evaluation.latent_map import lattice, principal


def latents(n: int, d: int) -> Tensor:
    """Correlated, and far from zero."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, d, generator=generator) @ torch.randn(d, d, generator=generator) + 10


@pytest.mark.parametrize(("n", "d"), [(200, 12), (10, 40)])
def test_the_plane_is_that_of_scikit_learns_principal_components(n: int, d: int) -> None:
    z = latents(n, d)
    plane, reference = principal(z), PCA(2, svd_solver="full").fit(z.double().numpy())
    points, expected = plane.points(z), torch.from_numpy(reference.transform(z.double().numpy()))
    torch.testing.assert_close(points, expected * (points * expected).sum(0).sign(), rtol=0, atol=1e-8)
    assert plane.explained == pytest.approx(reference.explained_variance_ratio_, rel=1e-10)


def test_the_axes_do_not_turn_round_with_the_order_of_the_images() -> None:
    z = latents(50, 6)
    for other in (z.flip(0), torch.cat([z, z])):
        torch.testing.assert_close(principal(other).axes, principal(z).axes, rtol=0, atol=1e-12)


def test_latents_of_two_numbers_are_the_map() -> None:
    z = latents(20, 2)
    plane = principal(z)
    assert plane.explained is None
    assert torch.equal(plane.points(z), z.double())
    assert torch.equal(plane.latents(z.double()), z)


def test_a_point_of_the_plane_is_the_latent_that_lies_there() -> None:
    z = latents(30, 5)
    plane = principal(z)
    points = torch.tensor([[0.0, 0], [1, -2], [3, 4]], dtype=torch.float64)
    torch.testing.assert_close(plane.points(plane.latents(points)), points, rtol=0, atol=1e-5)
    torch.testing.assert_close(plane.latents(points)[0], z.mean(0), rtol=0, atol=1e-5)


def test_the_lattice_reads_like_a_picture() -> None:
    corners = torch.tensor([[0.0, 10], [4, 12]], dtype=torch.float64)
    assert lattice(corners, 2).tolist() == [[1, 11.5], [3, 11.5], [1, 10.5], [3, 10.5]]
