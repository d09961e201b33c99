"""Latent diffusion's codec: its codes, their normalization and noise, and what the DDPM makes of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffpipe.diffusion.ode_likelihood import ODESettings
from diffpipe.diffusion.schedule import DiscreteSchedule
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, ImageShape
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.ddpm import DDPM
from diffpipe.stages.ddpm_config import DDPMConfig
from diffpipe.stages.latents import LatentCodec, codec_problem
from diffpipe.stages.vae import VAE, VAEConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime

SHAPE = ImageShape(channels=2, resolution=square(8), classes=4)
NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
UNET = {"channels": 8, "channel_mult": (1,), "blocks": 1, "attention": (), "groups": 4, "dropout": 0.0}


def vae(shape: ImageShape = SHAPE, **changes: Any) -> VAE:
    return VAEConfig.model_validate({"kind": "vae", "network": NETWORK, **changes}).build(shape)


def codec(stage: VAE | None = None) -> LatentCodec:
    """A VAE with random weights, so that its latents have some mean, and another spread in each channel."""
    stage = stage or vae()
    torch.manual_seed(0)
    nets = stage.networks()
    with torch.no_grad():
        for net in nets.values():
            for p in net.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    return LatentCodec(stage, nets, None)


def images(n: int, first: int = 0) -> Tensor:
    """Images that depend on their position."""
    return torch.stack(
        [
            torch.randint(0, 256, (2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
            for i in range(first, first + n)
        ]
    )


def batch(positions: Sequence[int]) -> Batch:
    rows = torch.cat([images(1, i) for i in positions])
    return Batch(rows, None, torch.tensor(positions), [str(i) for i in positions])


def ddpm(some: LatentCodec | None = None, **changes: Any) -> DDPM:
    tree = {
        "kind": "ddpm",
        "network": UNET,
        "codec": {"kind": "vae", "run": "x"},
        "sampler": {"clip": False, "steps": 3},
    }
    return DDPM(DDPMConfig.model_validate(tree | changes), SHAPE, some or codec())


def started() -> tuple[Any, dict[str, Any]]:
    """A stage and its networks, with the scale measured on 500 samples."""
    stage = ddpm()
    nets = stage.networks()
    stage.start(nets, batch(range(500)), KeyedRNG(0, torch.arange(500)))
    return stage, nets


def test_scaled_codes_have_mean_zero_and_deviation_one_in_each_channel() -> None:
    stage, nets = started()
    scale = nets["latent_scale"]
    assert (scale.std - 1).abs().max() > 0.2  # there is something to normalize
    assert scale.mean.abs().max() > 0.1
    x = scale(stage.codec.encode(images(500), KeyedRNG(1, torch.arange(500))))
    assert x.dtype == torch.float32
    assert x.shape == (500, *stage.codec.shape(SHAPE)) == (500, 3, 4, 4)
    assert x.mean((0, 2, 3)).abs().max() < 0.03
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.03, rtol=0)
    torch.testing.assert_close(scale.inverse(x), stage.codec.encode(images(500), KeyedRNG(1, torch.arange(500))))


def test_the_scale_is_that_of_the_posteriors_of_the_first_samples() -> None:
    stage, nets = started()
    q = stage.codec.vae.encode(stage.codec.nets, images(500))
    variance = q.mean.var((0, 2, 3)) + q.log_variance.exp().mean((0, 2, 3))
    torch.testing.assert_close(nets["latent_scale"].mean.flatten(), q.mean.mean((0, 2, 3)), atol=0.03, rtol=0)
    torch.testing.assert_close(nets["latent_scale"].std.flatten(), variance.sqrt(), atol=0.03, rtol=0)
    assert stage.start_samples == 2000


def test_the_scale_is_the_same_from_shards_of_latents_and_without_bad_samples() -> None:
    stage, nets = started()
    few, rng = batch(range(150)), KeyedRNG(0, torch.arange(150))
    scales = []
    zeros = torch.zeros_like(few.images[:7])
    for some in (
        few,
        few._replace(images=stage.codec.describe(few.images)),
        few._replace(images=torch.cat([zeros, few.images[7:]]), valid=torch.arange(150) >= 7),
        few._replace(valid=torch.arange(150) >= 7),
    ):
        stage.start(nets, some, rng)
        scales.append([buffer.clone() for buffer in nets["latent_scale"].buffers()])
    torch.testing.assert_close(scales[0], scales[1])
    torch.testing.assert_close(scales[2], scales[3])
    assert not torch.equal(scales[0][0], scales[3][0])


def test_decoding_a_code_is_the_vaes_image_of_its_latents() -> None:
    some, few = codec(), images(5)
    expected = some.vae.reconstruct(some.nets, few, KeyedRNG(0, torch.arange(5)))
    assert torch.equal(some.decode(some.vae.encode(some.nets, few).mean), expected)
    assert expected.float().std() > 1


def test_what_the_encoder_says_of_images_gives_their_codes_without_it() -> None:
    some, few, rng = codec(), images(5), KeyedRNG(2, torch.arange(5))
    said, codes = some.describe(few), some.encode(few, rng)
    assert said.shape == (5, 6, 4, 4)
    del some.nets["encoder"]
    assert torch.equal(some.encode(said, rng), codes)


def test_the_noise_of_a_code_is_keyed_by_position_and_seed() -> None:
    some, positions = codec(), [7, 3, 3, 12]
    same = images(1).expand(4, -1, -1, -1).contiguous()
    together = some.encode(same, KeyedRNG(0, torch.tensor(positions)))
    assert torch.equal(together[1], together[2])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, some.encode(same, KeyedRNG(1, torch.tensor(positions))))
    apart = torch.cat([some.encode(same[:1], KeyedRNG(0, torch.tensor([p]))) for p in positions])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    q = some.vae.encode(some.nets, same)
    noise = (together - q.mean) / torch.exp(q.log_variance / 2)
    expected = KeyedRNG(0, torch.tensor(positions)).normal("codec", (3, 4, 4))
    torch.testing.assert_close(noise, expected, rtol=1e-3, atol=1e-3)


def test_the_codec_is_frozen_and_no_part_of_the_stage() -> None:
    some = codec()
    before = {name: [p.clone() for p in net.parameters()] for name, net in some.nets.items()}
    stage = ddpm(some)
    runtime = Runtime.start("fp32", "cpu")
    trainer = Trainer(stage, runtime, TrainConfig(steps=3), OptimizerConfig(lr=0.1), EMAConfig(), seed=0, batch_size=8)
    names = {".".join(name.split(".")[:2]) for name in trainer.state()}
    assert names == {"net.denoiser", "ema.denoiser", "optimizer.denoiser", "net.latent_scale", "ema.latent_scale"}
    for step in range(2):
        trainer.train_step([batch(range(8 * step, 8 * step + 8))])
    for name, net in some.nets.items():
        assert not net.training
        for p, old in zip(net.parameters(), before[name], strict=True):
            assert p.grad is None
            assert not p.requires_grad
            assert torch.equal(p, old)


def test_the_network_sees_noised_codes_and_generated_codes_are_decoded() -> None:
    some = codec()
    stage, asked = ddpm(some), []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            asked.append((x, t))
            return torch.zeros_like(x)

    few, rng = batch(range(6)), KeyedRNG(0, torch.arange(6))
    nets = {"denoiser": Recorder(), "latent_scale": LatentScale(3, [0.1, 0.2, 0.3], [2.0, 3.0, 4.0])}
    stage.loss(stage.phases()[0], nets, few, rng)
    (x_t, t), code = asked[0], nets["latent_scale"](some.encode(few.images, rng))
    schedule = stage.schedule.on("cpu")
    assert isinstance(schedule, DiscreteSchedule)
    alpha_bar = schedule.alpha_bar(t)[:, None, None, None].float()
    torch.testing.assert_close(x_t, alpha_bar.sqrt() * code + (1 - alpha_bar).sqrt() * rng.normal("noise", (3, 4, 4)))
    made = stage.generate(nets, rng, None)
    assert made.shape == few.images.shape
    assert made.dtype == torch.uint8


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"conditional": True}, "its VAE is class-conditional.*stage.conditional=false"),
        ({"network": NETWORK | {"latent": "vector"}}, "its VAE has vector latents.*latent=spatial"),
    ],
)
def test_a_vae_that_is_no_codec_says_why(changes: dict[str, Any], complaint: str) -> None:
    found = codec_problem(vae(**changes))
    assert found is not None
    assert re.search(complaint, found)
    assert codec_problem(vae()) is None


def test_what_does_not_fit_latents_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.sampler\.clip=true.*set it to false"):
        ddpm(sampler={})
    config = DDPMConfig.model_validate({"kind": "ddpm", "network": UNET, "sampler": {"clip": False}})
    with pytest.raises(UserError, match=r"2 × 8 × 8, and data\.channels is 1 and data\.resolution 8"):
        DDPM(config, ImageShape(1, square(8)), codec())
    with pytest.raises(UserError, match=r"for latents \[3, 4, 4\] instead of images, .*cannot be halved 3 times"):
        ddpm(network=UNET | {"channel_mult": (1, 1, 1, 1)})
    stage = ddpm()
    with pytest.raises(UserError, match=r"no likelihood of images.*stage\.codec\.kind=pixels"):
        stage.score(stage.networks(), batch(range(2)), KeyedRNG(0, torch.arange(2)))
    with pytest.raises(UserError, match=r"no likelihood of images.*stage\.codec\.kind=pixels"):
        stage.ode_score(stage.networks(), batch(range(2)), KeyedRNG(0, torch.arange(2)), ODESettings())
