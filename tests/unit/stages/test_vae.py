"""The VAE: its bound against float64, quadrature and a data set of known entropy; its settings; what it generates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Generates, ImageShape, Loss, Reconstructs, Scores, Stage
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.vae import VAE, VAEConfig

NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
ONE_PIXEL = NETWORK | {"channel_mult": (1,), "latent_channels": 1}
SHAPE = ImageShape(channels=2, resolution=square(8), classes=4)
PIXEL = ImageShape(channels=1, resolution=square(1), classes=3)


def build(shape: ImageShape = SHAPE, **changes: Any) -> VAE:
    return VAEConfig.model_validate({"kind": "vae", "network": NETWORK, **changes}).build(shape)


def networks(stage: VAE) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return stage.networks()


def batch(n: int = 8, first: int = 0) -> Batch:
    images = torch.randint(0, 256, (64, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    few = slice(first, first + n)
    return Batch(images[few], torch.arange(64)[few] % 4, torch.arange(64)[few], [str(i) for i in range(64)][few])


def pixels(values: Tensor) -> Batch:
    return Batch(values.to(torch.uint8).reshape(-1, 1, 1, 1), None, torch.arange(len(values)), [""] * len(values))


def loss(stage: VAE, nets: Mapping[str, nn.Module], some: Batch) -> Loss:
    return stage.loss(stage.phases()[0], nets, some, KeyedRNG(3, some.positions))


class Line(nn.Module):
    """One number a place in, `slope` times it + `offset` (+ `by_label` times the label) and a second number out."""

    def __init__(self, slope: float, second: float, offset: float = 0.0, by_label: float = 0.0):
        super().__init__()
        self.slope, self.second, self.offset, self.by_label = slope, second, offset, by_label

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        y = self.slope * x + self.offset
        if labels is not None:
            y = y + self.by_label * labels[:, None, None, None]
        return torch.cat([y, torch.full_like(y, self.second)], dim=1)


class Blind(nn.Module):
    """A decoder of 8×8 images that ignores the latents."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.zeros(len(z), 4, 8, 8) + 0 * z.sum()


def softplus_inverse(log_scale: float) -> float:
    """The decoder's second output for this log-scale: it is bounded from below by -7."""
    return math.log(math.expm1(log_scale + 7)) - 7


@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_the_bound_is_an_independent_float64_sum_of_reconstruction_and_kl(latent: str) -> None:
    stage = build(network=NETWORK | {"latent": latent})
    nets, some = networks(stage), batch()
    found = loss(stage, nets, some)
    with torch.no_grad():
        q_mean, q_log_variance = nets["encoder"](some.images / 127.5 - 1).double().chunk(2, dim=1)
        assert q_mean.shape == (8, *stage.latent_shape)
        q = Normal(q_mean, torch.exp(q_log_variance / 2))
        z = q.mean + q.stddev * KeyedRNG(3, some.positions).normal("posterior", stage.latent_shape).double()
        mean, raw = nets["decoder"](z.float()).double().chunk(2, dim=1)
        # The decoder's scale is bounded from below: log s = -7 + log(1 + e^(raw + 7)).
        cdf = stats.logistic(mean.numpy(), np.exp(-7) * (1 + np.exp(raw.numpy() + 7))).cdf
    centre = some.images.double().numpy() / 127.5 - 1
    upper = np.where(some.images.numpy() == 255, 1.0, cdf(centre + 1 / 255))
    lower = np.where(some.images.numpy() == 0, 0.0, cdf(centre - 1 / 255))
    reconstruction = torch.from_numpy(-np.log2(upper - lower)).mean((1, 2, 3))
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3)) / math.log(2) / 128
    torch.testing.assert_close(found.metrics["reconstruction"].double(), reconstruction, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.metrics["kl"].double(), kl, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.per_sample.double(), reconstruction + kl, rtol=1e-5, atol=1e-5)


def test_beta_and_free_bits_change_the_loss_and_not_the_score() -> None:
    nets, some = networks(build()), batch()
    plain = loss(build(), nets, some)
    heavy = loss(build(beta=4.0), nets, some)
    torch.testing.assert_close(heavy.per_sample, plain.metrics["reconstruction"] + 4 * plain.metrics["kl"])
    q = build().encode(nets, some.images)
    kl = kl_divergence(Normal(q.mean, (q.log_variance / 2).exp()), Normal(0.0, 1.0)).sum((2, 3))
    free = kl.median().item()  # so that it holds for some channels and not for others
    counted = torch.where(kl > free, kl, free).sum(1) / math.log(2) / 128
    freed = loss(build(free_bits=free), nets, some)
    torch.testing.assert_close(freed.per_sample, plain.metrics["reconstruction"] + counted)
    torch.testing.assert_close(freed.metrics["kl"], plain.metrics["kl"])
    scores = [
        stage.score(nets, some, KeyedRNG(0, some.positions)).per_sample
        for stage in (build(), build(beta=4.0, free_bits=free))
    ]
    assert torch.equal(*scores)


def test_free_bits_take_the_pull_to_the_prior_away() -> None:
    some = batch()
    for free, pulled in ((0.0, True), (1000.0, False)):
        stage = build(free_bits=free)
        nets = {"encoder": networks(stage)["encoder"], "decoder": Blind()}
        loss(stage, nets, some).per_sample.sum().backward()
        moved = any(p.grad is not None and p.grad.abs().max() > 0 for p in nets["encoder"].parameters())
        assert moved == pulled


def test_importance_weights_close_the_gap_to_the_likelihood_found_by_quadrature() -> None:
    slope, log_scale = 0.4, -2.0
    # The encoder's q is too wide and off centre, so that the ELBO is not tight.
    nets = {"encoder": Line(1.2, 2 * math.log(0.9)), "decoder": Line(slope, softplus_inverse(log_scale))}
    values, n = (20, 128, 255), 3000
    z = np.linspace(-9, 9, 20001)
    cdf = stats.logistic(slope * z, math.exp(log_scale)).cdf
    for value in values:
        upper = 1.0 if value == 255 else cdf(value / 127.5 - 1 + 1 / 255)
        exact = -np.log2(np.sum((upper - cdf(value / 127.5 - 1 - 1 / 255)) * stats.norm.pdf(z)) * (z[1] - z[0]))
        some, scores = pixels(torch.full((n,), value)), {}
        for k in (1, 4, 64):
            scores[k] = build(PIXEL, network=ONE_PIXEL, sampler={"importance_samples": k}).score(
                nets, some, KeyedRNG(5, some.positions)
            )
            torch.testing.assert_close(torch.stack([*scores[k].terms.values()]).sum(0), scores[k].per_sample)
        assert [*scores[1].terms] == ["reconstruction", "kl"]
        assert (scores[4].unit, scores[4].kind) == ("bits/dim", "bound")
        means = [scores[k].per_sample.mean().item() for k in (1, 4, 64)]
        assert means[0] > means[1] > means[2] > exact - 0.01
        assert means[2] == pytest.approx(exact, abs=0.02)
        assert means[0] > exact + 0.1


def gaussian_images(rng: KeyedRNG) -> Tensor:
    """2×2 images of one shared normal factor and normal noise at each pixel, rounded to bytes."""
    x = 128 + 20 * rng.normal("factor", (1, 1, 1)) + 20 * rng.normal("pixel", (1, 2, 2))
    return x.round().clamp(0, 255).to(torch.uint8)


def exact_bits_per_dim(images: Tensor) -> np.ndarray:
    """-log2 p(x) / 4 of `gaussian_images`: given the factor its pixels are independent; Gauss-Hermite over it."""
    factor, weights = np.polynomial.hermite_e.hermegauss(101)
    x = rearrange(images.double().numpy(), "b 1 h w -> b (h w) 1")
    upper = stats.norm.cdf((np.where(x == 255, np.inf, x + 0.5) - 128 - 20 * factor) / 20)
    lower = stats.norm.cdf((np.where(x == 0, -np.inf, x - 0.5) - 128 - 20 * factor) / 20)
    return -np.log2((upper - lower).prod(1) @ (weights / weights.sum())) / 4


@pytest.mark.slow
def test_trained_on_a_gaussian_it_reaches_the_known_bits_per_dim_from_above() -> None:
    network = {"channels": 16, "channel_mult": (1,), "groups": 1, "latent": "vector", "latent_channels": 1}
    stage = build(ImageShape(1, square(2)), network=network)
    nets, steps, n = networks(stage), 300, 128
    optimizer = torch.optim.AdamW([p for net in nets.values() for p in net.parameters()], lr=5e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rng = KeyedRNG(0, torch.arange(step * n, (step + 1) * n))
        optimizer.zero_grad()
        loss(stage, nets, Batch(gaussian_images(rng), None, rng.positions, [""] * n)).per_sample.mean().backward()
        optimizer.step()
        scheduler.step()
    rng = KeyedRNG(1, torch.arange(50_000))
    images = gaussian_images(rng)
    score = stage.score(nets, Batch(images, None, rng.positions, [""] * len(images)), rng)
    gap = (score.per_sample.double().numpy() - exact_bits_per_dim(images)).mean()
    # At best it is 0.0137, the divergence from a normal to the nearest logistic distribution; without the latent 0.29.
    assert 0 < gap < 0.02
    assert score.terms["kl"].mean() > 0.2


@pytest.mark.parametrize("latent", ["spatial", "vector"])
def test_the_loss_and_the_score_of_a_sample_depend_on_it_alone(latent: str) -> None:
    stage = build(network=NETWORK | {"latent": latent}, conditional=True, free_bits=0.5)
    nets, parts = networks(stage), (batch(3), batch(5, first=3))
    apart = torch.cat([loss(stage, nets, part).per_sample for part in parts])
    torch.testing.assert_close(loss(stage, nets, batch(8)).per_sample, apart)
    apart = torch.cat([stage.score(nets, part, KeyedRNG(3, part.positions)).per_sample for part in parts])
    torch.testing.assert_close(stage.score(nets, batch(8), KeyedRNG(3, torch.arange(8))).per_sample, apart)


def test_drawn_pixels_have_the_decoders_probabilities_and_the_mean_is_their_location() -> None:
    nets = {"decoder": Line(0.0, softplus_inverse(math.log(0.3)), offset=0.5)}
    rng = KeyedRNG(0, torch.arange(100_000))
    drawn = build(PIXEL, network=ONE_PIXEL, sampler={"mode": "sample"}).generate(nets, rng, None).flatten()
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    expected = np.diff(stats.logistic(0.5, 0.3).cdf(edges)) * len(drawn)
    assert stats.chisquare(np.bincount(drawn.numpy(), minlength=256), expected).pvalue > 1e-3
    shown = build(PIXEL, network=ONE_PIXEL).generate(nets, rng, None)
    assert torch.equal(shown.unique(), torch.tensor([191], dtype=torch.uint8))  # (0.5 + 1) * 127.5 = 191.25


def test_temperature_is_the_spread_of_the_latents() -> None:
    nets = {"decoder": Line(0.2, 0.0)}
    for temperature in (0.0, 0.5, 1.0):
        stage = build(PIXEL, network=ONE_PIXEL, sampler={"temperature": temperature})
        shown = stage.generate(nets, KeyedRNG(0, torch.arange(20_000)), None).float()
        assert shown.std().item() == pytest.approx(0.2 * 127.5 * temperature, abs=0.3)


def test_an_image_depends_on_its_index_and_label_alone() -> None:
    stage = build(conditional=True, sampler={"mode": "sample"})
    nets = networks(stage)
    for p in nets["decoder"].parameters():
        nn.init.normal_(p, std=0.2)
    labels = torch.tensor([3, 1, 0, 2, 3])
    together = stage.generate(nets, KeyedRNG(3, torch.arange(5)), labels)
    apart = torch.cat([stage.generate(nets, KeyedRNG(3, torch.tensor([i])), labels[i : i + 1]) for i in range(5)])
    assert (together.int() - apart.int()).abs().max() <= 1  # a batch of another size rounds differently
    assert not torch.equal(together, stage.generate(nets, KeyedRNG(3, torch.arange(5)), (labels + 1) % 4))
    unlabelled = stage.generate(nets, KeyedRNG(3, torch.arange(5)), None)
    drawn = KeyedRNG(3, torch.arange(5)).integers("label", 4)
    assert torch.equal(unlabelled, stage.generate(nets, KeyedRNG(3, torch.arange(5)), drawn))


def test_a_conditional_stage_scores_the_label_and_reconstructs_under_the_likeliest() -> None:
    # Decoded pixels are -0.6, 0 and 0.6 by label, whatever the latent.
    nets = {"encoder": Line(0.0, 0.0), "decoder": Line(0.0, softplus_inverse(-3.0), offset=-0.6, by_label=0.6)}
    stage = build(PIXEL, network=ONE_PIXEL, conditional=True)
    some = pixels(torch.tensor([50, 130, 210]))
    again = stage.reconstruct(nets, some.images, KeyedRNG(0, some.positions)).flatten()
    assert again.tolist() == [51, 128, 204]
    by_label = torch.stack(
        [
            stage.score(nets, some._replace(labels=torch.full((3,), y)), KeyedRNG(0, some.positions)).per_sample
            for y in range(3)
        ]
    )
    assert by_label.argmin(0).tolist() == [0, 1, 2]


def test_it_is_a_stage_that_generates_reconstructs_and_scores() -> None:
    stage = build()
    for protocol in (Stage, Generates, Reconstructs, Scores):
        assert isinstance(stage, protocol)
    images = batch().images
    again = stage.reconstruct(networks(stage), images, KeyedRNG(0, torch.arange(8)))
    assert again.shape == images.shape
    assert again.dtype == torch.uint8


def test_in_bfloat16_the_bound_stays_float32_and_close() -> None:
    nets, some = networks(build()), batch()
    exact = loss(build(), nets, some).per_sample
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(build(), nets, some).per_sample
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        build(ImageShape(1, square(8)), conditional=True)
    with pytest.raises(UserError, match=r"data\.resolution 8 cannot be halved 4 times"):
        build(network=NETWORK | {"channel_mult": (1, 1, 1, 1, 1)})
    stage, some = build(conditional=True), batch()._replace(labels=None)
    with pytest.raises(UserError, match="class-conditional and the images have no labels"):
        stage.score(networks(stage), some, KeyedRNG(0, some.positions))
