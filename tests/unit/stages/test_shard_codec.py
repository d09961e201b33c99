"""Which runs encode shards, and the words for their codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.dependency import TrainedStage
from diffpipe.errors import UserError
from diffpipe.stages.codes import CodeCodec
from diffpipe.stages.latents import LatentCodec
from diffpipe.stages.shard_codec import shard_codec
from tests.support.stage_cases import CASES, SHAPE


def trained(case: str) -> TrainedStage:
    config = CASES[case].experiment().stage
    stage = config.build(SHAPE, {})
    return TrainedStage(Path("runs/photos/checkpoints/step-00000001"), config, SHAPE, stage, stage.networks(), None)


def test_a_vae_encodes_latents_and_a_vector_quantized_autoencoder_codes() -> None:
    codec = shard_codec(trained("latent_vae"))
    assert isinstance(codec, LatentCodec)
    shape = codec.vae.latent_shape
    assert codec.encoded == (f"latents of {shape[0]}x{shape[1]}x{shape[2]}", {"latent_shape": shape})
    codec = shard_codec(trained("vq"))
    assert isinstance(codec, CodeCodec)
    assert codec.encoded == (f"{codec.grid.tokens} codes each", {"codes": codec.grid.tokens})


def test_a_run_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"runs/photos is a run of stage\.kind=ddpm, which encodes no shards; give one"):
        shard_codec(trained("ddpm"))
    with pytest.raises(UserError, match="its VAE is class-conditional"):
        shard_codec(trained("vae"))
