"""The chains of a run: their rows, their columns and the words of their sampler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffpipe.diffusion.trajectory import ChainState
from diffpipe.errors import UserError
from diffpipe.evaluation.trajectory import trajectory
from diffpipe.train.runtime import Runtime
from tests.support.runs import Noise, opened_run


class Chain(Noise):
    """Its states are the label's number, at halved noise each, above an x_0 of twice that."""

    def trajectory(self, nets: object, rng: object, labels: Tensor | None, most: int) -> list[ChainState]:
        assert labels is not None
        pixels = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8)
        return [ChainState(8 / 2**i, pixels, 2 * pixels) for i in range(most)]


def test_rows_are_images_and_columns_states(tmp_path: Path, runtime: Runtime) -> None:
    names = "data.class_names=[Shirt, Bag, Boot]"
    run = opened_run(Chain(), tmp_path, names, "stage.sampler={kind: ddim, steps: 7, eta: 0.5, guidance: 2}")
    chains = trajectory(run, runtime, n=4, columns=3, seed=0, label=None)
    assert chains.x_t.shape == chains.x0.shape == (4, 3, 1, 8, 8)
    assert chains.x_t[:, 1, 0, 0, 0].tolist() == [0, 1, 2, 0]
    assert chains.x0[:, 2, 0, 0, 0].tolist() == [0, 2, 4, 0]
    assert chains.ratios == [8, 4, 2]
    assert chains.rows == ["0, Shirt", "1, Bag", "2, Boot", "3, Shirt"]
    assert chains.sampler == "ddim, 7 steps, eta 0.5, guidance 2.0"


def test_a_stage_without_a_chain_and_a_single_column_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError, match=r"is of stage\.kind gan, which generates without a chain of noise levels"):
        trajectory(opened_run(Noise(), tmp_path, case="gan"), runtime, n=1, columns=3, seed=0, label=None)
    with pytest.raises(UserError, match="a trajectory in 1 column; give 2 or more"):
        trajectory(opened_run(Chain(), tmp_path), runtime, n=1, columns=1, seed=0, label=None)
