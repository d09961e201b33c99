"""The verdict of `verify-resume`: each check with its figures, in lines to paste into a report."""

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
from diffpipe.plural import plural
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.verify.checkpoint_diff import Deviation, deviations, differing_tensors, read_tensors
from diffpipe.verify.resume_plan import ResumePlan
from diffpipe.verify.sample_diff import SampleRecord, count_repeated_steps, sample_differences

# Two uninterrupted runs at different world sizes differ by the order of sums. So does the run that was killed and
# resumed at other world sizes, but by chance not equally much: this many times their deviation is allowed.
FACTOR = 10.0
ROUNDING = {"fp32": 1e-7, "bf16": 1e-3, "fp16": 1e-3}  # the least deviation that counts as rounding
# The uninterrupted runs must not deviate by more than rounding does in so few steps, or the world size matters.
MAX_DEVIATION = {"fp32": 1e-2, "bf16": 0.1, "fp16": 0.1}


class KillEvent(NamedTuple):
    """A kill of all processes: the planned kill point, the step it fell in, and how training resumed.

    world, next_world: the numbers of processes before and after. resumed_from: the step of the newest checkpoint.
    """

    world: int
    planned_step: int
    fraction: float
    step: int
    resumed_from: int
    next_world: int

    def __str__(self) -> str:
        return (
            f"world {self.world} killed in step {self.step}, resumed from step {self.resumed_from} "
            f"at world {self.next_world}"
        )


class FinishedRun(NamedTuple):
    """A finished run: its kills, the samples of each attempt, and its last checkpoint."""

    name: str
    worlds: tuple[int, ...]
    kills: tuple[KillEvent, ...]
    attempts: Sequence[Sequence[SampleRecord]]
    checkpoint: Checkpoint
    seconds_per_step: float


class VerdictCheck(NamedTuple):
    """One comparison. failure: how it failed, None where it passed. figures: for verdict.json."""

    name: str
    summary: str
    failure: str | None
    figures: dict[str, Any]


class ResumeVerdict(NamedTuple):
    """All checks. about: how they were made. elastic: the world size changed, too. kept: the folder of the runs."""

    about: dict[str, Any]
    runs: Sequence[FinishedRun]
    checks: Sequence[VerdictCheck]
    elastic: bool
    kept: Path | None = None

    @property
    def exact(self) -> bool:
        return all(check.failure is None for check in self.checks)

    @property
    def conclusion(self) -> str:
        failures = [check.failure for check in self.checks if check.failure is not None]
        if failures:
            return f"NOT exact: {'; '.join(failures)}"
        return "exact and elastic" if self.elastic else "exact, at one world size: give several --worlds for more"

    def text(self) -> str:
        lines = [f"{key}: {value}" for key, value in self.about.items()]
        lines += [f"{run.name}: {'; '.join(map(str, run.kills))}" for run in self.runs if run.kills]
        lines += [
            f"{check.name}: {'ok' if check.failure is None else 'FAILED'}: {check.summary}" for check in self.checks
        ]
        lines += [] if self.kept is None else [f"runs: {self.kept}"]
        return "\n".join([*lines, f"verdict: {self.conclusion}"])

    def tree(self) -> dict[str, Any]:
        """The contents of verdict.json."""
        runs = {run.name: {"worlds": run.worlds, "kills": [kill._asdict() for kill in run.kills]} for run in self.runs}
        checks = {check.name: {"ok": check.failure is None, **check.figures} for check in self.checks}
        return {"verdict": self.conclusion, "exact": self.exact, **self.about, "runs": runs, "checks": checks}


def compare_runs(plan: ResumePlan, runs: Sequence[FinishedRun]) -> ResumeVerdict:
    """The verdict on the finished runs of a plan."""
    by_name = {run.name: run for run in runs}
    first = by_name[f"uninterrupted-{plan.first_world}"]
    checks = [check_samples(first, [run for run in runs if run is not first], plan.steps, plan.batch_size)]
    control, uninterrupted = by_name["control"], by_name[f"uninterrupted-{plan.largest_world}"]
    uninterrupted_tensors = read_tensors(uninterrupted.checkpoint)
    different = differing_tensors(uninterrupted_tensors, read_tensors(control.checkpoint))
    checks.append(check_bits(f"world {plan.largest_world}", len(uninterrupted_tensors), different))
    if "elastic" in by_name:
        first_tensors = read_tensors(first.checkpoint)
        other_tensors = uninterrupted_tensors
        if plan.other_world != plan.largest_world:
            other_tensors = read_tensors(by_name[f"uninterrupted-{plan.other_world}"].checkpoint)
        allowed = deviations(other_tensors, first_tensors)
        elastic = deviations(read_tensors(by_name["elastic"].checkpoint), first_tensors)
        worlds = f"worlds {plan.first_world} and {plan.other_world}"
        checks += [check_deviation(part, elastic[part], allowed[part], worlds, plan.precision) for part in elastic]
    return ResumeVerdict(_about(plan), runs, checks, "elastic" in by_name)


def check_samples(
    uninterrupted: FinishedRun, others: Sequence[FinishedRun], steps: int, batch_size: int
) -> VerdictCheck:
    """Every run was trained on the samples of the uninterrupted one, and resumed from its newest checkpoint."""
    failures = []
    for run in (uninterrupted, *others):
        differences = sample_differences(uninterrupted.attempts[0], run.attempts, steps, batch_size)
        for i, kill in enumerate(run.kills, 1):
            began = min((record.step for record in run.attempts[i]), default=kill.resumed_from)
            if began != kill.resumed_from:
                newest = f"the newest checkpoint was of step {kill.resumed_from}"
                differences.append(f"attempt {i + 1} began in step {began}, and {newest}")
        failures += [f"{run.name}: {difference}" for difference in differences]
    repeated = sum(count_repeated_steps(run.attempts) for run in others)
    summary = (
        f"{plural(steps, 'step')} of {batch_size} in {plural(1 + len(others), 'run')}, {plural(repeated, 'step')} "
        "trained again after a kill"
    )
    if not failures:
        summary += "; no sample lost, repeated or different"
        return VerdictCheck("same samples", summary, None, {"repeated_steps": repeated})
    more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    return VerdictCheck("same samples", summary, failures[0] + more, {"failures": failures})


def check_bits(where: str, total: int, different: Sequence[str]) -> VerdictCheck:
    """The run that was killed and resumed at one world size ended with the same bits."""
    summary = (
        f"{where}, killed and resumed: {total - len(different)} of {plural(total, 'tensor is', 'tensors are')} "
        "identical"
    )
    figures = {"tensors": total, "different": list(different)}
    failure = None
    if different:
        failure = (
            f"{where}, killed and resumed, differs in {plural(len(different), 'tensor')}, {different[0]} the first"
        )
    return VerdictCheck("same bits", summary, failure, figures)


def check_deviation(
    part: str, deviation: Deviation, uninterrupted: Deviation, worlds: str, precision: str
) -> VerdictCheck:
    """The run that was resumed at other world sizes deviates by no more than the order of sums explains.

    uninterrupted: the deviation between two uninterrupted runs at different world sizes.
    """
    allowed = FACTOR * max(uninterrupted.value, ROUNDING[precision])
    summary = f"{deviation.value:.1e} of a tensor's scale from the uninterrupted run; {worlds} without a kill are "
    summary += f"{uninterrupted.value:.1e} apart, so {allowed:.1e} is allowed"
    failure = None
    if not uninterrupted.value <= MAX_DEVIATION[precision]:
        failure = (
            f"{part} of {worlds} without a kill are {uninterrupted.value:.1e} apart in {uninterrupted.tensor}, "
            f"more than {MAX_DEVIATION[precision]:.0e}: more than the order of sums explains"
        )
    elif not deviation.value <= allowed:
        failure = (
            f"{part} are {deviation.value:.1e} apart in {deviation.tensor}, where the order of sums explains "
            f"{allowed:.1e}"
        )
    numbers = {"deviation": deviation.value, "uninterrupted": uninterrupted.value, "allowed": allowed}
    figures = {name: value if math.isfinite(value) else None for name, value in numbers.items()}  # JSON has no infinity
    figures |= {"tensor": deviation.tensor, "uninterrupted_tensor": uninterrupted.tensor}
    return VerdictCheck(part, summary, failure, figures)


def _about(plan: ResumePlan) -> dict[str, Any]:
    """The head of the verdict: versions, device, config and world sizes."""
    gpus = "" if plan.threads else f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    return {
        "versions": f"diffpipe {__version__}, torch {torch.__version__}, accelerate {version('accelerate')}, "
        f"python {platform.python_version()}",
        "device": gpus or f"cpu, {plural(os.cpu_count() or 1, 'core')}, one thread per process",
        "config": " ".join((plan.config, *plan.overrides)),
        "with": " ".join(plan.forced_overrides),
        "worlds": f"{', '.join(map(str, plan.worlds))}; kill points from seed {plan.seed}",
    }
