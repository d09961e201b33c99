"""The tensors of a source compared with those of our networks, without values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.initial_fit import Fit, fit
from tests.support.stage_cases import CASES


def networks() -> dict[str, nn.Module]:
    return {"one": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), "two": nn.BatchNorm1d(2)}


def tensors(**changes: tuple[int, ...]) -> dict[str, Tensor]:
    """Those of `networks`. changes: other shapes, under names with `__` for a dot; (): left out."""
    ours = {f"{name}.{key}": tensor for name, net in networks().items() for key, tensor in net.state_dict().items()}
    shapes = {name.replace("__", "."): shape for name, shape in changes.items()}
    return {n: t for n, t in ours.items() if n not in shapes} | {n: torch.empty(s) for n, s in shapes.items() if s}


def config(*words: str) -> Experiment:
    return CASES["ddpm"].experiment("run.init=somewhere", *words)


def compared(there: dict[str, Tensor], *words: str) -> Fit:
    return fit(there, networks(), config(), config(*words))


def test_all_tensors_and_buffers_are_loaded() -> None:
    result = compared(tensors())
    assert (result.loaded, result.fresh, result.unused) == (list(tensors()), [], [])
    assert result.sentences() == ["9 tensors of one, two loaded"]


def test_chosen_networks_alone_are_loaded_and_networks_of_the_source_alone_are_not_used() -> None:
    there = tensors(two__weight=()) | {"three.weight": torch.empty(1)}
    result = compared(there, "init.networks=[one]")
    assert {name.partition(".")[0] for name in result.loaded} == {"one"}
    assert "two.weight" in result.fresh
    assert "three.weight" in result.unused
    assert compared(tensors() | {"three.weight": torch.empty(1)}).unused == ["three.weight"]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (tensors(one__0__weight=()), "missing: one.0.weight; change the stage section, or set init.fresh=[one.0] to "),
        (tensors(one__0__bias=(4,)), "of other shape: one.0.bias ([4] there, [3] here); "),
        (tensors(one__7__bias=(4,)), "not known here: one.7.bias; change the stage section, or set init.strict=false"),
    ],
)
def test_a_mismatch_names_the_tensors_and_the_remedy(there: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError) as refused:
        compared(there)
    assert message in str(refused.value)
    result = compared(there, "init.strict=false")
    assert len(result.loaded) >= 8
    assert len(result.sentences()) == 2


def test_many_names_are_counted() -> None:
    there = {name: tensor for name, tensor in tensors().items() if name.startswith("one")}
    with pytest.raises(UserError, match=r"missing: two\.weight, two\.bias, two\.running_mean and 2 more; "):
        compared(there)


def test_what_starts_fresh_may_be_missing_of_other_shape_or_unknown_here() -> None:
    there = tensors(one__0__bias=(4,), two__weight=(), one__0__scale=(2,))
    result = compared(there, "init.fresh=[one.0, two.weight]")
    assert result.fresh == ["one.0.weight", "one.0.bias", "two.weight"]
    assert result.sentences()[1:] == [
        "starts fresh: one.0.weight, one.0.bias, two.weight",
        "not used: one.0.scale",
    ]


def test_weights_of_which_nothing_fits_are_refused_at_any_rate() -> None:
    with pytest.raises(UserError, match="give the weights of such networks, or change the stage section"):
        compared({"one.0.weight": torch.empty(9)}, "init.strict=false")
