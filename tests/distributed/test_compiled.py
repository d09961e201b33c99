"""Compiled blocks: what they compute, when they are recompiled, and that a compiled model's average moves.

In processes of their own, where signatures are not checked at run time: the compiler sees the code that users run.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from diffpipe.interfaces import ImageShape
from diffpipe.nn.tarflow import TarFlow, TarFlowConfig
from diffpipe.resolution import square
from diffpipe.stages.flow import FlowConfig
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train import loop
from diffpipe.train.blocks import blocks, checkpoint_activations, compile_blocks, uncompiled
from diffpipe.train.checkpoint.asynchronous import AsyncCheckpointer
from diffpipe.train.checkpoint.config import CheckpointConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.gloo_processes import run
from tests.support.run_states import run_state
from tests.support.toy_stages import batch

TARFLOW = {"kind": "tarflow", "patch": 2, "width": 4, "blocks": 2, "layers": 1, "heads": 2}


class Square(nn.Module):
    """A layer with a second derivative."""

    def __init__(self, width: int):
        super().__init__()
        self.linear, self.dropout = nn.Linear(width, width), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(x).square())


class Widths(nn.Module):
    """A layer of each width."""

    def __init__(self, widths: list[int]):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Square(width) for width in widths)

    def blocks(self) -> list[nn.Module]:
        return [*self.layers]

    def forward(self, x: Tensor) -> Tensor:
        return sum(layer(x[:, : layer.linear.in_features]).sum(1) for layer in self.layers)  # pyright: ignore


def graphs() -> int:
    """The number of graphs compiled since the last call."""
    from torch._dynamo.utils import counters

    return counters.pop("stats", {}).get("unique_graphs", 0)


def grads(net: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return [*torch.autograd.grad(net(x).sum(), [*net.parameters()])]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def count() -> dict[str, Any]:
    """Compile a dozen shapes, twice each, in two networks: the number of graphs, and whether the results are right."""
    import torch._dynamo

    widths, x, results = [*range(1, 13)] * 2, torch.randn(3, 12), {}
    results["limit"] = torch._dynamo.config.recompile_limit
    nets, plain = [Widths(widths), Widths(widths)], Widths(widths)
    for net in nets:
        compile_blocks(net, backend="eager")
    results["same"] = [same(grads(net, x), grads(plain, x)) for net in (*nets, nets[0])]
    results["graphs"] = graphs()
    with torch.no_grad():
        results["no_grad"] = torch.equal(nets[0].eval()(x), plain.eval()(x))
    results["eval graphs"] = graphs()
    single = Widths([2])
    compile_blocks(single, backend="eager")
    try:
        for n in range(1, 10):
            single(torch.randn(n, 2))
    except Exception as error:  # noqa: BLE001 (a private class of torch's)
        results["too many"] = type(error).__name__, n
    results["names"] = [*nets[0].state_dict()] == [*plain.state_dict()]
    return results


def test_equal_blocks_share_a_graph_and_a_dozen_shapes_do_not_fall_back() -> None:
    (results,) = run(1, count)
    assert results["limit"] < 12
    assert results["same"] == [True, True, True]
    assert results["graphs"] == 2 * 12
    assert results["no_grad"]
    assert results["eval graphs"] == 12
    assert results["too many"] == ("FailOnRecompileLimitHit", 9)
    assert results["names"]


def differentiate_twice() -> list[bool]:
    x, plain, equal = torch.randn(3, 2), Widths([2]).eval(), []
    for recomputed in (False, True):
        net = Widths([2]).eval()
        if recomputed:
            checkpoint_activations(net)
        compile_blocks(net, backend="aot_eager")
        equal.append(same(grads(net, x), grads(plain, x)))
        second = []
        for network in (net, plain):
            at = x.clone().requires_grad_()
            with uncompiled(apply=True):
                (gradient,) = torch.autograd.grad(network(at).sum(), at, create_graph=True)
            second.append([*torch.autograd.grad(gradient.square().sum(), [*network.parameters()])])
        equal.append(same(*second))
    return equal


def test_a_second_derivative_is_taken_of_the_uncompiled_block() -> None:
    assert run(1, differentiate_twice) == [[True, True, True, True]]


def build(runtime: Runtime, compiled: bool) -> Trainer:
    stage = FlowConfig.model_validate({"kind": "flow", "network": TARFLOW}).build(ImageShape(1, square(4), 0))
    train = TrainConfig(steps=9, compile=compiled, activation_checkpointing=compiled)
    return Trainer(stage, runtime, train, OptimizerConfig(lr=0.01), EMAConfig(), seed=5, batch_size=4)


def train(directory: str) -> dict[str, Any]:
    """The state at the start; after two steps, compiled and not; after a third step, uninterrupted and resumed."""

    def step(trainer: Trainer) -> None:
        first = 4 * trainer.step + runtime.rank
        trainer.train_step([batch(range(first, 4 * trainer.step + 4, runtime.world))])

    def state() -> dict[str, Any]:
        return {name: tensor.clone().numpy() for name, tensor in trainer.state().items()}

    quick = mock.patch.object(loop, "compile_blocks", functools.partial(compile_blocks, backend="aot_eager"))
    with Runtime.start("fp32", "cpu") as runtime, quick:
        trainer, plain = build(runtime, True), build(runtime, False)
        results = {"start": state()}
        for _ in range(2):
            step(trainer)
            step(plain)
        results |= {"later": state(), "plain": {name: tensor.numpy() for name, tensor in plain.state().items()}}
        with AsyncCheckpointer(Path(directory), CheckpointConfig(), runtime.comm.new_group()) as checkpointer:
            checkpointer.save(trainer.state(), run_state(2))
        step(trainer)
        results["uninterrupted"] = state()
        newest, _ = checkpoints.newest_valid(Path(directory), runtime.comm)
        assert newest is not None
        checkpoints.load(newest, trainer.state(), runtime.comm)
        trainer.step = 2
        step(trainer)
        return results | {"resumed": state(), "graphs": graphs()}


@pytest.mark.parametrize("world", [1, 2])
def test_a_compiled_models_average_moves_and_resumes_exactly(world: int, tmp_path: Path) -> None:
    for part in run(world, train, str(tmp_path)):
        start, later, plain = part["start"], part["later"], part["plain"]
        assert part["graphs"] == 1
        averages = [name for name in later if name.startswith("ema.") and name.endswith(".weight")]
        assert averages
        for name in averages:
            assert (later[name] != start[name]).any(), name
        assert later.keys() == plain.keys()
        for name, array in plain.items():
            assert later[name] == pytest.approx(array, abs=1e-5), name
        for name, array in part["uninterrupted"].items():
            assert part["resumed"][name].tobytes() == array.tobytes(), name


def shard() -> list[float]:
    """The largest deviation of each gradient of a recomputed, compiled and sharded network from the plain one's."""
    with Runtime.start("fp32", "cpu"):
        mesh, x, gradients = init_device_mesh("cpu", (2,)), torch.randn(2, 1, 4, 4), []
        for compiled in (False, True):
            torch.manual_seed(0)
            net = TarFlow(TarFlowConfig.model_validate(TARFLOW), 1, square(4))
            for p in net.parameters():
                p.data.add_(0.1 * torch.randn_like(p))
            if compiled:
                checkpoint_activations(net)
                compile_blocks(net, backend="aot_eager")
                for part in (*blocks(net), net):
                    fully_shard(part, mesh=mesh)
            for _ in range(2):  # gradients add up: the second pass goes through what the first has gathered
                z, log_det = net(x)
                (z.square().sum() - log_det.sum()).backward()
            gradients.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in net.parameters()])
        return [float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)]


def test_compiled_blocks_can_be_sharded() -> None:
    for part in run(2, shard):
        assert max(part) < 1e-5
