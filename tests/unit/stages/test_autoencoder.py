"""The autoencoder stage: its networks, what its noise touches, and what it reconstructs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Generates, ImageShape, Reconstructs, Scores, Stage
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoencoder import Autoencoder, AutoencoderConfig

NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
SHAPE = ImageShape(channels=2, resolution=square(8), classes=4)


def build(**changes: object) -> Autoencoder:
    return AutoencoderConfig.model_validate({"kind": "autoencoder", "network": NETWORK, **changes}).build(SHAPE)


def batch(n: int = 8, first: int = 0) -> Batch:
    images = torch.randint(0, 256, (64, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    few = slice(first, first + n)
    return Batch(images[few], None, torch.arange(64)[few], [str(i) for i in range(64)][few])


class Recorder(nn.Module):
    """Passes on what it is given, and remembers it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


def errors(stage: Autoencoder, nets: Mapping[str, nn.Module], some: Batch) -> Tensor:
    return stage.loss(stage.phases()[0], nets, some, KeyedRNG(3, some.positions)).per_sample


def test_it_is_a_stage_that_reconstructs_and_scores_but_generates_nothing() -> None:
    stage = build()
    assert isinstance(stage, Stage)
    assert isinstance(stage, Reconstructs)
    assert isinstance(stage, Scores)
    assert not isinstance(stage, Generates)


def test_the_noise_on_the_input_is_as_strong_as_asked_and_keyed_by_position() -> None:
    stage, some = build(noise=0.5), batch(64)
    nets = {"encoder": Recorder(), "decoder": Recorder()}
    loss = errors(stage, nets, some)
    noise = nets["encoder"].seen[0] - (some.images.float() / 127.5 - 1)
    assert noise.std().item() == pytest.approx(0.5, abs=0.02)
    # These networks hand the noised input through, so what is left of the clean target is the noise.
    torch.testing.assert_close(loss, noise.square().mean((1, 2, 3)))
    errors(stage, nets, batch(4, first=20))
    torch.testing.assert_close(nets["encoder"].seen[1], nets["encoder"].seen[0][20:24])


def test_scores_and_reconstructions_see_clean_images() -> None:
    stage, some = build(noise=0.5), batch()
    nets = {"encoder": Recorder(), "decoder": Recorder()}
    score = stage.score(nets, some, KeyedRNG(0, some.positions))
    assert (score.unit, score.kind) == ("mse", "error")
    assert torch.equal(score.per_sample, torch.zeros(8))
    assert torch.equal(stage.reconstruct(nets, some.images, KeyedRNG(0, some.positions)), some.images)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_loss_of_a_sample_depends_on_it_alone(noise: float) -> None:
    stage = build(noise=noise)
    torch.manual_seed(0)
    nets = stage.networks()
    apart = torch.cat([errors(stage, nets, batch(4)), errors(stage, nets, batch(4, first=4))])
    torch.testing.assert_close(errors(stage, nets, batch(8)), apart)


def test_what_cannot_be_built_is_refused() -> None:
    for latent in ("spatial", "vector"):
        network = NETWORK | {"channel_mult": (1, 1, 1, 1, 1), "latent": latent}
        with pytest.raises(
            UserError, match=r"data\.resolution 8 cannot be halved 4 times for stage\.network\.channel_mult"
        ):
            build(network=network)
    with pytest.raises(ValidationError, match="channels 8 must be a multiple of groups 3"):
        build(network=NETWORK | {"groups": 3})
