"""Complaints about a config: one sentence for each wrong value, with the nearest name where there is one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diffpipe.config.complaints import complaints
from diffpipe.config.differences import flatten
from diffpipe.config.reference import choices
from diffpipe.experiment.config import Experiment
from tests.support.stage_cases import CASES


def sentences(change: dict[str, Any]) -> list[str]:
    """The sentences about a config of a diffusion in which these dotted keys have these values."""
    tree = CASES["ddpm"].experiment().model_dump(mode="json")
    for key, value in change.items():
        *sections, leaf = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate(tree)
    return [complaint.sentence for complaint in complaints(Experiment, caught.value)]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train.steps", "many", "train.steps is 'many'; give an integer ≥ 1"),
        ("train.steps", 1.5, "train.steps is 1.5; give an integer ≥ 1"),
        ("optimizer.lr", float("nan"), "optimizer.lr is nan; give a number > 0"),
        ("train.shard_size", 0, "train.shard_size is 0; give an integer ≥ 1 or null"),
        ("optimizer.betas", [0.9], "optimizer.betas is [0.9]; give [float, float]"),
        ("eval.metrics", [1], "eval.metrics.0 is 1; eval.metrics takes a list of str"),
        ("data.train", [1, 2], "data.train is [1, 2]; give text or a list of str or null"),
        ("run.dir", None, "run.dir is null; give text"),
        ("run.name", "", "run.name is '': string should have at least 1 character"),
        ("stage.network", 5, "stage.network is 5; it is a section with keys of its own, such as stage.network.kind"),
        ("data.sources", 5,
         "data.sources is 5; it is a list of sections with keys of its own, such as data.sources.0.url"),
        ("train.precision", "BF16",
         "train.precision is 'BF16'; give 'auto', 'fp32', 'bf16' or 'fp16'; did you mean bf16?"),
        ("data.channels", 2, "data.channels is 2; give 1 or 3"),
        ("ema.kind", "clasical", "ema.kind is 'clasical'; it is one of 'classical', 'power'; did you mean classical?"),
        ("steps", 9, "unknown key steps; did you mean train.steps?"),
        ("trian", {"steps": 9}, "unknown key trian; did you mean train?"),
        ("train.lr", 1e-4, "unknown key train.lr; did you mean optimizer.lr?"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_is_wrong_where_and_what_to_give(key: str, value: Any, sentence: str) -> None:
    assert sentences({key: value}) == [sentence]


def test_a_key_of_another_kind_is_answered_with_those_of_this_one() -> None:
    (sentence,) = sentences({"stage.perceptual": {}})
    assert sentence.startswith("unknown key stage.perceptual in section stage; known: codec, conditional, ")


def test_a_section_without_its_kind_is_answered_with_all_kinds() -> None:
    tree = CASES["ddpm"].experiment().model_dump(mode="json")
    del tree["stage"]["kind"]
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate(tree)
    (complaint,) = complaints(Experiment, caught.value)
    assert complaint.key == "stage"
    assert complaint.sentence.startswith("stage.kind is missing; it is one of 'adversarial', 'autoencoder', ")


OWN = flatten(CASES["ddpm"].experiment().model_dump(mode="json")).keys() - {"stage.network.attention"}  # a list here
OF_A_FEW = [key for key, words in choices(Experiment).items() if key in OWN and {*words} - {"true", "false"}]


@pytest.mark.parametrize("key", ["stage.kind", "stage.network.kind", "stage.codec.kind", *OF_A_FEW])
def test_every_word_that_is_one_of_a_few_is_answered_with_the_nearest(key: str) -> None:
    kinds = {"stage.kind": ["ddpm", "flow"], "stage.network.kind": ["unet", "dit"], "stage.codec.kind": ["pixels"]}
    for word in kinds.get(key) or choices(Experiment)[key]:
        wrong = f"{word}{word[-1]}"
        (sentence,) = sentences({key: wrong})
        assert sentence.startswith(f"{key} is {wrong!r}; ")
        assert f"; did you mean {word}" in sentence
