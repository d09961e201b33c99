"""Which stages have a coder: those with a likelihood of pixels that codes them."""

from __future__ import annotations

import pytest

from diffpipe.coding.image_coder import Compresses, ImageCoder
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from tests.support.stage_cases import CASES

CODES = {"vae", "ddpm", "autoregressive", "flow"}


@pytest.mark.parametrize("case", CASES)
def test_stages_with_a_likelihood_of_pixels_have_a_coder(case: str) -> None:
    experiment = CASES[case].experiment()
    if experiment.stage.dependencies():
        pytest.skip("it needs another run")
    stage = experiment.stage.build(ImageShape(1, square(8), 10), {})
    assert isinstance(stage, Compresses) == (experiment.stage.kind in CODES)
    if isinstance(stage, Compresses) and case != "flow, variational":
        assert isinstance(stage.image_coder(stage.networks()), ImageCoder)
