"""The levels of a network: what their config refuses, and the resolution of the lowest."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from diffpipe.errors import UserError
from diffpipe.nn.autoencoder import CoderConfig
from diffpipe.nn.discriminator import DiscriminatorConfig
from diffpipe.nn.generator import GeneratorConfig
from diffpipe.nn.levels import LevelsConfig, NormalizedLevelsConfig
from diffpipe.nn.unet import UNetConfig
from diffpipe.resolution import square


@pytest.mark.parametrize("config", [CoderConfig, DiscriminatorConfig, GeneratorConfig, UNetConfig])
def test_groups_have_to_divide_the_channels_of_every_network(config: type[NormalizedLevelsConfig]) -> None:
    assert config.model_validate({"channels": 24, "groups": 8}).groups == 8
    with pytest.raises(ValidationError, match="channels 24 must be a multiple of groups 16"):
        config.model_validate({"channels": 24, "groups": 16})


def test_heads_have_to_divide_the_unets_channels() -> None:
    with pytest.raises(ValidationError, match="channels 24 must be a multiple of heads 5"):
        UNetConfig(channels=24, groups=8, heads=5)


def test_every_level_but_the_first_halves_the_resolution() -> None:
    for levels, lowest in ((1, 24), (2, 12), (3, 6), (4, 3)):
        assert LevelsConfig(channel_mult=(1,) * levels).lowest(square(24), "channel_mult") == square(lowest)
    with pytest.raises(UserError) as error:
        LevelsConfig(channel_mult=(1, 1, 1, 1, 1)).lowest(square(24), "stage.a.channel_mult")
    assert str(error.value) == (
        "data.resolution 24 cannot be halved 4 times for stage.a.channel_mult [1, 1, 1, 1, 1]; "
        "take a multiple of 16 or fewer levels"
    )
