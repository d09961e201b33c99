"""The vector-quantized autoencoder: its losses by hand, its start, its codes, and the same codebook in every split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Encodes, Generates, ImageShape, Reconstructs, Scores, Stage, Starts, Tracks
from diffpipe.nn.codebook import EMAQuantizer
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.likelihood import LOWEST_LOG_SCALE, discretized_logistic
from diffpipe.stages.perceptual import DISCRIMINATOR, patch_generator_loss
from diffpipe.stages.vq import ADVERSARIAL, DECODER, ENCODER, QUANTIZER, VQ, VQConfig
from diffpipe.train.config import TrainConfig
from diffpipe.train.ema import EMAConfig
from diffpipe.train.loop import Trainer
from diffpipe.train.optimizer import OptimizerConfig
from diffpipe.train.runtime import Runtime

NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
SHAPE = ImageShape(channels=2, resolution=square(8), classes=4)
EMA = {"kind": "ema", "codes": 16}
FSQ = {"kind": "fsq", "levels": (5, 4, 3)}
PATCH = {"weight": 0.3, "start": 0, "network": {"channels": 4, "channel_mult": (1, 2)}}


def build(**changes: Any) -> VQ:
    return VQConfig.model_validate({"kind": "vq", "network": NETWORK, "quantizer": EMA, **changes}).build(SHAPE)


def networks(stage: VQ) -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stage.networks()


def batch(positions: range = range(8), bad: tuple[int, ...] = ()) -> Batch:
    images = torch.randint(0, 256, (300, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    p = torch.tensor(positions)
    valid = torch.tensor([position not in bad for position in positions]) if bad else None
    return Batch(images[p], None, p, [str(i) for i in positions], valid)


def loss(stage: VQ, nets: Mapping[str, nn.Module], some: Batch, phase: int = 0) -> Any:
    return stage.loss(stage.phases()[phase], nets, some, KeyedRNG(3, some.positions))


def test_it_is_a_stage_that_encodes_but_generates_nothing() -> None:
    stage = build()
    for ability in (Stage, Reconstructs, Encodes, Scores, Starts, Tracks):
        assert isinstance(stage, ability)
    assert not isinstance(stage, Generates)
    assert (stage.codes, stage.tokens, stage.latent_shape) == (16, 16, (3, 4, 4))
    assert build(quantizer=FSQ).codes == 60
    assert build(quantizer=EMA | {"scales": (1, 2, 4)}).tokens == 21


def by_hand(stage: VQ, nets: Mapping[str, nn.Module], some: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The images, the decoder's output, and the squared distance of the latents to their codes."""
    x = some.images.float() / 127.5 - 1
    z = nets[ENCODER](x)
    codebook = cast(EMAQuantizer, nets[QUANTIZER]).codebook
    vectors = codebook[torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, 3), codebook).argmin(1)]
    q = vectors.reshape(-1, 4, 4, 3).permute(0, 3, 1, 2)
    return x, nets[DECODER](q), (z - q).square().mean((1, 2, 3))


def test_the_loss_is_the_error_and_the_weighted_commitment() -> None:
    """van den Oord et al. 2017, eq. 3, without the codebook's own term."""
    stage, some = build(quantizer=EMA | {"commitment": 0.7}), batch()
    nets = networks(stage)
    x, y, commitment = by_hand(stage, nets, some)
    found = loss(stage, nets, some)
    error = (x - y).square().mean((1, 2, 3))
    torch.testing.assert_close(found.per_sample, error + 0.7 * commitment)
    torch.testing.assert_close(found.metrics["reconstruction"], error)
    torch.testing.assert_close(stage.score(nets, some, KeyedRNG(0, some.positions)).per_sample, error)
    assert {"commitment", "perplexity", "used"} < found.metrics.keys()


def test_the_loss_can_be_a_likelihood_in_bits_per_dim() -> None:
    stage, some = build(reconstruction="logistic", quantizer=EMA | {"commitment": 0.0}), batch()
    nets = networks(stage)
    _, y, _ = by_hand(stage, nets, some)
    mean, raw = y.chunk(2, dim=1)
    nats = -discretized_logistic(some.images, mean, LOWEST_LOG_SCALE + F.softplus(raw - LOWEST_LOG_SCALE)).sum(
        (1, 2, 3)
    )
    torch.testing.assert_close(loss(stage, nets, some).per_sample, nats / 128 / torch.log(torch.tensor(2.0)))
    assert stage.reconstruct(nets, some.images, KeyedRNG(0, some.positions)).shape == some.images.shape


def test_with_a_discriminator_the_reconstructions_are_to_fool_it() -> None:
    stage, some = build(patch=PATCH), batch()
    nets = networks(stage)
    assert [phase.name for phase in stage.phases()] == ["reconstruct", DISCRIMINATOR, ADVERSARIAL]
    _, y, _ = by_hand(stage, nets, some)
    plain, adversarial = loss(stage, nets, some), loss(stage, nets, some, phase=2)
    term = patch_generator_loss(nets[DISCRIMINATOR], y)
    torch.testing.assert_close(adversarial.per_sample, plain.per_sample + 0.3 * term)
    judged = loss(stage, nets, some, phase=1)
    logits = nets[DISCRIMINATOR](torch.cat([some.images.float() / 127.5 - 1, y]))
    hinge = F.relu(1 - logits[:8]) + F.relu(1 + logits[8:])
    torch.testing.assert_close(judged.per_sample, hinge.mean((1, 2)))
    assert not judged.sums


@pytest.mark.parametrize("quantizer", [EMA, EMA | {"scales": (1, 2, 4)}, FSQ])
def test_codes_and_latents_decode_to_the_reconstruction(quantizer: dict[str, Any]) -> None:
    stage, some = build(quantizer=quantizer), batch()
    nets, rng = networks(stage), KeyedRNG(0, some.positions)
    images = stage.reconstruct(nets, some.images, rng)
    z = stage.encode_latents(nets, some.images, None, rng)
    assert torch.equal(stage.decode_latents(nets, z, None), images)
    codes = stage.quantize(nets, some.images).codes
    assert codes.shape == (8, stage.tokens)
    assert 0 <= codes.min() <= codes.max() < stage.codes
    torch.testing.assert_close(stage.embed(nets, codes), z)


def test_the_codebook_starts_at_encoded_images_that_are_valid() -> None:
    stage = build()
    some = batch(range(256), bad=tuple(range(100, 256)))
    nets = networks(stage)
    with torch.no_grad():
        stage.start(nets, some, KeyedRNG(0, some.positions))
        z = nets[ENCODER](some.images[:100].float() / 127.5 - 1).permute(0, 2, 3, 1).reshape(-1, 3)
    assert stage.start_samples == 256
    codebook = cast(EMAQuantizer, nets[QUANTIZER]).codebook
    assert (torch.cdist(codebook, z).min(1).values < 0.05 * codebook.norm(dim=1)).all()
    assert build(quantizer=FSQ).start_samples == 0


@pytest.mark.parametrize("quantizer", [EMA | {"restart": 0.09}, EMA | {"scales": (1, 2, 4)}, FSQ])
def test_the_codebook_is_the_same_in_every_split_and_without_samples_that_are_not_valid(quantizer: Any) -> None:
    stage, states = build(quantizer=quantizer), []
    with Runtime.start("fp32", "cpu") as runtime:
        for parts in ([8], [3, 5], [1, 1, 6]):
            settings = TrainConfig(steps=9, accumulate=len(parts))
            optimizer = OptimizerConfig(lr=1e-3, warmup=0, eps=1e-3)
            trainer = Trainer(
                stage, runtime, settings, optimizer, EMAConfig(), seed=0, batch_size=8, max_bad_samples=99
            )
            for step in range(5):
                first, micro_batches = 8 * step, []
                for n in parts:
                    micro_batches.append(batch(range(first, first + n), bad=(2, 11, 12, 13, 33)))
                    first += n
                trainer.train_step(micro_batches)
            states.append({name: tensor.clone() for name, tensor in trainer.state().items()})
    for state in states[1:]:
        assert torch.equal(state["net.quantizer.counts"], states[0]["net.quantizer.counts"])
        for name, tensor in states[0].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(UserError, match=r"stage\.quantizer\.levels are of 2 channels, and .*latent_channels is 3"):
        build(quantizer={"kind": "fsq", "levels": (5, 5)})
    with pytest.raises(UserError, match=r"quantizes spatial latents; set stage\.network\.latent=spatial"):
        build(network=NETWORK | {"latent": "vector"})
    with pytest.raises(UserError, match=r"stage\.quantizer\.scales are \[1, 2\], and the latents are 4"):
        build(quantizer=EMA | {"scales": (1, 2)})
