"""The bytes of activations per sample: by hand for a small network, and without a trace in the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from diffpipe.interfaces import Batch, Loss, Phase
from diffpipe.rng import KeyedRNG
from diffpipe.train.activation_memory import TooSlowError, activation_bytes, activation_bytes_of
from diffpipe.train.runtime import Runtime
from tests.support.toy_stages import Duel, batch


class Wide:
    """Two linear layers around a sigmoid, of which autograd keeps the input, the sigmoid's output and the difference.

    The batch norm has buffers that a forward pass changes, and the dropout draws random numbers.
    """

    width = 100

    def networks(self) -> dict[str, nn.Module]:
        layers = [nn.Linear(16, self.width), nn.Sigmoid(), nn.Linear(self.width, 1)]
        return {"net": nn.Sequential(*layers), "other": nn.Sequential(nn.BatchNorm1d(16), nn.Dropout())}

    def phases(self) -> Sequence[Phase]:
        return (Phase("fit", trains=("net",)), Phase("small", trains=("other",)))

    def loss(self, phase: Phase, nets: Mapping[str, nn.Module], batch: Batch, rng: KeyedRNG) -> Loss:
        x = batch.images.float().flatten(1)
        y: Tensor = nets["net"](x) if phase.name == "fit" else nets["other"](x.repeat(3, 1))[: len(x)].mean(1, True)
        return Loss(y.square()[:, 0])


def test_it_is_what_autograd_keeps_for_each_sample_of_the_largest_phase(runtime: Runtime) -> None:
    stage = Wide()
    networks = stage.networks()
    before = {name: {key: value.clone() for key, value in net.state_dict().items()} for name, net in networks.items()}
    random = torch.random.get_rng_state()
    # Kept per sample in float32: 16 inputs, 100 outputs of the sigmoid, and the value that is squared.
    assert activation_bytes(stage, networks, lambda n: batch(range(n)), runtime) == 4 * (16 + stage.width + 1)
    for name, net in networks.items():
        assert all(torch.equal(value, before[name][key]) for key, value in net.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_it_ends_where_it_takes_too_long(runtime: Runtime) -> None:
    with pytest.raises(TooSlowError):
        activation_bytes_of(Wide(), Wide().networks(), lambda n: batch(range(n)), runtime, seconds=-1.0)


def test_a_stage_of_several_phases_is_measured(runtime: Runtime) -> None:
    stage = Duel()
    assert activation_bytes(stage, stage.networks(), lambda n: batch(range(n)), runtime) > 0
