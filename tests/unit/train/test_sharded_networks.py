"""Networks without values: those that need values are built with them, and the rest take those of whole networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffpipe.train.runtime import Runtime
from diffpipe.train.sharded_networks import fill, tensors, unsharded_copies, without_values
from tests.support.stage_cases import CASES
from tests.support.toy_stages import OneBlock, Toy


class Reads(nn.Linear):
    """A network whose initialization reads a value that it has drawn."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.norm = self.weight.norm().item()


class Unregistered(nn.Linear):
    """A network with a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.table = torch.arange(3)


class Blocks(Toy):
    def networks(self) -> dict[str, nn.Module]:
        return {"point": OneBlock()}


@pytest.mark.parametrize("network", [Reads, Unregistered])
def test_a_network_that_needs_values_is_built_with_them(network: type[nn.Module]) -> None:
    class Stage(Toy):
        def networks(self) -> dict[str, nn.Module]:
            return {"point": network()}

    (net,) = without_values(Stage()).values()
    assert not next(net.parameters()).is_meta
    (net,) = without_values(Blocks()).values()
    assert next(net.parameters()).is_meta


def test_networks_are_filled_with_every_tensor_of_the_whole_ones(runtime: Runtime) -> None:
    stage = CASES["flow"].stage()
    whole, nets = stage.networks(), without_values(stage)
    fill(nets, whole, runtime)
    assert nets.keys() == whole.keys()
    for name, net in nets.items():
        for (key, tensor), (_, expected) in zip(tensors(net), tensors(whole[name]), strict=True):
            assert torch.equal(tensor, expected), key


def test_copies_are_frozen_and_have_the_tensors_of_the_networks(runtime: Runtime) -> None:
    stage = CASES["flow"].stage()
    nets = stage.networks()
    for name, copy in unsharded_copies(stage, nets, runtime).items():
        assert not copy.training
        for (key, tensor), (_, expected) in zip(tensors(copy), tensors(nets[name]), strict=True):
            assert torch.equal(tensor, expected), key
            assert tensor is not expected
            assert not tensor.requires_grad
