"""A loaded run: the same images as the command's, its options, and likelihoods of images in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffpipe
from diffpipe.__main__ import main
from diffpipe.data.index import shard_set
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from tests.support.runs import indexed_shards


def test_images_are_those_of_the_command(tiny_run: Path, tmp_path: Path) -> None:
    words = ["sample", str(tiny_run), str(tmp_path), "--n", "3", "--seed", "5", "--steps", "2"]
    assert main(words) == 0
    images = diffpipe.load(tiny_run).sample(3, seed=5, steps=2)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{i:06d}.png")), image[0].numpy())


def test_options_go_to_the_sampler_and_are_refused_where_there_are_none(tiny_run: Path) -> None:
    run = diffpipe.load(tiny_run)
    torch.testing.assert_close(run.sample(2, steps=2), run.sample(2, steps=2), rtol=0, atol=0)
    assert not torch.equal(run.sample(2, steps=2), run.sample(2, steps=2, seed=1))
    assert run._with(kind="ancestral", steps=2).experiment.stage.sampler.model_dump()["kind"] == "ancestral"
    assert run.config.stage.sampler.model_dump()["steps"] == 3
    with pytest.raises(UserError, match="--temperature is for the sampling of a flow"):
        run.sample(2, temperature=0.5)
    with pytest.raises(UserError, match="reconstructs no images"):
        run.reconstruct(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


def test_likelihoods_of_images_in_memory_are_those_of_shards(tiny_run: Path, tmp_path: Path) -> None:
    run, shards = diffpipe.load(tiny_run), indexed_shards(tmp_path, 4)
    images = sequential_reader.images(shard_set.load(shards), range(4), 8, 1)
    of_shards = run.nll(shards, n=4, steps=2)
    in_memory = run.nll(images, steps=2, labels=torch.tensor([0, 1, 2, 0]))
    assert torch.equal(in_memory.likelihoods.values["score"], of_shards.likelihoods.values["score"])
    assert in_memory.result.scores == of_shards.result.scores
    assert in_memory.result.protocol["reference"]["shape"] == [4, 1, 8, 8]
    with pytest.raises(UserError, match="give the labels of the images"):
        run.nll(images, steps=2)
    with pytest.raises(UserError, match="n is 1; a standard error needs at least 2"):
        run.nll(images[:1], steps=2, labels=torch.tensor([0]))
