"""The blocks that each network declares: the repeated parts, in order, and no part of the rest."""

from __future__ import annotations

import pytest
import torch

from diffpipe.interfaces import Network
from tests.support.stage_cases import CASES

_UNET = "down.0.0 down.1 down.2.0 middle.0 middle.1 middle.2 up.0.0 up.1.0 up.2 up.3.0 up.4.0"
_LATENT_UNET = (
    "down.0.0 down.1.0 down.2 down.3.0 down.4.0 middle.0 middle.1 middle.2 "
    "up.0.0 up.1.0 up.2.0 up.3 up.4.0 up.5.0 up.6.0"
)
_ADM = "down.0.0 down.1 down.2.0 down.2.1 middle.0 middle.1 middle.2 up.0.0 up.0.1 up.1.0 up.1.1 up.2 up.3.0 up.4.0"
_EDM2 = "encoder.0 encoder.1 encoder.2 " + " ".join(f"decoder.{i}" for i in range(7))
_UNET_DISCRIMINATOR = "down.0.0 down.1 down.2.0 middle.0 middle.1 middle.2 heads.0 heads.1 heads.2"
_CODER = {"encoder": "layers.0 layers.1 layers.2", "decoder": "layers.0 layers.1 layers.2"}
_VQ = _CODER | {"quantizer": ""}
_GLOW = " ".join(f"chains.0.layers.{i}" for i in range(6)) + " priors.0"
_DENOISING_GAN = {"generator": _UNET, "discriminator": _UNET_DISCRIMINATOR}

BLOCKS = {
    "adversarial": _DENOISING_GAN,
    "adversarial, x_prev": _DENOISING_GAN,
    "autoencoder": _CODER,
    "autoregressive": {"transformer": "transformer.layers.0 transformer.layers.1"},
    "autoregressive, full": {"transformer": "transformer.layers.0 transformer.layers.1"},
    "autoregressive, codes": {"transformer": "transformer.layers.0 transformer.layers.1"},
    "autoregressive, scales": {"transformer": "transformer.layers.0 transformer.layers.1"},
    "ddpm": {"denoiser": _UNET},
    "ddpm, adm": {"denoiser": _ADM},
    "ddpm, edm": {"denoiser": _UNET, "log_variance": "out"},
    "ddpm, edm2": {"denoiser": _EDM2, "log_variance": "out"},
    "ddpm, dit, flow": {"denoiser": "layers.0 layers.1"},
    "ddpm, v": {"denoiser": _UNET},
    "ddpm, x0": {"denoiser": _UNET},
    "denoising_autoencoder": _CODER,
    "flow": {"flow": _GLOW},
    "flow, variational": {"flow": _GLOW, "dequantizer": "chain.layers.0 chain.layers.1 chain.layers.2"},
    "gan": {
        "generator": "levels.0.0 levels.1.0 up.0",
        "discriminator": "levels.0.0 levels.1.0 down.0 heads.0 heads.1 heads.2",
    },
    "latent_ddpm": {"denoiser": _LATENT_UNET, "latent_scale": ""},
    "latent_vae": _CODER,
    "latent_vae, patch": _CODER | {"discriminator": "levels.0.0 levels.1.0 widen.0"},
    "tarflow": {"flow": "flow_blocks.0.layers.0 flow_blocks.1.layers.0"},
    "vae": _CODER,
    "vq": _VQ,
    "vq, fsq": _VQ,
    "vq, patch": _VQ | {"discriminator": "levels.0.0 levels.1.0 widen.0"},
    "vq, scales": _VQ,
}


@pytest.mark.parametrize("name", CASES)
def test_each_network_declares_its_repeated_parts(name: str) -> None:
    stage = CASES[name].stage()
    with torch.device("meta"):
        nets = stage.networks()
    declared: dict[str, str] = {}
    for key, net in nets.items():
        assert isinstance(net, Network)
        names = {module: name for name, module in net.named_modules()}
        declared[key] = " ".join(names[block] for block in net.blocks())
    assert declared == BLOCKS[name]
