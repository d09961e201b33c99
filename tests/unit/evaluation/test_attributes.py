"""Moving along a direction between classes: with an invertible linear stage the truth is known, pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader import sequential_reader
from diffpipe.evaluation.attributes import STRENGTHS, along, direction, move, share_nearer
from diffpipe.evaluation.latent_space import LatentSpace, drawn_of_class, labelled_shards
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime
from tests.support.tars import png, write_tar
from tests.support.toy_stages import Toy

MATRIX = torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 1], [0, 0, 3, 1], [1, 0, 0, 1]], dtype=torch.float64)


class Linear(Toy):
    """z = M x + 5 of the four pixels x, and back."""

    normal_latents = True

    def encode_latents(
        self, nets: Mapping[str, nn.Module], images: Tensor, labels: Tensor | None, rng: KeyedRNG
    ) -> Tensor:
        return (images.double().flatten(1) @ MATRIX.T + 5).float()

    def decode_latents(self, nets: Mapping[str, nn.Module], z: Tensor, labels: Tensor | None) -> Tensor:
        x = (z.double() - 5) @ torch.linalg.inv(MATRIX).T
        return rearrange(x.round().clamp(0, 255).to(torch.uint8), "b (h w) -> b 1 h w", h=2)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """30 dark images of class 0 and 30 bright ones of class 2, whose mean pixels differ by (80, 40, 80, 100)."""
    members: dict[str, bytes] = {}
    for i in range(60):
        shift = np.array([[80, 40], [80, 100]]) * (i % 2)
        # the pixels of both classes have the same spread about their means
        spread = np.random.default_rng(i // 2).integers(-9, 10, (2, 2))
        members[f"{i:03d}.png"] = png((70 + shift + spread).astype(np.uint8))
        members[f"{i:03d}.cls"] = str(2 * (i % 2)).encode()
    write_tar(tmp_path / "shard.tar", members)
    write_index(tmp_path)
    return tmp_path


def test_strength_1_takes_the_mean_of_one_class_to_the_mean_of_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    z_from = torch.randn(40, 3, 2, 2, generator=generator, dtype=torch.float64)
    z_to = 3 + 2 * torch.randn(25, 3, 2, 2, generator=generator, dtype=torch.float64)
    moved = along(z_from, direction(z_from, z_to), [-1.0, 0.0, 0.5, 1.0])
    expected = [2 * z_from.mean(0) - z_to.mean(0), z_from.mean(0), (z_from.mean(0) + z_to.mean(0)) / 2, z_to.mean(0)]
    torch.testing.assert_close(moved.mean(0), torch.stack(expected), rtol=0, atol=1e-14)
    # every image keeps what is its own
    torch.testing.assert_close(moved[:, 3] - moved[:, 3].mean(0), z_from - z_from.mean(0), rtol=0, atol=1e-13)


def test_the_share_that_is_nearer_counts_by_the_euclidean_distance() -> None:
    z_from, z_to = torch.tensor([[-1.0, 0], [1, 0]]), torch.tensor([[10.0, 3], [10, -3]])
    z = torch.tensor([[4.9, 100], [5.1, -100], [5.1, 0], [20, 0]])
    assert share_nearer(z, z_from, z_to) == 0.75


def test_images_of_a_linear_stage_move_by_the_difference_of_the_mean_images(home: Path) -> None:
    shards = labelled_shards(str(home))
    places = drawn_of_class(shards, (0, 2), 500, seed=0)
    with Runtime.start("fp32", "cpu") as runtime:
        space = LatentSpace(Linear(), {}, ImageShape(1, square(2)), runtime)
        found = move(space, shards, places[0], places[2])
    assert found.images.shape == (30, len(STRENGTHS), 1, 2, 2)
    dark = sequential_reader.images(shards, places[0], square(2), 1).float()
    shift = torch.tensor([[80.0, 40], [80, 100]])
    for k, strength in enumerate(STRENGTHS):
        torch.testing.assert_close(found.images[:, k].float(), dark + strength * shift, rtol=0, atol=0)
    # the way is short of the middle, at it, and past it; the spread is an eighth of the way at most
    shares = dict(zip(STRENGTHS, found.shares, strict=True))
    assert [shares[s] for s in (-0.5, 0.0, 0.25)] == [0, 0, 0]
    assert [shares[s] for s in (0.75, 1.0, 1.5)] == [1, 1, 1]
    assert 0.2 < shares[0.5] < 0.8
    assert found.real == (0, 1)
