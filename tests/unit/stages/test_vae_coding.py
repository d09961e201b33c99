"""Bits-back with a VAE: images come back, in as many bits as the ELBO says."""

from __future__ import annotations

import pytest
import torch

from diffpipe.coding.message import Message
from diffpipe.rng import KeyedRNG
from diffpipe.stages.vae import VAE, Likelihood
from diffpipe.stages.vae_coding import logistic_levels
from tests.support.stage_cases import CASES, SHAPE, real_batch


@pytest.mark.parametrize("case", ["vae", "latent_vae"])
def test_images_come_back_in_the_bits_of_the_elbo(case: str) -> None:
    stage, batch = CASES[case].experiment("stage.sampler.importance_samples=1").stage.build(SHAPE, {}), real_batch(300)
    assert isinstance(stage, VAE)
    torch.manual_seed(0)
    nets = {name: net.eval() for name, net in stage.networks().items()}
    labels = batch.labels if stage.classes else None
    with torch.no_grad():
        coder, message = stage.image_coder(nets), Message(2)
        coder.encode(message, batch.images, labels)
        score = stage.score(nets, batch, KeyedRNG(0, batch.positions)).per_sample
        decoder = Message(2, message.words())
        assert torch.equal(coder.decode(decoder, 300, labels), batch.images)
    assert decoder.is_initial()
    bits = (message.bits - message.initial_bits) / batch.images.numel()
    assert bits == pytest.approx(score.mean().item(), rel=0.01)


def test_the_levels_of_a_pixel_sum_to_one() -> None:
    mean = torch.linspace(-1.5, 1.5, 48).reshape(2, 1, 4, 6)
    log_scale = torch.linspace(-7, 2, 48).reshape(2, 1, 4, 6)
    table = logistic_levels(Likelihood(mean, log_scale))(slice(3, 40))
    assert table.shape == (37, 256)
    assert table.sum(1) == pytest.approx(1, abs=1e-6)
    assert table[10].argmax() == round((mean.flatten()[13].item() + 1) * 127.5)
