"""Bits-back along a diffusion's chain: every kind of diffusion of pixels gives its images back, in the bound's bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffpipe.coding.message import Message
from diffpipe.diffusion.continuous import EDMScheduleConfig
from diffpipe.diffusion.denoiser import Denoise, Denoised
from diffpipe.diffusion.process import NoiseLevel, append_dims
from diffpipe.diffusion.schedule import DiscreteScheduleConfig
from diffpipe.diffusion.vlb import variational_lower_bound
from diffpipe.errors import UserError
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm import DDPM
from diffpipe.stages.ddpm_coding import ChainCoder
from tests.support.stage_cases import CASES, SHAPE, real_batch

SHORT = ("stage.schedule.steps=8", "stage.sampler.steps=2")


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("case", ["ddpm", "ddpm, v", "ddpm, x0"])
def test_images_come_back_and_the_message_is_as_it_was(case: str, variance: str) -> None:
    """`v` has a learned variance, and no signal at the last level."""
    experiment, batch = CASES[case].experiment(*SHORT, f"stage.sampler.variance={variance}"), real_batch(4)
    stage = experiment.stage.build(SHAPE, {})
    assert isinstance(stage, DDPM)
    torch.manual_seed(0)
    nets = {name: net.eval() for name, net in stage.networks().items()}
    with torch.no_grad():
        coder, message = stage.image_coder(nets), Message(1)
        coder.encode(message, batch.images, batch.labels)
        decoder = Message(1, message.words())
        assert torch.equal(coder.decode(decoder, 4, batch.labels), batch.images)
    assert decoder.is_initial()
    assert 0 < message.initial_bits < message.bits


def gaussian_model(labels: Tensor | None) -> Denoise:
    """A poor model without a network: the posterior mean of x_0 where pixels are N(-0.4, 0.5^2) and independent."""

    def denoise(x: Tensor, level: NoiseLevel) -> Denoised:
        alpha, sigma = append_dims(level.alpha, x), append_dims(level.sigma, x)
        gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
        return Denoised((-0.4 + gain * (x + 0.4 * alpha)).clamp(-1, 1))

    return denoise


@pytest.mark.parametrize("T", [8, 60])
def test_the_length_is_the_variational_bound(T: int) -> None:
    """Within 1%, for a model whose bits would not draw samples without scrambling."""
    schedule, images = DiscreteScheduleConfig(kind="cosine", steps=T).build(), real_batch(200).images
    x0, rng = images.double() / 127.5 - 1, KeyedRNG(0, torch.arange(200))
    bound = variational_lower_bound(gaussian_model(None), schedule, x0, rng, variance="small").per_sample.mean().item()
    coder, message = ChainCoder(gaussian_model, schedule, "small", SHAPE.chw, torch.device("cpu")), Message()
    coder.encode(message, images, None)
    assert (message.bits - message.initial_bits) / images.numel() == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize(
    ("config", "steps"), [(DiscreteScheduleConfig(kind="cosine", steps=60), 12), (EDMScheduleConfig(kind="edm"), 60)]
)
def test_fewer_steps_take_the_bits_of_the_bound_of_their_chain(
    config: DiscreteScheduleConfig | EDMScheduleConfig, steps: int
) -> None:
    """A chain of fewer steps is another model, of more bits: its bound is no estimate of the whole chain's."""
    schedule, images = config.build(), real_batch(200).images
    x0, rng = images.double() / 127.5 - 1, KeyedRNG(0, torch.arange(200))

    def bound(steps: int | None) -> float:
        options = {"variance": "small", "steps": steps}
        return variational_lower_bound(gaussian_model(None), schedule, x0, rng, **options).per_sample.mean().item()

    shape, cpu = SHAPE.chw, torch.device("cpu")
    coder, message = ChainCoder(gaussian_model, schedule, "small", shape, cpu, steps=steps), Message(1)
    coder.encode(message, images, None)
    assert (message.bits - message.initial_bits) / images.numel() == pytest.approx(bound(steps), rel=0.03)
    assert bound(steps) > 1.03 * bound(None)
    decoder = Message(1, message.words())
    assert torch.equal(coder.decode(decoder, len(images), None), images)
    assert decoder.is_initial()


def test_latents_have_no_code() -> None:
    stage = CASES["latent_ddpm"].stage()
    assert isinstance(stage, DDPM)
    with pytest.raises(UserError, match="density is no likelihood of images"):
        stage.image_coder({})
