"""Declared blocks, over every network of every stage, and their recomputation: the same gradients from less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffpipe.config import load_config
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import ImageShape
from diffpipe.nn.discriminator import Discriminator, DiscriminatorConfig
from diffpipe.nn.unet import UNet, UNetConfig
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.train.blocks import blocks, checkpoint_activations, require_blocks
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.stage_cases import CASES, FASHION, real_batch
from tests.support.toy_stages import Toy

CIFAR = FASHION.parent.parent / "configs" / "cifar10"
UNET = UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), groups=4, dropout=0.3)


@pytest.fixture(autouse=True)
def _keep_generator() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


class Listed(nn.Linear):
    """A network with a list that happens to have the name of the method."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.blocks = nn.ModuleList([nn.Linear(1, 1)])


class Empty(nn.Linear):
    """A network that declares an empty list."""

    def blocks(self) -> list[nn.Module]:
        return []


@pytest.mark.parametrize("net", [nn.Linear(1, 1), Listed(), Empty(1, 1)])
@pytest.mark.parametrize("option", ["activation_checkpointing", "compile"])
def test_an_option_that_finds_no_block_is_refused(net: nn.Module, option: str) -> None:
    class Stage(Toy):
        def networks(self) -> dict[str, nn.Module]:
            return {"point": net}

    assert blocks(net) == []
    message = rf"train\.{option} works on .* the network point \({type(net).__name__}\) declares none; give it a method"
    config = TrainConfig.model_validate({"steps": 1, option: True})
    with Runtime.start("fp32", "cpu") as runtime, pytest.raises(UserError, match=message):
        Trainer(Stage(), runtime, config, OptimizerConfig(), EMAConfig(), seed=0, batch_size=8)


def test_a_network_without_parameters_needs_no_block() -> None:
    require_blocks({"scale": nn.Identity()}, "train.compile")


@pytest.mark.parametrize("name", CASES)
def test_each_block_of_a_stage_is_called_as_a_module_and_shares_no_parameter(name: str) -> None:
    stage, batch = CASES[name].stage(), real_batch(4)
    nets = stage.networks()
    seen: set[nn.Module] = set()
    for net in nets.values():
        parameters = [p for block in blocks(net) for p in block.parameters()]
        assert blocks(net) or not any(True for _ in net.parameters())
        assert len(parameters) == len(set(parameters))
        for block in blocks(net):
            block.register_forward_hook(lambda module, args, output: seen.add(module))
    for phase in stage.phases():
        stage.loss(phase, nets, batch, KeyedRNG(0, batch.positions))
    assert seen == {block for net in nets.values() for block in blocks(net)}


@pytest.mark.parametrize("name", sorted(path.stem for path in CIFAR.glob("*.yaml") if path.stem != "latent_ddpm"))
def test_blocks_hold_most_of_a_network(name: str) -> None:
    """Without latent_ddpm, whose stage needs a trained codec; it has the UNet of ddpm."""
    stage = load_config(Experiment, CIFAR / f"{name}.yaml").stage.build(
        ImageShape(channels=3, resolution=square(32), classes=10)
    )
    with torch.device("meta"):
        nets = stage.networks()
    for net in nets.values():
        inside = sum(p.numel() for block in blocks(net) for p in block.parameters())
        assert inside > 0.7 * sum(p.numel() for p in net.parameters())


def initialized(build: Callable[[], nn.Module]) -> nn.Module:
    """The same weights at every call; none is zero, so that every parameter takes part in every gradient."""
    torch.manual_seed(0)
    net = build()
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    return net


def unet() -> nn.Module:
    return initialized(lambda: UNet(UNET, 1, square(8), classes=3))


INPUTS = (torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 2]))


def gradients(net: nn.Module, *, frozen: bool = False) -> list[Tensor | None]:
    """The gradients of the squared output by the input and by each parameter, at one state of the global RNG."""
    net.requires_grad_(not frozen)
    x = INPUTS[0].clone().requires_grad_()
    torch.manual_seed(1)
    loss = net(x, *INPUTS[1:]).square().sum()
    torch.rand(5)  # other draws in between
    loss.backward()
    return [x.grad, *(p.grad for p in net.parameters())]


def assert_same(got: list[Any], wanted: list[Any]) -> None:
    for g, w in zip(got, wanted, strict=True):
        assert (g is None) == (w is None)
        assert g is None or torch.equal(g, w)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_gradients_are_the_same_bits_under_dropout(frozen: bool, dtype: torch.dtype) -> None:
    net = unet()
    checkpoint_activations(net)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        got, wanted = gradients(net, frozen=frozen), gradients(unet(), frozen=frozen)
    assert_same(got, wanted)
    assert got[0] is not None
    assert got[0].abs().sum() > 0


def test_a_gradient_of_a_gradient_is_the_same_bits() -> None:
    def penalty(net: nn.Module) -> list[Tensor | None]:
        x = INPUTS[0].clone().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            logits = net(x, INPUTS[2])
            (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            (gradient.square().sum() + logits.square().sum()).backward()
        return [logits, gradient, *(p.grad for p in net.parameters())]

    def build() -> nn.Module:
        return initialized(
            lambda: Discriminator(DiscriminatorConfig(channels=8, channel_mult=(1, 2)), 1, square(8), classes=3)
        )

    net = build()
    checkpoint_activations(net)
    assert_same(penalty(net), penalty(build()))


def test_only_inputs_and_outputs_of_blocks_are_kept() -> None:
    def kept(net: nn.Module) -> int:
        """Bytes of the tensors that the graph holds between forward and backward, without the parameters."""
        storages: dict[int, int] = {}
        held: list[Tensor] = []  # so that no address is reused

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor)
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(*INPUTS)
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        return sum(size for at, size in storages.items() if at not in own)

    def entering(net: nn.Module) -> int:
        sizes = []
        for block in blocks(net):
            block.register_forward_hook(lambda _, args, out: sizes.extend(t.nbytes for t in (*args, out)))
        net(*INPUTS)
        return sum(sizes)

    net = unet()
    checkpoint_activations(net)
    assert kept(net) < 0.5 * kept(unet())
    assert kept(net) < entering(unet())


def test_names_stay_and_a_copy_is_independent() -> None:
    net, plain = unet(), unet()
    checkpoint_activations(net)
    assert [*net.state_dict()] == [*plain.state_dict()]
    assert [name for name, _ in net.named_modules()] == [name for name, _ in plain.named_modules()]
    twin = copy.deepcopy(net)
    for p in net.parameters():
        p.data.zero_()
    assert_same(gradients(twin), gradients(plain))
