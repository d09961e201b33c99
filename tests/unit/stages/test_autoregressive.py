"""The autoregressive stage: an exact likelihood, sampling as it says, and what is learned of a known source."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.nn.pixel_transformer import PixelTransformer
from diffpipe.resolution import Resolution, square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoregressive import TRANSFORMER, AutoregressiveConfig, AutoregressiveStage
from diffpipe.stages.token_sampling import draw, guided
from tests.support.operator_counts import OperatorCounts
from tests.support.randomized import randomized

TINY = {"width": 16, "depth": 2, "heads": 2}
HEADS = pytest.mark.parametrize("head", ["categorical", "logistic_mixture"])
CHANNELS = pytest.mark.parametrize("channels", [1, 3])
LABELS = torch.tensor([0, 2, 1, 0, 2])


def stage(
    head: str = "categorical", shape: ImageShape | None = None, levels: int = 8, **changes: Any
) -> AutoregressiveStage:
    tokens = {"kind": "pixels", "head": {"kind": head}, "neighbourhood": 2, "embedding": 4} | changes.pop("tokens", {})
    tree = {"kind": "autoregressive", "network": TINY | changes.pop("network", {}), "tokens": tokens} | changes
    return AutoregressiveStage(AutoregressiveConfig.model_validate(tree), shape or ImageShape(1, square(4), 3), levels)


def networks(s: AutoregressiveStage, std: float = 0.2) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: randomized(net, std) for name, net in s.networks().items()}


def batch_of(images: Tensor, labels: Tensor | None = None) -> Batch:
    n = len(images)
    return Batch(images, labels, torch.arange(n), [str(i) for i in range(n)])


def images_of(s: AutoregressiveStage, n: int = 5) -> Tensor:
    size = (n, *s.shape.chw)
    return torch.randint(s.grid.levels, size, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def score(s: AutoregressiveStage, nets: dict[str, nn.Module], batch: Batch) -> Tensor:
    return s.score(nets, batch, KeyedRNG(0, batch.positions)).per_sample


@HEADS
@pytest.mark.parametrize("attention", ["full", "strided"])
@pytest.mark.parametrize("neighbourhood", [0, 1])
def test_the_likelihoods_of_all_images_sum_to_one(head: str, attention: str, neighbourhood: int) -> None:
    s = stage(
        head,
        ImageShape(1, square(2)),
        levels=4,
        network={"attention": attention},
        tokens={"neighbourhood": neighbourhood},
    )
    every = torch.tensor([*itertools.product(range(4), repeat=4)], dtype=torch.uint8).reshape(256, 1, 2, 2)
    bits = score(s, networks(s), batch_of(every)).double()
    assert (2 ** (-4 * bits)).sum().item() == pytest.approx(1, abs=1e-5)
    assert bits.std() > 0.05  # no uniform distribution


@HEADS
@CHANNELS
def test_the_likelihood_is_the_product_of_what_sampling_draws_from(head: str, channels: int) -> None:
    s = stage(head, ImageShape(channels, Resolution(4, 5), 3), levels=256, conditional=True)
    nets, images = networks(s), images_of(s)
    decoder, nats = s.begin(nets, 5, LABELS), torch.zeros(5, dtype=torch.float64)
    values = s.grid.split(images).flatten(1)
    assert values.shape[1] == decoder.values == s.dims
    with torch.no_grad():
        for value in values.T:
            log_probs = decoder.next()
            assert log_probs.shape == (5, 256)
            torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(5), rtol=0, atol=1e-5)
            nats -= log_probs.gather(1, value[:, None])[:, 0].double()
            decoder.push(value)
    assert torch.equal(decoder.images(), images)
    bits = score(s, nets, batch_of(images, LABELS)).double()
    torch.testing.assert_close(nats / (s.dims * math.log(2)), bits, rtol=0, atol=1e-5)


def uncached(s: AutoregressiveStage, nets: dict[str, nn.Module], rng: KeyedRNG, labels: Tensor) -> Tensor:
    """Sampling by a whole forward pass for each value."""
    net, sampler = nets[TRANSFORMER], s.config.sampler
    assert isinstance(net, PixelTransformer)
    tokens = torch.zeros(len(labels), s.grid.tokens, s.grid.values, dtype=torch.int64)
    for i, u in enumerate(rng.uniform("value", (s.dims,)).T):
        token, k = divmod(i, s.grid.values)
        images = s.grid.join(tokens)
        logits = s.head.log_probs(net(images, labels)[:, token], tokens[:, token, :k])
        if sampler.guidance != 1:
            empty = s.head.log_probs(net(images, None)[:, token], tokens[:, token, :k])
            logits = guided(logits, empty, sampler.guidance)
        tokens[:, token, k] = draw(logits, u, sampler)
    return s.grid.join(tokens)


@HEADS
@CHANNELS
@pytest.mark.parametrize("attention", ["full", "strided"])
def test_cached_sampling_gives_the_images_of_uncached_sampling(head: str, channels: int, attention: str) -> None:
    s = stage(
        head,
        ImageShape(channels, Resolution(3, 4), 3),
        levels=256,
        network={"attention": attention, "qk_norm": True},
        conditional=True,
        label_dropout=0.1,
        sampler={"temperature": 0.8, "top_k": 200, "top_p": 0.95, "guidance": 1.5},
    )
    nets, rng = networks(s), KeyedRNG(3, torch.arange(5))
    with torch.no_grad():
        assert torch.equal(s.generate(nets, rng, LABELS), uncached(s, nets, rng, LABELS))


@HEADS
def test_an_image_depends_on_its_index_and_label_alone(head: str) -> None:
    s = stage(head, levels=256, conditional=True)
    nets = networks(s)
    together = s.generate(nets, KeyedRNG(3, torch.arange(5)), LABELS)
    apart = [s.generate(nets, KeyedRNG(3, torch.tensor([i])), LABELS[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(apart))
    assert len(together.unique(dim=0)) == 5
    assert not torch.equal(together, s.generate(nets, KeyedRNG(4, torch.arange(5)), LABELS))
    assert not torch.equal(together, s.generate(nets, KeyedRNG(3, torch.arange(5)), (LABELS + 1) % 3))
    assert torch.equal(
        s.generate(nets, KeyedRNG(3, torch.arange(5)), None),
        s.generate(nets, KeyedRNG(3, torch.arange(5)), KeyedRNG(3, torch.arange(5)).integers("label", 3)),
    )


def test_samples_have_the_models_probabilities() -> None:
    """Of all 16 images of 2x2 binary pixels, by 20,000 samples."""
    s = stage(shape=ImageShape(1, square(2)), levels=2)
    nets = networks(s)
    every = torch.tensor([*itertools.product(range(2), repeat=4)], dtype=torch.uint8).reshape(16, 1, 2, 2)
    expected = 2 ** (-4 * score(s, nets, batch_of(every)).double())
    samples = s.generate(nets, KeyedRNG(0, torch.arange(20_000)), None).flatten(1).long()
    measured = (samples @ torch.tensor([8, 4, 2, 1])).bincount(minlength=16) / 20_000
    assert (measured - expected).abs().max() < 4 * math.sqrt(expected.max() / 20_000)


def test_temperature_zero_takes_the_likeliest_value_and_needs_no_seed() -> None:
    s = stage(sampler={"temperature": 0})
    nets = networks(s)
    images = s.generate(nets, KeyedRNG(0, torch.arange(3)), None)
    assert torch.equal(images, s.generate(nets, KeyedRNG(9, torch.arange(3)), None))
    decoder = s.begin(nets, 3, None)
    with torch.no_grad():
        for value in s.grid.split(images).flatten(1).T:
            assert torch.equal(decoder.next().argmax(1), value)
            decoder.push(value)


MARKOV = torch.tensor([[0.9, 0.1], [0.3, 0.7]])


def markov(step: int, n: int) -> Tensor:
    """4x4 binary images whose pixels are a stationary Markov chain in raster order."""
    u = KeyedRNG(5, torch.arange(step * n, (step + 1) * n)).uniform("pixels", (16,))
    values = [(u[:, 0] < 0.25).long()]  # the stationary distribution: 3/4 and 1/4
    for i in range(1, 16):
        values.append((u[:, i] < MARKOV[values[-1], 1]).long())
    return torch.stack(values, dim=1).reshape(n, 1, 4, 4).to(torch.uint8)


@HEADS
def test_it_reaches_the_entropy_rate_of_a_markov_chain(head: str) -> None:
    """Of 16 binary pixels: the entropy of the first one, and 15 times the mean entropy of the next given the last."""
    first = -sum(p * math.log2(p) for p in (0.75, 0.25))
    rates = [-sum(p * math.log2(p) for p in row) for row in MARKOV.tolist()]
    truth = (first + 15 * (0.75 * rates[0] + 0.25 * rates[1])) / 16
    s = stage(head, ImageShape(1, square(4)), levels=2)
    torch.manual_seed(0)
    nets, steps, lr = s.networks(), 150, 1e-2
    adam = torch.optim.Adam(nets[TRANSFORMER].parameters(), lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = batch_of(markov(step, 128))
        s.loss(s.phases()[0], nets, batch, KeyedRNG(0, batch.positions)).per_sample.mean().backward()
        adam.step()
        adam.zero_grad()
    held_out = markov(10, 20_000)
    bits = score(s, nets, batch_of(held_out)).mean().item()
    assert truth - 0.01 < bits < truth + 0.02  # 0.01 is four standard errors of the mean


def test_dropped_labels_are_the_empty_one_and_no_others() -> None:
    s = stage(conditional=True, label_dropout=0.5)
    nets, batch = networks(s), batch_of(images_of(s), LABELS)
    rng = KeyedRNG(0, batch.positions)
    hidden = rng.uniform("label_dropout") < 0.5
    assert 0 < hidden.sum() < 5
    loss = s.loss(s.phases()[0], nets, batch, rng).per_sample
    shown = score(s, nets, batch._replace(labels=torch.where(hidden, 3, LABELS)))
    torch.testing.assert_close(loss, shown)
    assert not torch.allclose(loss, score(s, nets, batch))


@HEADS
def test_a_loss_does_not_depend_on_the_split_of_the_batch_and_is_the_score(head: str) -> None:
    s = stage(head, conditional=True)
    nets, images = networks(s), images_of(s)
    whole = s.loss(s.phases()[0], nets, batch_of(images, LABELS), KeyedRNG(0, torch.arange(5))).per_sample
    parts = [score(s, nets, batch_of(images[i : i + 1], LABELS[i : i + 1])) for i in range(5)]
    torch.testing.assert_close(torch.cat(parts), whole)
    result = s.score(nets, batch_of(images, LABELS), KeyedRNG(0, torch.arange(5)))
    assert (result.unit, result.kind, dict(result.terms)) == ("bits/dim", "exact", {})


def test_likelihoods_are_float32_under_autocast() -> None:
    for head in ("categorical", "logistic_mixture"):
        s = stage(head, conditional=True)
        nets, batch = networks(s, std=0.05), batch_of(images_of(s), LABELS)
        full = score(s, nets, batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = score(s, nets, batch)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full, rtol=0, atol=0.05)


def test_a_training_step_never_waits_for_the_device() -> None:
    for head in ("categorical", "logistic_mixture"):
        s = stage(head, ImageShape(3, square(4), 3), conditional=True, label_dropout=0.1)
        nets, batch = networks(s), batch_of(images_of(s), LABELS)
        with OperatorCounts() as calls:
            s.loss(s.phases()[0], nets, batch, KeyedRNG(0, batch.positions)).per_sample.sum().backward()
        assert calls.counts
        assert not calls.counts.keys() & {"_local_scalar_dense", "nonzero"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*data\.labels=true"):
        stage(shape=ImageShape(1, square(4)), conditional=True)
    with pytest.raises(UserError, match=r"stage\.sampler\.top_k 9 is more than the 8 values of a token; give fewer"):
        stage(sampler={"top_k": 9})
    with pytest.raises(UserError, match=r"guidance needs labels to guide by; set stage\.conditional=true"):
        stage(sampler={"guidance": 2.0})
    with pytest.raises(UserError, match=r"guidance needs a network that was trained without labels too"):
        stage(conditional=True, sampler={"guidance": 2.0})
    s = stage(conditional=True)
    with pytest.raises(UserError, match=r"the images have no labels; set data\.labels=true"):
        score(s, networks(s), batch_of(images_of(s)))
