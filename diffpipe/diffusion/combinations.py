"""Which predictions, schedules and losses go together."""

from __future__ import annotations

from typing import Any

from diffpipe.diffusion.continuous import EDMScheduleConfig, FlowScheduleConfig
from diffpipe.diffusion.parameterization import Prediction
from diffpipe.diffusion.schedule import DiscreteScheduleConfig

ScheduleConfig = DiscreteScheduleConfig | EDMScheduleConfig | FlowScheduleConfig

_GOES_WITH = {"edm": ("edm",), "flow": ("flow", "x0")}
"""The predictions of the schedules without timesteps. Those with timesteps have eps, x0 and v."""


def default_schedule(prediction: object) -> str:
    """The kind of schedule where a config names none."""
    return str(prediction) if prediction in ("edm", "flow") else "linear"


def with_schedule_kind(tree: dict[str, Any]) -> dict[str, Any]:
    """The config of a diffusion with the kind of its schedule, where it names none."""
    schedule = tree.get("schedule", {})
    if not isinstance(schedule, dict) or "kind" in schedule:
        return tree
    return {**tree, "schedule": {"kind": default_schedule(tree.get("prediction")), **schedule}}


def problem(
    prediction: Prediction, schedule: ScheduleConfig, *, learned_variance: bool, one_sided_ends: bool
) -> str | None:
    """A line on what does not go together, with the remedy, or None."""
    allowed = _GOES_WITH.get(schedule.kind, ("eps", "x0", "v"))
    if prediction not in allowed:
        names = " or ".join(allowed)
        return f"prediction {prediction} does not go with schedule.kind {schedule.kind}: it takes {names}"
    if isinstance(schedule, DiscreteScheduleConfig):
        if schedule.zero_terminal_snr and prediction == "eps":
            return "schedule.zero_terminal_snr leaves nothing that eps could tell; set prediction=v or x0"
    elif learned_variance:
        return f"learned_variance needs a schedule with timesteps, and schedule.kind {schedule.kind} has none"
    if one_sided_ends and prediction != "x0":
        return (
            f"one_sided_ends is about a predicted image, and prediction {prediction} is none; set prediction=x0, or "
            "leave it out"
        )
    return None
