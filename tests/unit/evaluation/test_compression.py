"""Compressed images: blocks that do not depend on one another, and a decoder that is never silently wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from diffpipe.data.index import shard_set
from diffpipe.errors import UserError
from diffpipe.evaluation.compression import (
    coder_of,
    compress_images,
    decompress_images,
    group_sizes,
    strided,
)
from diffpipe.evaluation.image_sources import ShardImages
from diffpipe.experiment.run import Run
from diffpipe.train.runtime import Runtime
from tests.support.runs import Noise, indexed_shards, opened_run
from tests.support.stage_cases import CASES, SHAPE

FILE = Path("images.dpi")


def untrained(case: str, home: Path, *words: str) -> Run:
    """A run as it is before any training."""
    torch.manual_seed(0)
    stage = CASES[case].experiment(*words).stage.build(SHAPE, {})
    run = opened_run(stage, home, *words, case=case, classes=10)
    return dataclasses.replace(run, nets={name: net.eval() for name, net in run.nets.items()})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return untrained("vae", tmp_path / "run")


@pytest.fixture
def images(tmp_path: Path) -> ShardImages:
    return ShardImages(shard_set.load(indexed_shards(tmp_path / "shards", 7, 6)), 1, None)


@pytest.mark.parametrize(("block", "batch"), [(256, 32), (5, 2), (1, 1)])
def test_images_come_back_whatever_the_blocks(
    run: Run, images: ShardImages, runtime: Runtime, block: int, batch: int
) -> None:
    compression = compress_images(run, images, runtime, block=block, batch=batch, verify=True)
    header = compression.file.header
    assert [part.n for part in header.blocks] == ([13] if block > 13 else [1] * 13 if block == 1 else [4, 4, 5])
    assert max(max(part.groups) for part in header.blocks) <= batch
    assert torch.equal(decompress_images(run, compression.file, runtime, FILE), images.images(range(13)))
    assert header.keys == images.keys()
    assert header.labels == images.labels(range(13)).tolist()
    assert compression.bits_per_dim == sum(32 * len(message) for message in compression.file.messages) / (13 * 64)


def test_the_same_images_give_the_same_messages(run: Run, images: ShardImages, runtime: Runtime) -> None:
    first, second = (compress_images(run, images, runtime, block=5).file for _ in range(2))
    assert first.header == second.header
    other = compress_images(run, images, runtime, block=5, seed=1).file
    assert other.header.blocks != first.header.blocks


@pytest.mark.parametrize(
    ("case", "network"), [("vae", "encoder"), ("vae", "decoder"), ("flow", "flow"), ("tarflow", "flow")]
)
@pytest.mark.parametrize("change", [1e-3, 0.3])
def test_networks_that_compute_other_bits_are_noticed(
    tmp_path: Path, images: ShardImages, runtime: Runtime, case: str, network: str, change: float
) -> None:
    """By a large change, the encoder's posterior does not reach the latents that the message has."""
    run = untrained(case, tmp_path / "run")
    file = compress_images(run, images, runtime, block=5).file
    with torch.no_grad():
        for parameter in run.nets[network].parameters():
            parameter.add_(change)
    with pytest.raises(UserError, match=r"images\.dpi: block 0 decodes to other pixels than were compressed"):
        decompress_images(run, file, runtime, FILE)


def test_a_chain_of_fewer_steps_is_decoded_by_a_run_of_any_other(
    tmp_path: Path, images: ShardImages, runtime: Runtime
) -> None:
    run = untrained("ddpm", tmp_path / "run", "stage.schedule.steps=8", "stage.sampler.steps=2")
    file = compress_images(strided(run, 4), images, runtime, block=5).file
    assert file.header.steps == 4
    for reader in (run, strided(run, 4), strided(run, 6)):
        assert torch.equal(decompress_images(reader, file, runtime, FILE), images.images(range(13)))
    whole = compress_images(run, images, runtime, block=5).file
    assert whole.header.steps is None
    assert torch.equal(decompress_images(strided(run, 4), whole, runtime, FILE), images.images(range(13)))
    with pytest.raises(UserError, match=r"steps is for a diffusion, and .* is of stage\.kind vae"):
        strided(untrained("vae", tmp_path / "vae"), 4)
    for steps in (1, 9):
        with pytest.raises(UserError, match=f"the bound's steps are {steps}, but the schedule has 8"):
            strided(run, steps)


def test_a_stage_without_a_coder_is_refused(tmp_path: Path) -> None:
    run = opened_run(Noise(), tmp_path, case="gan")
    with pytest.raises(UserError, match=r"a run of stage\.kind gan cannot compress: it has no likelihood of images"):
        coder_of(run)
    codes = CASES["autoregressive, codes"].stage()
    with pytest.raises(UserError, match=r"models the codes of .*, and their probability is no likelihood of images"):
        coder_of(opened_run(codes, tmp_path, case="autoregressive, codes"))


@pytest.mark.parametrize("n", [1, 2, 5, 100, 333])
def test_groups_grow_with_the_bits_before_them(n: int) -> None:
    for before in (2, 6):
        sizes = group_sizes(n, 32, images_before=before)
        assert sum(sizes) == n
        assert all(size <= max(1, sum(sizes[:i]) // before) and size <= 32 for i, size in enumerate(sizes))
    whole = group_sizes(n, 32, images_before=0)
    assert sum(whole) == n
    assert set(whole[:-1]) <= {32}


@pytest.mark.parametrize(("block", "batch"), [(0, 1), (-1, 1), (1, 0)])
def test_sizes_below_one_are_refused(run: Run, images: ShardImages, runtime: Runtime, block: int, batch: int) -> None:
    with pytest.raises(UserError, match=r"is (0|-1); give 1 or more images"):
        compress_images(run, images, runtime, block=block, batch=batch)
