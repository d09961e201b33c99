"""The flow stage and Glow: inverses, log-determinants and likelihoods against autograd and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.nn.flow import ActNorm
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.flow import FlowConfig, FlowStage
from tests.support.operator_counts import OperatorCounts
from tests.support.randomized import normal, randomized

GLOW = {"kind": "glow", "levels": 1, "steps": 2, "hidden": 8}
TARFLOW = {"kind": "tarflow", "patch": 2, "width": 16, "blocks": 2, "layers": 1, "heads": 2}
NETWORKS = pytest.mark.parametrize("network", [GLOW, TARFLOW], ids=["glow", "tarflow"])
SHAPE = ImageShape(channels=1, resolution=square(4), classes=3)


def config(**changes: object) -> FlowConfig:
    return FlowConfig.model_validate({"kind": "flow", "network": GLOW, **changes})


def networks(stage: FlowStage, std: float = 0.1) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: randomized(net, std) for name, net in stage.networks().items()}


def pixels(n: int, shape: ImageShape = SHAPE, seed: int = 1) -> Batch:
    size = (n, *shape.chw)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.arange(n) % 3, torch.arange(n), [str(i) for i in range(n)])


def fit(
    stage: FlowStage, batch_at: Callable[[int], Batch], steps: int, lr: float, log_scale: float = 0.0
) -> dict[str, nn.Module]:
    """Adam on fresh batches, the learning rate falling along half a cosine. A first ActNorm may start elsewhere."""
    torch.manual_seed(0)
    nets = stage.networks()
    for name, p in nets["flow"].named_parameters():
        if name == "chains.0.layers.0.log_scale":
            nn.init.constant_(p, log_scale)
    adam = torch.optim.Adam([p for net in nets.values() for p in net.parameters()], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = batch_at(step)
        stage.loss(stage.phases()[0], nets, batch, KeyedRNG(0, batch.positions)).per_sample.mean().backward()
        adam.step()
        adam.zero_grad()
    return {name: net.eval() for name, net in nets.items()}


@pytest.mark.parametrize("kind", ["uniform", "variational", "gaussian"])
def test_after_start_every_act_norm_gives_mean_zero_and_deviation_one(kind: str) -> None:
    """Kingma & Dhariwal 2018, section 3.1, layer after layer: what reaches the second depends on the first."""
    stage = config(network=GLOW | {"levels": 2, "steps": 3}, conditional=True, dequantization={"kind": kind}).build(
        SHAPE
    )
    torch.manual_seed(0)
    nets, batch = stage.networks(), pixels(stage.start_samples)
    assert stage.start_samples == 256
    for name, parameter in nets["flow"].named_parameters():
        if name.endswith("out.weight"):
            torch.nn.init.normal_(parameter, std=0.05)  # couplings that are not the identity
    layers = [layer for layer in nets["flow"].modules() if isinstance(layer, ActNorm)]
    outputs: list[Tensor] = []
    stage.start(nets, batch, KeyedRNG(0, batch.positions))
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    with torch.no_grad():
        stage.loss(stage.phases()[0], nets, batch, KeyedRNG(0, batch.positions))
    assert len(outputs) == len(layers) == 6
    for y in outputs:
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(y.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(y.shape[1]), rtol=0, atol=1e-3)


def test_bad_samples_have_no_part_in_the_start() -> None:
    stage = config(network=GLOW).build(SHAPE)
    torch.manual_seed(0)
    nets, batch = stage.networks(), pixels(20)
    starts = []
    for images in (batch.images, batch.images.index_fill(0, torch.tensor([3]), 255)):
        stage.start(nets, batch._replace(images=images, valid=torch.arange(20) != 3), KeyedRNG(0, batch.positions))
        starts.append([p.clone() for p in nets["flow"].parameters()])
    for one, other in zip(*starts, strict=True):
        assert torch.equal(one, other)
    assert config(network=TARFLOW).build(SHAPE).start_samples == 0


@NETWORKS
def test_likelihoods_are_float32_under_autocast(network: dict[str, object]) -> None:
    stage = config(network=network, dequantization={"kind": "variational"}).build(SHAPE)
    nets, batch = networks(stage, std=0.03), pixels(8)
    full = stage.score(nets, batch, KeyedRNG(0, batch.positions))
    with torch.autocast("cpu", torch.bfloat16):
        half = stage.score(nets, batch, KeyedRNG(0, batch.positions))
    assert half.per_sample.dtype == torch.float32
    assert all(term.dtype == torch.float32 for term in half.terms.values())
    torch.testing.assert_close(half.per_sample, full.per_sample, rtol=0, atol=0.05)


def test_bits_per_dim_of_a_known_density() -> None:
    # A fresh Glow is a rotation: x is standard normal under it, and so is any rotation of x.
    stage = config().build(SHAPE)
    torch.manual_seed(0)
    batch = pixels(16)
    score = stage.score(stage.networks(), batch, KeyedRNG(0, batch.positions))
    words = KeyedRNG(0, batch.positions).bits("dequantization", 16).reshape(16, 1, 4, 4)
    y = batch.images.double() + (words >> 9).double() / 2**23
    density = torch.distributions.Normal(128, 128).log_prob(y)  # in units of pixel values
    expected = -density.sum((1, 2, 3)) / (16 * math.log(2))
    torch.testing.assert_close(score.per_sample.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sum(score.terms.values()), score.per_sample)
    assert (score.unit, score.kind, set(score.terms)) == ("bits/dim", "bound", {"log_det", "prior"})


@pytest.mark.slow
@pytest.mark.parametrize("network", [GLOW, TARFLOW | {"patch": 1}], ids=["glow", "tarflow"])
def test_a_flow_reaches_the_bits_per_dim_of_a_gaussian(network: dict[str, object]) -> None:
    # Pixels 128 + 24 g, g of covariance R ⊗ R with R = [[1, 0.6], [0.6, 1]]: the determinant is (1 - 0.36)^4, so the
    # entropy is log2(24) + log2(2 pi e) / 2 + log2(1 - 0.36) / 2 bits/dim. At 24 levels a standard deviation, rounding
    # down and uniform dequantization add 1/(6 * 24^2) of the variance at most, which is 0.0004 bits.
    r = torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    root = torch.linalg.cholesky(torch.kron(r, r))
    truth = math.log2(24) + 0.5 * math.log2(2 * math.pi * math.e) + 0.5 * math.log2(1 - 0.36)

    def gaussian(step: int, n: int = 128) -> Batch:
        positions = torch.arange(step * n, (step + 1) * n)
        g = KeyedRNG(9, positions).normal("pixels", (4,)) @ root.T
        images = (128 + 24 * g).floor().clamp(0, 255).to(torch.uint8).reshape(n, 1, 2, 2)
        return Batch(images, None, positions, [""] * n)

    stage = config(network=network).build(ImageShape(1, square(2)))
    nets = fit(stage, gaussian, steps=300, lr=1e-2)
    held_out = gaussian(10, 20000)
    score = stage.score(nets, held_out, KeyedRNG(1, held_out.positions)).per_sample
    assert truth - 0.01 < score.mean() < truth + 0.02  # 0.01 is four standard errors of the mean


@pytest.mark.slow
def test_uniform_bounds_the_entropy_and_variational_is_tighter() -> None:
    # All pixels are 128: 0 bits. Uniform noise makes a square of each, which a flow that is all but linear takes for a
    # normal of variance 1/12, at log2(2 pi e / 12) / 2 = 0.2546 bits; learned noise can round it off.
    def constant(step: int, n: int = 128) -> Batch:
        positions = torch.arange(step * n, (step + 1) * n)
        return Batch(torch.full((n, 1, 2, 2), 128, dtype=torch.uint8), None, positions, [""] * n)

    bounds = {}
    for kind in ("uniform", "variational"):
        stage = config(network=GLOW | {"hidden": 2}, dequantization={"kind": kind}).build(ImageShape(1, square(2)))
        nets = fit(stage, constant, steps=150, lr=5e-3, log_scale=6.0)
        test = constant(1, 4000)
        bounds[kind] = stage.score(nets, test, KeyedRNG(1, test.positions))
    uniform, variational = bounds["uniform"].per_sample.mean(), bounds["variational"].per_sample.mean()
    assert uniform == pytest.approx(0.2546, abs=0.02)
    assert 0 < variational < 0.15
    assert set(bounds["variational"].terms) == {"log_det", "prior", "dequantization"}


def test_gaussian_noise_is_no_bound_and_says_so() -> None:
    stage = config(dequantization={"kind": "gaussian", "noise_std": 0.1}).build(SHAPE)
    batch = pixels(8)
    score = stage.score(networks(stage), batch, KeyedRNG(0, batch.positions))
    assert score.kind == "exact"
    assert score.unit == "bits/dim of images with noise of std 0.1"


@NETWORKS
def test_denoising_gives_the_posterior_mean_of_a_gaussian(network: dict[str, object]) -> None:
    # Under a fresh network noisy images are standard normal, so the score is -x and the clean mean is (1 - std^2) x.
    stage = config(network=network, dequantization={"kind": "gaussian", "noise_std": 0.5}).build(SHAPE)
    torch.manual_seed(0)
    nets = {name: net.requires_grad_(False) for name, net in stage.networks().items()}
    x = normal(3, 1, 4, 4)
    torch.testing.assert_close(stage._denoise(nets["flow"], x, None), 0.75 * x)  # pyright: ignore[reportArgumentType]


@NETWORKS
def test_an_image_depends_on_its_index_and_label_alone(network: dict[str, object]) -> None:
    stage = config(network=network, conditional=True).build(SHAPE)
    nets, labels = networks(stage), torch.tensor([0, 1, 2, 0, 0])
    together = stage.generate(nets, KeyedRNG(3, torch.arange(5)), labels)
    assert together.shape == (5, 1, 4, 4)
    apart = [stage.generate(nets, KeyedRNG(3, torch.tensor([i])), labels[i : i + 1]) for i in range(5)]
    assert (together.int() - torch.cat(apart).int()).abs().max() <= 1  # a batch of another size rounds differently
    assert not torch.equal(together[0], together[3])
    other = stage.generate(nets, KeyedRNG(3, torch.arange(5)), (labels + 1) % 3)
    assert not torch.equal(together, other)


@NETWORKS
def test_temperature_zero_gives_one_image_and_one_half_shrinks(network: dict[str, object]) -> None:
    cold = config(network=network, sampler={"temperature": 0.0}).build(SHAPE)
    nets = networks(cold, std=0.02)
    images = cold.generate(nets, KeyedRNG(3, torch.arange(5)), None)
    assert torch.equal(images, images[:1].expand_as(images))
    assert torch.equal(images, cold.generate(nets, KeyedRNG(8, torch.arange(5)), None))
    spread = []
    for temperature in (0.25, 0.125):
        stage = config(network=network, sampler={"temperature": temperature}).build(SHAPE)
        spread.append(stage.generate(nets, KeyedRNG(3, torch.arange(500)), None).float().std(0).mean().item())
    assert spread[0] == pytest.approx(2 * spread[1], rel=0.1)


def test_temperature_zero_is_the_mode_where_the_flow_is_linear() -> None:
    stage = config(conditional=True).build(SHAPE)
    torch.manual_seed(0)
    flow = stage.networks()["flow"]
    for name, p in flow.named_parameters():
        if not any(part in name for part in ("stem", "middle", "out", "layers.2.context", "layers.5.context")):
            nn.init.normal_(p, std=0.1)
    labels = torch.tensor([0, 1])
    mode = flow.inverse(torch.zeros(2, 1, 4, 4), labels).detach()  # pyright: ignore[reportCallIssue]
    x = mode.clone().requires_grad_()
    z, log_det = flow(x, labels)
    (gradient,) = torch.autograd.grad((log_det - 0.5 * z.square().sum((1, 2, 3))).sum(), x)
    assert gradient.abs().max() < 1e-5
    assert (mode[0] - mode[1]).abs().max() > 0.01


@NETWORKS
@pytest.mark.parametrize("kind", ["uniform", "variational", "gaussian"])
def test_a_loss_does_not_depend_on_the_split_of_the_batch(network: dict[str, object], kind: str) -> None:
    stage = config(network=network, conditional=True, dequantization={"kind": kind}).build(SHAPE)
    nets, batch = networks(stage), pixels(6)
    assert batch.labels is not None
    phase = stage.phases()[0]
    whole = stage.loss(phase, nets, batch, KeyedRNG(0, batch.positions)).per_sample
    parts = []
    for i in (slice(0, 1), slice(1, 6)):
        part = Batch(batch.images[i], batch.labels[i], batch.positions[i], batch.keys[i])
        parts.append(stage.loss(phase, nets, part, KeyedRNG(0, part.positions)).per_sample)
    torch.testing.assert_close(torch.cat(parts), whole)
    other = stage.loss(phase, nets, batch._replace(labels=(batch.labels + 1) % 3), KeyedRNG(0, batch.positions))
    assert not torch.allclose(other.per_sample, whole)
    assert not torch.allclose(stage.loss(phase, nets, batch, KeyedRNG(1, batch.positions)).per_sample, whole)


@NETWORKS
def test_every_parameter_learns(network: dict[str, object]) -> None:
    stage = config(network=network, conditional=True, dequantization={"kind": "variational"}).build(SHAPE)
    nets, batch = networks(stage), pixels(6)
    stage.loss(stage.phases()[0], nets, batch, KeyedRNG(0, batch.positions)).per_sample.sum().backward()
    assert stage.phases()[0].trains == tuple(nets)
    for net in nets.values():
        for name, p in net.named_parameters():
            assert p.grad is not None, name
            assert p.grad.abs().max() > 0, name


@NETWORKS
def test_a_training_step_never_waits_for_the_device(network: dict[str, object]) -> None:
    stage = config(network=network, conditional=True, dequantization={"kind": "variational"}).build(SHAPE)
    nets, batch = networks(stage), pixels(6)
    with OperatorCounts() as calls:
        stage.loss(stage.phases()[0], nets, batch, KeyedRNG(0, batch.positions)).per_sample.sum().backward()
    assert calls.counts
    assert not calls.counts.keys() & {"_local_scalar_dense", "nonzero"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.resolution 28 cannot be squeezed 3 times.*a multiple of 8"):
        config(network=GLOW | {"levels": 3}).build(ImageShape(1, square(28)))
    with pytest.raises(UserError, match=r"stage\.network\.patch 3 must divide data\.resolution 28.*\[1, 2, 4, 7, 14\]"):
        config(network=TARFLOW | {"patch": 3}).build(ImageShape(1, square(28)))
    with pytest.raises(UserError, match=r"patch 4 must divide data\.resolution 4 into two or more"):
        config(network=TARFLOW | {"patch": 4}).build(SHAPE)
    with pytest.raises(UserError, match=r"data\.resolution 9 is odd.*take an even one"):
        config(network=TARFLOW | {"patch": 3}, dequantization={"kind": "variational"}).build(ImageShape(1, square(9)))
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        config(conditional=True).build(ImageShape(1, square(4)))
    with pytest.raises(ValueError, match="width 16 must be a multiple of heads 3"):
        config(network=TARFLOW | {"heads": 3})
    stage = config(conditional=True).build(SHAPE)
    with pytest.raises(UserError, match=r"the images have no labels; set data\.labels=true"):
        stage.score(networks(stage), pixels(2)._replace(labels=None), KeyedRNG(0, torch.arange(2)))
