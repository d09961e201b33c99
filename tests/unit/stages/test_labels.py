"""The labels that a stage conditions on: the given ones, random ones, none, or an error."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.resolution import square
from diffpipe.rng import KeyedRNG
from diffpipe.stages.labels import (
    conditional_classes,
    dropped_labels,
    labels_to_generate,
    repeated,
    required_labels,
)

LABELS = torch.tensor([2, 0, 1])


def test_a_conditional_stage_has_the_datas_classes_and_any_other_has_none() -> None:
    assert conditional_classes(True, ImageShape(1, square(8), 10)) == 10
    assert conditional_classes(False, ImageShape(1, square(8), 10)) == 0
    assert conditional_classes(False, ImageShape(1, square(8))) == 0
    with pytest.raises(UserError, match=r"stage\.conditional needs labels.*set data\.labels=true"):
        conditional_classes(True, ImageShape(1, square(8)))


def test_a_stage_without_classes_sees_no_labels_and_one_with_classes_needs_them() -> None:
    assert required_labels(0, LABELS) is None
    assert required_labels(3, LABELS) is LABELS
    with pytest.raises(UserError, match=r"is class-conditional and the images have no labels; set data\.labels=true"):
        required_labels(3, None)


def test_labels_are_drawn_uniformly_and_by_position_where_none_are_given() -> None:
    n, classes = 6000, 5
    rng = KeyedRNG(1, torch.arange(n))
    assert labels_to_generate(0, None, rng) is None
    assert labels_to_generate(3, LABELS, KeyedRNG(1, torch.arange(3))) is LABELS
    labels = labels_to_generate(classes, None, rng)
    assert labels is not None
    assert chisquare(labels.bincount(minlength=classes).numpy()).pvalue > 0.01
    some = labels_to_generate(classes, None, KeyedRNG(1, torch.tensor([17, 4000])))
    assert some is not None
    assert torch.equal(some, labels[[17, 4000]])


def test_a_condition_is_repeated_for_real_and_generated_images_together() -> None:
    assert repeated(None, 6) is None
    condition = repeated(LABELS, 6)
    assert condition is not None
    assert condition.tolist() == [2, 0, 1, 2, 0, 1]


def test_a_share_of_the_labels_is_hidden_by_position() -> None:
    rng, labels = KeyedRNG(0, torch.arange(2000)), torch.arange(2000) % 3
    dropped = dropped_labels(labels, 3, 0.25, rng)
    assert dropped is not None
    hidden = dropped == 3
    assert torch.equal(dropped[~hidden], labels[~hidden])
    assert 0.22 < hidden.float().mean() < 0.28
    alone = dropped_labels(labels[7:8], 3, 0.25, KeyedRNG(0, torch.tensor([7])))
    assert alone is not None
    assert alone.item() == dropped[7].item()
    assert dropped_labels(None, 3, 0.25, rng) is None
