"""The latents of every stage that encodes, and how they are computed: by the chunk, from shards, by class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from diffpipe.data.index.write_index import write_index
from diffpipe.data.loader import sequential_reader
from diffpipe.errors import UserError
from diffpipe.evaluation.latent_space import LatentSpace, class_names, drawn, drawn_of_class, labelled_shards
from diffpipe.experiment.config import Experiment
from diffpipe.interfaces import Encodes, ImageShape, Reconstructs, Stage
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.train.runtime import Runtime
from tests.support.tars import png, random_pixels, write_shards, write_tar
from tests.support.toy_stages import Toy

CODER = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
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
SHAPE = ImageShape(channels=1, resolution=square(8), classes=3)
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
    images, rng = pictures(6), KeyedRNG(0, torch.arange(6))
    z = stage.encode_latents(nets, images, None, rng)
    assert z.shape[1:] == stage.latent_shape  # pyright: ignore[reportAttributeAccessIssue]
    again = stage.decode_latents(nets, z, None)
    assert torch.equal(again, stage.reconstruct(nets, images, rng))
    assert len(again.unique(dim=0)) == 6


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_decodes_its_latents_to_the_very_images(name: str, conditional: bool) -> None:
    stage, nets = built(FLOWS[name] | {"conditional": conditional})
    assert isinstance(stage, Encodes)
    images, labels = pictures(6), torch.arange(6) % 3
    z = stage.encode_latents(nets, images, labels, KeyedRNG(0, torch.arange(6)))
    assert torch.equal(stage.decode_latents(nets, z, labels), images)
    assert torch.equal(stage.encode_latents(nets, images[2:4], labels[2:4], KeyedRNG(0, torch.tensor([2, 3]))), z[2:4])
    assert not torch.equal(stage.encode_latents(nets, images, labels, KeyedRNG(1, torch.arange(6))), z)
    if conditional:
        assert not torch.equal(stage.decode_latents(nets, z, labels.roll(1)), images)


def test_a_flow_of_noised_images_denoises_what_it_decodes() -> None:
    stage, nets = built({"kind": "flow", "network": GLOW, "dequantization": {"kind": "gaussian", "noise_std": 0.02}})
    assert isinstance(stage, Encodes)
    images, rng = pictures(6), KeyedRNG(0, torch.arange(6))
    again = stage.decode_latents(nets, stage.encode_latents(nets, images, None, rng), None)
    # x + std² ∇ log p(x) of x = clean + std · eps: one standard deviation is 2.6 of 256 values
    assert (again.float() - images.float()).abs().mean() < 3
    assert not torch.equal(again, images)


@pytest.mark.parametrize("config", [CODERS["vae"], FLOWS["glow"]], ids=["vae", "flow"])
def test_class_conditional_latents_need_the_labels(config: dict[str, Any]) -> None:
    stage, nets = built(config | {"conditional": True})
    assert isinstance(stage, Encodes)
    images, rng = pictures(3), KeyedRNG(0, torch.arange(3))
    with pytest.raises(UserError, match="labels"):
        stage.encode_latents(nets, images, None, rng)
    z = stage.encode_latents(nets, images, torch.tensor([0, 1, 2]), rng)
    assert not torch.equal(stage.encode_latents(nets, images, torch.tensor([1, 2, 0]), rng), z)
    with pytest.raises(UserError, match="labels"):
        stage.decode_latents(nets, z, None)


def test_latents_are_computed_by_the_chunk_and_keyed_by_the_place(tmp_path: Path, runtime: Runtime) -> None:
    write_shards(tmp_path, [80, 50])
    write_index(tmp_path)
    shards, (stage, nets) = labelled_shards(str(tmp_path)), built(FLOWS["glow"] | {"conditional": True})
    assert isinstance(stage, Encodes)
    space = LatentSpace(stage, nets, SHAPE, runtime, seed=9)
    places = drawn(shards, 120, seed=0)
    labels = sequential_reader.labels(shards, places)
    assert len(np.unique(places)) == 120
    z = space.of_shards(shards, places, labels)
    for i in (0, 49, 50, 119):
        image = torch.from_numpy(random_pixels(int(places[i])))[None, None]
        rng = KeyedRNG(9, torch.tensor([places[i]]))
        expected = stage.encode_latents(nets, image, labels[i : i + 1], rng)
        torch.testing.assert_close(z[i : i + 1], expected, rtol=0, atol=1e-5)
    images = space.images_of(z, labels)
    off = (images.int() - sequential_reader.images(shards, places, square(8), 1).int()).abs()
    assert off.max() <= 1  # where the noise came within a rounding error of the pixel's end
    assert (off > 0).float().mean() < 1e-3
    torch.testing.assert_close(space.of_images(images[:3], labels[:3]), z[:3], rtol=0, atol=1.0)


def test_images_of_a_class_are_drawn_without_replacement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffpipe.evaluation.latent_space.BLOCK", 40)
    write_shards(tmp_path, [100, 150], classes=5)
    write_index(tmp_path)
    shards = labelled_shards(str(tmp_path))
    assert class_names(shards) == ["0", "1", "2", "3", "4"]
    found = drawn_of_class(shards, [4, 1], 20, seed=0)
    assert list(found) == [4, 1]
    for label, places in found.items():
        assert (places % 5 == label).all()
        assert len(np.unique(places)) == 20
    assert (drawn_of_class(shards, [4], 20, seed=1)[4] != found[4]).any()
    assert (drawn_of_class(shards, [4], 7, seed=0)[4] == found[4][:7]).all()
    assert len(drawn_of_class(shards, [2], 10**6, seed=0)[2]) == 50
    with pytest.raises(UserError, match=r"5 is no class of .*; they are 0 to 4"):
        drawn_of_class(shards, [0, 5], 20, seed=0)
    with pytest.raises(UserError, match="hold 50 images of class 3, and 51 are needed"):
        drawn_of_class(shards, [3], 51, seed=0, least=51)


def test_what_has_no_latents_or_no_labels_is_named(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(
        UserError, match="a stage of Toy has no latents of images; give a run of an autoencoder, VAE or"
    ):
        LatentSpace(Toy(), {}, SHAPE, runtime)
    write_tar(tmp_path / "a.tar", {"0.png": png(random_pixels(0))})
    write_index(tmp_path)
    with pytest.raises(UserError, match=r"a\.tar: some samples have no label"):
        labelled_shards(str(tmp_path))
