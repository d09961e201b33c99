"""Each prediction with each schedule: what goes together builds, what does not is refused with what does."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from diffpipe.diffusion.combinations import ScheduleConfig, default_schedule, problem
from diffpipe.diffusion.parameterization import Prediction

KINDS = ("linear", "scaled_linear", "cosine", "sigmoid", "edm", "flow")
TOGETHER = {("edm", "edm"), ("flow", "flow"), ("x0", "flow")} | {
    (prediction, kind) for prediction in ("eps", "x0", "v") for kind in KINDS[:4]
}


def schedule(**keys: Any) -> ScheduleConfig:
    return TypeAdapter(ScheduleConfig).validate_python(keys)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_what_does_not_go_together_is_refused_with_what_does(prediction: Prediction, kind: str) -> None:
    found = problem(prediction, schedule(kind=kind), learned_variance=False, one_sided_ends=False)
    if (prediction, kind) in TOGETHER:
        assert found is None
    else:
        assert found is not None
        allowed = found.partition("it takes ")[2].split(" or ")
        assert set(allowed) == {other for other, of in TOGETHER if of == kind}


@pytest.mark.parametrize("prediction", get_args(Prediction))
def test_the_default_schedule_goes_with_the_prediction(prediction: Prediction) -> None:
    default = schedule(kind=default_schedule(prediction))
    assert problem(prediction, default, learned_variance=False, one_sided_ends=False) is None


@pytest.mark.parametrize(
    ("prediction", "keys", "settings", "refused"),
    [
        ("eps", {"kind": "linear", "zero_terminal_snr": True}, {}, "set prediction=v or x0"),
        ("v", {"kind": "linear", "zero_terminal_snr": True}, {}, None),
        ("flow", {"kind": "flow"}, {"learned_variance": True}, "needs a schedule with timesteps"),
        ("eps", {"kind": "cosine"}, {"learned_variance": True}, None),
        ("v", {"kind": "cosine"}, {"one_sided_ends": True}, "prediction v is none; set prediction=x0"),
        ("x0", {"kind": "flow"}, {"one_sided_ends": True}, None),
    ],
)
def test_settings_that_need_a_schedule_or_a_prediction(
    prediction: Prediction, keys: dict[str, Any], settings: dict[str, bool], refused: str | None
) -> None:
    found = problem(prediction, schedule(**keys), **({"learned_variance": False, "one_sided_ends": False} | settings))
    assert found is None if refused is None else refused in str(found)
