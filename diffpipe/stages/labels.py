"""The class labels that a stage conditions on."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from diffpipe.errors import UserError
from diffpipe.interfaces import ImageShape
from diffpipe.rng import RNG


def conditional_classes(conditional: bool, shape: ImageShape) -> int:
    """The number of classes that a stage conditions on, 0 for none. Raises UserError where the data has no labels."""
    if conditional and not shape.classes:
        raise UserError("stage.conditional needs labels and the data has none; set data.labels=true")
    return shape.classes if conditional else 0


def required_labels(classes: int, labels: Int[Tensor, " b"] | None) -> Int[Tensor, " b"] | None:
    """The labels that a stage with so many classes is given: None for none. Raises UserError where they are missing."""
    if classes and labels is None:
        raise UserError("this stage is class-conditional and the images have no labels; set data.labels=true")
    return labels if classes else None


def dropped_labels(labels: Int[Tensor, " b"] | None, classes: int, share: float, rng: RNG) -> Int[Tensor, " b"] | None:
    """The labels with that share of them hidden: the label `classes` means none."""
    return None if labels is None else torch.where(rng.uniform("label_dropout") < share, classes, labels)


def labels_to_generate(classes: int, labels: Int[Tensor, " b"] | None, rng: RNG) -> Int[Tensor, " b"] | None:
    """The labels to generate by: those given, else random ones. None for a stage without classes."""
    if not classes:
        return None
    return rng.integers("label", classes) if labels is None else labels


def repeated(condition: Int[Tensor, " b"] | None, n: int) -> Int[Tensor, " n"] | None:
    """The condition of b samples, repeated for n images of them: real ones, then as many generated ones."""
    return None if condition is None else condition.repeat(n // len(condition))
