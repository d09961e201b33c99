"""The verdict of `verify-resume`: each check with its figure, in lines to paste into a report."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffpipe import __version__
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.verify.checkpoint_diff import (
    Deviation,
    Record,
    deviations,
    different_bits,
    different_samples,
    read_tensors,
    trained_again,
)
from diffpipe.verify.resume_plan import Plan

# The run whose world size changed may be this many times as far from the straight one as a run that was never killed
# at another world size is: both differ from it by the order of sums alone, which is chance.
FACTOR = 10.0
LEAST = {"fp32": 1e-7, "bf16": 1e-3, "fp16": 1e-3}  # rounding, however short the yardstick happens to be
# That yardstick itself must not be longer than rounding makes it in so few steps: else the world size matters.
MOST = {"fp32": 1e-2, "bf16": 0.1, "fp16": 0.1}


class Kill(NamedTuple):
    """A kill of all processes: the world size, the drawn moment, the step it fell in, and how training went on."""

    world: int
    drawn: int
    share: float
    step: int
    saved: int
    then: int

    def __str__(self) -> str:
        return f"world {self.world} killed in step {self.step}, on from step {self.saved} at world {self.then}"


class Trained(NamedTuple):
    """A finished run: what each attempt at it saw, and its last checkpoint. pace: seconds a step."""

    name: str
    worlds: tuple[int, ...]
    kills: tuple[Kill, ...]
    attempts: Sequence[Sequence[Record]]
    checkpoint: Checkpoint
    pace: float


class Check(NamedTuple):
    """One comparison. complaint: what is wrong, None if nothing is. figures: for programs."""

    name: str
    says: str
    complaint: str | None
    figures: dict[str, Any]


class Verdict(NamedTuple):
    """All of it."""

    about: dict[str, Any]
    runs: Sequence[Trained]
    checks: Sequence[Check]
    elastic: bool

    @property
    def exact(self) -> bool:
        return all(check.complaint is None for check in self.checks)

    @property
    def conclusion(self) -> str:
        wrong = [check.complaint for check in self.checks if check.complaint is not None]
        if wrong:
            return f"NOT exact: {'; '.join(wrong)}"
        return "exact and elastic" if self.elastic else "exact, at one world size: give several --worlds for more"

    def text(self, runs: Path | None) -> str:
        lines = [f"{key}: {value}" for key, value in self.about.items()]
        lines += [f"{run.name}: {'; '.join(map(str, run.kills))}" for run in self.runs if run.kills]
        lines += [
            f"{check.name}: {'ok' if check.complaint is None else 'FAILED'}: {check.says}" for check in self.checks
        ]
        lines += [] if runs is None else [f"runs: {runs}"]
        return "\n".join([*lines, f"verdict: {self.conclusion}"])

    def tree(self) -> dict[str, Any]:
        """What there is to say, for JSON."""
        runs = {run.name: {"worlds": run.worlds, "kills": [kill._asdict() for kill in run.kills]} for run in self.runs}
        checks = {check.name: {"ok": check.complaint is None, **check.figures} for check in self.checks}
        return {"verdict": self.conclusion, "exact": self.exact, **self.about, "runs": runs, "checks": checks}


def judge(plan: Plan, runs: Sequence[Trained]) -> Verdict:
    """Compare the runs of the plan's trainings."""
    by_name = {run.name: run for run in runs}
    straight = by_name[f"straight-{plan.first}"]
    checks = [samples(straight, [run for run in runs if run is not straight], plan.steps, plan.batch_size)]
    control, unbroken = by_name["control"], by_name[f"straight-{plan.most}"]
    before = read_tensors(unbroken.checkpoint)
    different = different_bits(before, read_tensors(control.checkpoint))
    checks.append(bits(f"world {plan.most}", len(before), different))
    if "elastic" in by_name:
        first = read_tensors(straight.checkpoint)
        other = before if plan.other == plan.most else read_tensors(by_name[f"straight-{plan.other}"].checkpoint)
        yardstick = deviations(other, first)
        apart = deviations(read_tensors(by_name["elastic"].checkpoint), first)
        between = f"worlds {plan.first} and {plan.other}"
        checks += [distance(part, apart[part], yardstick[part], between, plan.precision) for part in apart]
    return Verdict(_about(plan), runs, checks, "elastic" in by_name)


def samples(straight: Trained, others: Sequence[Trained], steps: int, batch_size: int) -> Check:
    """Whether every run saw what the straight one did."""
    complaints = []
    for run in (straight, *others):
        found = different_samples(straight.attempts[0], run.attempts, steps, batch_size)
        for i, kill in enumerate(run.kills, 1):
            began = min((record.step for record in run.attempts[i]), default=kill.saved)
            if began != kill.saved:
                found.append(
                    f"attempt {i + 1} began in step {began}, and the newest checkpoint was of step {kill.saved}"
                )
        complaints += [f"{run.name}: {complaint}" for complaint in found]
    again = sum(trained_again(run.attempts) for run in others)
    says = f"{steps} steps of {batch_size} in {1 + len(others)} runs, {again} steps trained again after a kill"
    if not complaints:
        return Check("same samples", f"{says}; none lost, repeated or another", None, {"trained_again": again})
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return Check("same samples", says, complaints[0] + more, {"complaints": complaints})


def bits(where: str, total: int, different: Sequence[str]) -> Check:
    """Whether killed and resumed at one world size ended with the same bits."""
    says = f"{where}, killed and resumed: {total - len(different)} of {total} tensors are identical"
    figures = {"tensors": total, "different": list(different)}
    complaint = None
    if different:
        complaint = f"{where}, killed and resumed, differs in {len(different)} tensors, {different[0]} the first"
    return Check("same bits", says, complaint, figures)


def distance(part: str, apart: Deviation, yardstick: Deviation, between: str, precision: str) -> Check:
    """Whether resumed at other world sizes differs by the order of sums alone."""
    allowed = FACTOR * max(yardstick.value, LEAST[precision])
    says = f"{apart.value:.1e} of a tensor's scale from the straight run; {between} without a kill are "
    says += f"{yardstick.value:.1e} apart, so {allowed:.1e} is allowed"
    complaint = None
    if not yardstick.value <= MOST[precision]:
        complaint = (
            f"{part} of {between} without a kill are {yardstick.value:.1e} apart in {yardstick.tensor}, more than "
            f"{MOST[precision]:.0e}: more than the order of sums"
        )
    elif not apart.value <= allowed:
        complaint = f"{part} are {apart.value:.1e} apart in {apart.tensor}, where {allowed:.1e} is the order of sums"
    numbers = {"apart": apart.value, "yardstick": yardstick.value, "allowed": allowed}
    figures = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no infinity
    figures |= {"tensor": apart.tensor, "yardstick_tensor": yardstick.tensor}
    return Check(part, says, complaint, figures)


def _about(plan: Plan) -> dict[str, Any]:
    """How it was made: the head of the verdict."""
    gpus = "" if plan.threads else f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return {
        "versions": f"diffpipe {__version__}, torch {torch.__version__}, accelerate {version('accelerate')}, "
        f"python {platform.python_version()}",
        "device": gpus or f"cpu, {os.cpu_count()} cores, one thread a process",
        "config": " ".join((plan.config, *plan.overrides)),
        "laid over it": " ".join(plan.laid_over),
        "worlds": f"{', '.join(map(str, plan.worlds))}; moments of the kills from seed {plan.seed}",
    }
