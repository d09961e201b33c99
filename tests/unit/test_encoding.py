"""The latents of every stage that encodes, and how they are computed: by the chunk, from shards, by class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from diffpipe.cli.experiment import Experiment
from diffpipe.contract import Encodes, ImageShape, Reconstructs, Stage, UserError
from diffpipe.rng import Draws

CODER = {"channels": 8, "mults": (1, 2), "groups": 4, "latent_channels": 3}
GLOW = {"kind": "glow", "levels": 2, "steps": 2, "hidden": 8}
TARFLOW = {"kind": "tarflow", "patch": 2, "width": 16, "blocks": 2, "layers": 1, "heads": 2}
CODERS = {
    "autoencoder": {"kind": "autoencoder", "network": CODER},
    "vae": {"kind": "vae", "network": CODER},
    "vector vae": {"kind": "vae", "network": CODER | {"latent": "vector"}},
}
FLOWS = {
    "glow": {"kind": "flow", "network": GLOW},
    "tarflow": {"kind": "flow", "network": TARFLOW},
    "variational": {"kind": "flow", "network": GLOW, "dequantization": {"kind": "variational", "hidden": 4}},
}
SHAPE = ImageShape(channels=1, resolution=8, classes=3)
STAGES: TypeAdapter[Any] = TypeAdapter(Experiment.model_fields["stage"].rebuild_annotation())


def built(config: dict[str, Any]) -> tuple[Stage, dict[str, nn.Module]]:
    """The stage, and networks moved off their start, so that no zero hides a mistake."""
    stage = STAGES.validate_python(config).build(SHAPE)
    torch.manual_seed(0)
    nets = stage.networks()
    with torch.no_grad():
        for parameter in (p for net in nets.values() for p in net.parameters()):
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    return stage, {name: net.eval() for name, net in nets.items()}


def pictures(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", CODERS)
def test_decoded_latents_are_what_the_stage_reconstructs(name: str) -> None:
    stage, nets = built(CODERS[name])
    assert isinstance(stage, Encodes)
    assert isinstance(stage, Reconstructs)
    images, draws = pictures(6), Draws(0, torch.arange(6))
    z = stage.encode_latents(nets, images, None, draws)
    assert z.shape[1:] == stage.latent_shape  # pyright: ignore[reportAttributeAccessIssue]
    again = stage.decode_latents(nets, z, None)
    assert torch.equal(again, stage.reconstruct(nets, images, draws))
    assert len(again.unique(dim=0)) == 6


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_decodes_its_latents_to_the_very_images(name: str, conditional: bool) -> None:
    stage, nets = built(FLOWS[name] | {"conditional": conditional})
    assert isinstance(stage, Encodes)
    images, labels = pictures(6), torch.arange(6) % 3
    z = stage.encode_latents(nets, images, labels, Draws(0, torch.arange(6)))
    assert torch.equal(stage.decode_latents(nets, z, labels), images)
    assert torch.equal(stage.encode_latents(nets, images[2:4], labels[2:4], Draws(0, torch.tensor([2, 3]))), z[2:4])
    assert not torch.equal(stage.encode_latents(nets, images, labels, Draws(1, torch.arange(6))), z)
    if conditional:
        assert not torch.equal(stage.decode_latents(nets, z, labels.roll(1)), images)


def test_a_flow_of_noised_images_denoises_what_it_decodes() -> None:
    stage, nets = built({"kind": "flow", "network": GLOW, "dequantization": {"kind": "gaussian", "noise_std": 0.02}})
    assert isinstance(stage, Encodes)
    images, draws = pictures(6), Draws(0, torch.arange(6))
    again = stage.decode_latents(nets, stage.encode_latents(nets, images, None, draws), None)
    # x + std² ∇ log p(x) of x = clean + std · eps: one standard deviation is 2.6 of 256 values
    assert (again.float() - images.float()).abs().mean() < 3
    assert not torch.equal(again, images)


@pytest.mark.parametrize("config", [CODERS["vae"], FLOWS["glow"]], ids=["vae", "flow"])
def test_class_conditional_latents_need_the_labels(config: dict[str, Any]) -> None:
    stage, nets = built(config | {"conditional": True})
    assert isinstance(stage, Encodes)
    images, draws = pictures(3), Draws(0, torch.arange(3))
    with pytest.raises(UserError, match="labels"):
        stage.encode_latents(nets, images, None, draws)
    z = stage.encode_latents(nets, images, torch.tensor([0, 1, 2]), draws)
    assert not torch.equal(stage.encode_latents(nets, images, torch.tensor([1, 2, 0]), draws), z)
    with pytest.raises(UserError, match="labels"):
        stage.decode_latents(nets, z, None)
