"""Hashes of images: the halves of a set depend on its images alone."""

from __future__ import annotations

import torch

from diffpipe.metrics.image_hashes import image_hashes, split_by_hash


def pictures(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_hash_is_of_pixels_and_shape() -> None:
    x = pictures(5)
    hashes = image_hashes(x)
    assert hashes.dtype == torch.int64
    assert len(set(hashes.tolist())) == 5
    assert torch.equal(image_hashes(x.flip(0)), hashes.flip(0))
    assert torch.equal(image_hashes(x.contiguous(memory_format=torch.channels_last)), hashes)
    assert not torch.equal(image_hashes(x.reshape(5, 3, 5, 4)), hashes)


def test_the_same_images_have_the_same_halves_in_any_order() -> None:
    hashes = image_hashes(pictures(101))
    halves = [hashes[half] for half in split_by_hash(hashes)]
    assert [len(half) for half in halves] == [51, 50]
    assert sorted(torch.cat(halves).tolist()) == sorted(hashes.tolist())
    for seed in range(3):
        shuffled = hashes[torch.randperm(101, generator=torch.Generator().manual_seed(seed))]
        for half, expected in zip(split_by_hash(shuffled), halves, strict=True):
            assert torch.equal(shuffled[half], expected)


def test_copies_of_an_image_are_in_one_half() -> None:
    hashes = image_hashes(pictures(6)).repeat(2)
    first, second = (set(hashes[half].tolist()) for half in split_by_hash(hashes))
    assert not first & second
