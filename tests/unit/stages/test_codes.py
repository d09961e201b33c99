"""The autoregressive stage over codes: its likelihood against the sampling conditionals, its draws, its refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffpipe.dependency import Dependency, TrainedStage
from diffpipe.errors import UserError
from diffpipe.interfaces import Batch, Borrows, Generates, ImageShape, Scores, Stage
from diffpipe.nn.code_transformer import CodeDecoder
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.autoregressive import AutoregressiveConfig
from diffpipe.stages.codes import TRANSFORMER, CodeAutoregressiveStage
from diffpipe.stages.vq import VQConfig
from tests.support.randomized import randomized

SHAPE = ImageShape(channels=2, resolution=square(8), classes=4)
NETWORK = {"channels": 8, "channel_mult": (1, 2), "groups": 4, "latent_channels": 3}
EMA = {"kind": "ema", "codes": 16}
QUANTIZERS = {
    "raster": EMA,
    "scales": EMA | {"scales": (1, 2, 4)},
    "fsq": {"kind": "fsq", "levels": (3, 3, 2)},
}
every_order = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS.keys())


def trained(quantizer: dict[str, Any], shape: ImageShape = SHAPE) -> TrainedStage:
    config = VQConfig.model_validate({"kind": "vq", "network": NETWORK, "quantizer": quantizer})
    stage = config.build(shape._replace(classes=0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = stage.networks()
    return TrainedStage(Path("runs/vq"), config, shape, stage, nets, None)


def config(**changes: Any) -> AutoregressiveConfig:
    tree: dict[str, Any] = {
        "kind": "autoregressive",
        "conditional": True,
        "codec": {"kind": "vq", "run": "runs/vq"},
        "tokens": {"kind": "codes"},
        "network": {"width": 16, "depth": 2, "heads": 2},
    }
    return AutoregressiveConfig.model_validate(tree | changes)


def build(quantizer: dict[str, Any], shape: ImageShape = SHAPE, **changes: Any) -> CodeAutoregressiveStage:
    stage = config(**changes).build(shape, {"codec": trained(quantizer)})
    assert isinstance(stage, CodeAutoregressiveStage)
    return stage


def networks(stage: CodeAutoregressiveStage) -> dict[str, nn.Module]:
    return {name: randomized(net).requires_grad_(False) for name, net in stage.networks().items()}


def batch(n: int = 5) -> Batch:
    images = torch.randint(0, 256, (n, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.arange(n) % 4, torch.arange(n), [str(i) for i in range(n)])


def steps(stage: CodeAutoregressiveStage, nets: Any, codes: Tensor, labels: Tensor | None) -> Tensor:
    """The log-probability of each code, by the distributions that sampling draws from."""
    decoder, found = CodeDecoder(nets[TRANSFORMER], len(codes), labels), []
    for group, part in enumerate(codes.split(stage.codec.grid.groups, dim=1)):
        known = codes[:, : sum(p.shape[1] for p in found)]
        logits = decoder.next(stage.codec.inputs(known, group) if group else None)
        found.append(logits.log_softmax(-1).gather(-1, part[..., None])[..., 0])
    return torch.cat(found, dim=1)


@every_order
@pytest.mark.parametrize("labels", [None, torch.tensor([0, 3, 2, 1, 1])])
def test_one_pass_gives_the_sum_of_the_sampling_conditionals(quantizer: dict[str, Any], labels: Tensor | None) -> None:
    stage = build(quantizer)
    nets, codes = networks(stage), stage.codec.encode(batch().images)
    found = stage.log_likelihood(nets, codes, labels)
    torch.testing.assert_close(found, steps(stage, nets, codes, labels), rtol=1e-5, atol=1e-5)


@every_order
def test_the_loss_is_the_bits_of_a_code(quantizer: dict[str, Any]) -> None:
    stage, some = build(quantizer), batch()
    nets, codes = networks(stage), stage.codec.encode(some.images)
    loss = stage.loss(stage.phases()[0], nets, some, KeyedRNG(0, some.positions)).per_sample
    bits = -steps(stage, nets, codes, some.labels).sum(1) / math.log(2) / codes.shape[1]
    torch.testing.assert_close(loss, bits, rtol=1e-5, atol=1e-5)


@every_order
def test_the_codes_of_shards_are_those_of_their_images(quantizer: dict[str, Any]) -> None:
    codec, images = build(quantizer).codec, batch().images
    described = codec.describe(images)
    assert described.dtype == torch.int32
    assert described.shape == (len(images), 1, 1, codec.grid.tokens)
    assert torch.equal(codec.encode(described), codec.encode(images))


def test_by_scales_a_token_sees_the_sum_of_the_smaller_scales() -> None:
    """Tian et al. 2024, algorithm 2: what the smaller scales have, at the size of the token's own."""
    stage = build(QUANTIZERS["scales"])
    codes = stage.codec.encode(batch().images)
    vq, nets = stage.codec.vq, stage.codec.nets
    for group, first, side in ((1, 1, 2), (2, 5, 4)):
        known = nets["quantizer"].partial(codes[:, :first], vq.latents, group)  # pyright: ignore[reportCallIssue]
        expected = torch.nn.functional.interpolate(known, (side, side), mode="area").flatten(2).mT
        torch.testing.assert_close(stage.codec.inputs(codes[:, :first], group), expected)
    assert stage.codec.all_inputs(codes).shape == (5, 20, 3)


@every_order
def test_an_image_depends_on_its_index_alone(quantizer: dict[str, Any]) -> None:
    stage = build(quantizer, sampler={"guidance": 2.0, "top_k": 9, "top_p": 0.9, "temperature": 0.8}, label_dropout=0.1)
    nets = networks(stage)
    whole = stage.generate(nets, KeyedRNG(4, torch.arange(6)), None)
    apart = [stage.generate(nets, KeyedRNG(4, positions), None) for positions in torch.arange(6).split([1, 3, 2])]
    assert torch.equal(torch.cat(apart), whole)
    assert whole.shape == (6, 2, 8, 8)
    assert not torch.equal(stage.generate(nets, KeyedRNG(5, torch.arange(6)), None), whole)


@every_order
def test_codes_are_drawn_as_likely_as_the_model_has_them(quantizer: dict[str, Any]) -> None:
    """The first code of 4,000 images of one class."""
    stage = build(quantizer)
    nets, labels = networks(stage), torch.full((4000,), 2)
    drawn = stage.draw_codes(nets, KeyedRNG(0, torch.arange(4000)), labels)[:, 0]
    p = CodeDecoder(nets[TRANSFORMER], 1, labels[:1]).next(None)[0, 0].softmax(-1)  # pyright: ignore[reportArgumentType]
    shares = torch.bincount(drawn, minlength=stage.codec.grid.codes) / 4000
    assert ((shares - p).abs() < 5 * (p / 4000).sqrt()).all()


def test_it_is_a_stage_that_generates_with_the_autoencoders_decoder_and_has_no_likelihood() -> None:
    stage = build(EMA)
    for ability in (Stage, Generates, Borrows):
        assert isinstance(stage, ability)
    assert stage.borrowed_networks().keys() == {"codec.encoder", "codec.quantizer", "codec.decoder"}
    assert config().dependencies() == (Dependency("codec", "stage.codec", "run", "runs/vq", None, needed="always"),)
    assert not isinstance(stage, Scores)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"codec\.kind=vq does not go with tokens\.kind=pixels"):
        config(tokens={"kind": "pixels"})
    with pytest.raises(ValidationError, match=r"codec\.kind=pixels does not go with tokens\.kind=codes"):
        config(codec={"kind": "pixels"})
    with pytest.raises(UserError, match=r"its autoencoder takes images of 2 × 8 × 8, and data\.channels is 1"):
        build(EMA, SHAPE._replace(channels=1))
    strided = {"width": 16, "depth": 2, "heads": 2, "attention": "strided"}
    with pytest.raises(UserError, match=r"attention=strided is for codes in raster order"):
        build(QUANTIZERS["scales"], network=strided)
    with pytest.raises(UserError, match=r"top_k 17 is more than the 16 values"):
        build(EMA, sampler={"top_k": 17})
    other = trained(EMA)._replace(stage=build(EMA), config=config())
    with pytest.raises(UserError, match=r"stage\.codec\.run: runs/vq is a run of stage\.kind=autoregressive; give one"):
        config().build(SHAPE, {"codec": other})
