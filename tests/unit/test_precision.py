"""The precision of float32 products, read where convolutions and matrix products run: no GPU is needed for that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffpipe.interfaces import Phase
from diffpipe.precision import float32_products, set_float32_products
from diffpipe.rng import KeyedRNG
from diffpipe.stages import gan_losses
from diffpipe.stages.gan_losses import PENALTY
from diffpipe.stages.perceptual import perceptual_distance
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime
from tests.support.stage_cases import CASES, SHAPE, real_batch

PRODUCTS = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"}
FLOWS = ["flow", "flow, variational", "tarflow"]
CODEBOOKS = ["vq", "vq, patch", "vq, scales", "autoregressive, codes", "autoregressive, scales"]


def precisions() -> set[str]:
    """The precision that torch would compute convolutions and matrix products with on a GPU."""
    backends: Any = torch.backends
    return {backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision, backends.cuda.matmul.fp32_precision}


class RecordedPrecisions(TorchDispatchMode):
    """The precisions at the time of each product within it, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition("::")[2].partition(".")[0] in PRODUCTS:
            self.seen |= precisions()
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _ieee() -> Iterator[None]:
    """torch starts with TF32 for convolutions: a test that is its process's first would find that."""
    set_float32_products(tf32=False)
    yield
    set_float32_products(tf32=False)


@pytest.mark.parametrize("outer", [True, False])
def test_regions_nest_and_end_as_they_began(outer: bool) -> None:
    set_float32_products(tf32=outer)
    expected = {"tf32"} if outer else {"ieee"}
    with float32_products(tf32=False):
        assert precisions() == {"ieee"}
        with float32_products(tf32=True):
            assert precisions() == {"tf32"}
        assert precisions() == {"ieee"}
    assert precisions() == expected
    with pytest.raises(KeyError), float32_products(tf32=not outer):
        raise KeyError
    assert precisions() == expected


@pytest.mark.parametrize("tf32", [True, False])
def test_torchs_older_switches_agree(tf32: bool) -> None:
    """torch.compile reads them; torch raises where they disagree with the newer ones."""
    with float32_products(tf32=tf32):
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert not torch.backends.cudnn.allow_tf32


def trainer(name: str, runtime: Runtime, tf32: bool) -> Trainer:
    config = TrainConfig(steps=10, tf32=tf32)
    return Trainer(CASES[name].stage(), runtime, config, OptimizerConfig(), EMAConfig(), seed=0, batch_size=4)


def seen_in(t: Trainer, phase: Phase) -> set[str]:
    with RecordedPrecisions() as recorded:
        t._update(phase, [real_batch(4)], 1 / 4)
    assert recorded.seen
    return recorded.seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_training_computes_in_ieee_float32_by_default(name: str, precision: Any) -> None:
    set_float32_products(tf32=True)  # as torch's default for convolutions, or a launcher's option, may leave it
    with Runtime.start(precision, "cpu") as runtime:
        assert precisions() == {"ieee"}
        t = trainer(name, runtime, tf32=False)
        set_float32_products(tf32=True)
        assert all(seen_in(t, phase) == {"ieee"} for phase in t.stage.phases())


@pytest.mark.parametrize("name", CASES)
def test_what_must_be_exact_stays_so_where_training_may_use_tf32(name: str, runtime: Runtime) -> None:
    t = trainer(name, runtime, tf32=True)
    for phase in t.stage.phases():
        seen = seen_in(t, phase)
        if name in FLOWS:
            assert seen == {"ieee"}
        elif phase.penalizes:
            assert "ieee" in seen  # the generator's forward pass may use TF32
        elif name in CODEBOOKS:
            assert seen == {"ieee", "tf32"}  # the search for the nearest code is exact
        else:
            assert seen == {"tf32"}
    assert precisions() == {"ieee"}


@pytest.mark.parametrize("name", ["gan", "adversarial"])
def test_gradient_penalties_and_their_backward_pass_are_exact(
    name: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = trainer(name, runtime, tf32=True)
    recorded = RecordedPrecisions()
    squared_gradient = gan_losses.squared_gradient

    def forward_of_penalty(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with recorded:
            return squared_gradient(logits, x)

    monkeypatch.setattr(gan_losses, "squared_gradient", forward_of_penalty)
    optimizer = t.optimizers["discriminator",]
    through = optimizer.backward

    def backward_of_penalty(loss: torch.Tensor) -> None:
        with recorded:
            through(loss)

    monkeypatch.setattr(optimizer, "backward", backward_of_penalty)
    (phase,) = (phase for phase in t.stage.phases() if phase.name == PENALTY)
    t._update(phase, [real_batch(4)], 1 / 4)
    assert recorded.seen == {"ieee"}


def test_perceptual_distances_are_exact_forward_and_backward(runtime: Runtime) -> None:
    convolution = torch.nn.Conv2d(3, 4, 3)
    x, y = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8, requires_grad=True)
    with RecordedPrecisions() as recorded, float32_products(tf32=True):
        perceptual_distance(lambda images: [convolution(images)], x, y)
    assert recorded.seen == {"ieee"}
    config = CASES["latent_vae"].experiment("stage.perceptual={weight: 1}").stage
    phases = config.build(SHAPE, {"features": lambda images: [images]}).phases()
    assert [phase.exact for phase in phases] == [True]


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_and_its_inverse_are_exact(name: str, runtime: Runtime) -> None:
    stage: Any = CASES[name].stage()
    nets, batch = {key: net.eval() for key, net in stage.networks().items()}, real_batch(2)
    rng = KeyedRNG(0, batch.positions)
    with RecordedPrecisions() as recorded, float32_products(tf32=True):
        z = stage.encode_latents(nets, batch.images, batch.labels, rng)
        stage.decode_latents(nets, z, batch.labels)
        stage.generate(nets, rng, batch.labels)
        stage.score(nets, batch, rng)
    assert recorded.seen == {"ieee"}


def test_networks_are_evaluated_in_ieee_float32(runtime: Runtime) -> None:
    with float32_products(tf32=True), runtime.autocast():
        assert precisions() == {"ieee"}
