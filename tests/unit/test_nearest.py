"""The nearest of the known names, for a word that is none of them."""

from __future__ import annotations

import pytest

from diffpipe.nearest import did_you_mean, nearest

SAMPLERS = ("ancestral", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "edm", "euler", "heun", "unipc")


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("ddmi", ["ddim"]),
        ("HEUN", ["heun"]),
        ("dpm", ["dpmpp_2m", "dpmpp_2m_sde"]),
        ("dpmpp_2", ["dpmpp_2m", "dpmpp_2m_sde"]),
        ("2m_sde", ["dpmpp_2m_sde"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_names_that_begin_with_the_word_come_before_those_that_are_like_it(word: str, names: list[str]) -> None:
    assert nearest(word, SAMPLERS) == names
    assert nearest(word, SAMPLERS, n=1) == names[:1]


def test_it_is_a_question_or_nothing() -> None:
    assert did_you_mean("dpm", SAMPLERS) == "did you mean dpmpp_2m or dpmpp_2m_sde?"
    assert did_you_mean("zzz", SAMPLERS) is None
    assert did_you_mean("2", (1, 3)) is None
