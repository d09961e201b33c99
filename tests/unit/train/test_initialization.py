"""The networks of a new run: drawn from the seed alone, then set from data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.errors import UserError
from diffpipe.train.distributed import Communicator
from diffpipe.train.initialization import initial_networks, start_from_data
from diffpipe.train.runtime import Runtime
from tests.support.toy_stages import Duel


def weights(nets: dict[str, nn.Module]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for net in nets.values() for p in net.parameters()])


def test_fresh_networks_depend_on_the_seed_alone(runtime: Runtime) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(initial_networks(Duel(), runtime, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(weights(initial_networks(Duel(), runtime, seed=3)), first)
    assert not torch.equal(weights(initial_networks(Duel(), runtime, seed=4)), first)


def test_a_start_changes_the_networks_in_place_and_draws_from_the_seed(runtime: Runtime) -> None:
    def start(nets) -> None:
        assert not torch.is_grad_enabled()
        nets["first"].weight.fill_(float(torch.rand(())))

    results = []
    for seed in (3, 3, 4):
        nets = initial_networks(Duel(), runtime, seed=0)
        start_from_data(nets, start, seed, Communicator())
        results.append(nets["first"].get_parameter("weight").item())
    assert results[0] == results[1] != results[2]


def test_an_error_in_a_start_is_the_runs_error(runtime: Runtime) -> None:
    def start(nets) -> None:
        raise UserError("the first samples are all bad")

    with pytest.raises(UserError, match="the first samples are all bad"):
        start_from_data(initial_networks(Duel(), runtime, seed=0), start, 0, Communicator())
