"""AutoencoderKL decodes as our VAE does, with the scale of latents in it, and a folder's VAE is the given run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from diffpipe.errors import UserError
from diffpipe.experiment.interop.autoencoder_kl import latent_scale, their_vae, to_autoencoder_kl
from diffpipe.experiment.interop.weights_file import WeightsFile
from diffpipe.interfaces import ImageShape
from diffpipe.nn.autoencoder import CoderConfig
from diffpipe.nn.latent_scale import LatentScale
from diffpipe.resolution import square
from diffpipe.stages.latents import LatentCodec
from diffpipe.stages.vae import VAE, VAEConfig
from tests.support.randomized import normal, randomized

SCALE = LatentScale(3, [-0.5, 0.0, 1.0], [0.5, 1.0, 2.0])
NETWORKS = {
    "three levels": {"channel_mult": [1, 2, 2], "blocks": 1},
    "two blocks": {"channel_mult": [1, 2], "blocks": 2},
    "one level": {"channel_mult": [1]},
}


def codec(**network: Any) -> LatentCodec:
    keys = {"channels": 8, "groups": 4, "latent_channels": 3, "dropout": 0.2, **network}
    vae = VAE(VAEConfig(kind="vae", network=CoderConfig(**keys)), ImageShape(3, square(16)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LatentCodec(vae, {name: randomized(net) for name, net in vae.networks().items()}, None)


@pytest.mark.parametrize("case", NETWORKS)
def test_their_decoder_gives_the_images_of_ours(case: str) -> None:
    ours = codec(**NETWORKS[case])
    theirs = AutoencoderKL(**to_autoencoder_kl(ours.vae.config.network, ours.vae.shape).model_dump())
    theirs.load_state_dict(their_vae(ours, SCALE))
    z = normal(2, *ours.vae.latent_shape)
    with torch.no_grad():
        expected = ours.vae.decode(ours.nets, SCALE.inverse(z)).mean
        decoded: Any = theirs.decode(z)  # pyright: ignore[reportArgumentType]
    assert expected.std() > 0.1
    torch.testing.assert_close(decoded.sample, expected, rtol=1e-5, atol=1e-5)


def test_the_scale_is_read_back_and_another_vae_is_refused(tmp_path: Path) -> None:
    ours, path = codec(), tmp_path / "vae.safetensors"
    tensors = their_vae(ours, SCALE)
    save_file(tensors, path)
    scale = latent_scale(WeightsFile(path), ours)
    assert all(torch.equal(scale[key], tensor) for key, tensor in SCALE.state_dict().items())
    tensors["decoder.conv_out.bias"] += 1
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"decoder.conv_out.bias has other values than the VAE of --codec"):
        latent_scale(WeightsFile(path), ours)
    with pytest.raises(UserError, match="of the VAE of --codec"):
        latent_scale(WeightsFile(path), codec(channels=12))
