"""Findings: what would break a job or make it slow, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

from diffpipe.errors import MOST_FAULTS, UserError, as_user_error
from diffpipe.plural import plural
from diffpipe.train.distributed import Communicator

T = TypeVar("T")
Level = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """error: the job would not start, or would end before its last step. warning: it would be slow, or may fail.

    message: what is wrong and, after its last semicolon or colon, what to do: the words that `train` would refuse with.
    """

    level: Level
    message: str

    @property
    def problem(self) -> str:
        """The part before the remedy."""
        return self._parts()[0]

    @property
    def remedy(self) -> str:
        """The part that says what to do."""
        return self._parts()[1]

    def _parts(self) -> tuple[str, str]:
        separator = next((mark for mark in ("; ", ": ", ", ") if mark in self.message), ". ")
        problem, _, remedy = self.message.rpartition(separator)
        return problem, remedy


@dataclass
class Diagnosis:
    """The findings, and by subject what was checked, in words."""

    comm: Communicator = field(default_factory=Communicator)
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    checked: dict[str, str] = field(default_factory=dict)

    def add(self, subject: str, *findings: Finding | None) -> None:
        """Add findings on a subject, each once; None is no finding."""
        known = {finding for _, finding in self.findings}
        self.findings += [(subject, finding) for finding in dict.fromkeys(findings) if finding and finding not in known]

    def attempt(self, subject: str, action: Callable[[], T]) -> T | None:
        """The result of `action`, or None where it raises a UserError, which is an error on the subject. A collective.

        Memory that cannot be had and a disk that fails count, too.
        """

        def reported() -> T:
            try:
                return action()
            except Exception as error:
                user_error = as_user_error(error)
                if user_error is None or user_error is error:
                    raise
                raise user_error from error

        try:
            return self.comm.raise_on_all_ranks(reported)
        except UserError as error:
            faults = error.faults or [str(error)]
            self.add(subject, *(Finding("error", " ".join(fault.split())) for fault in faults))
            if len(faults) == MOST_FAULTS:
                words = f"{MOST_FAULTS} errors of the {subject} are listed, and there may be more"
                self.add(subject, Finding("note", f"{words}; run the same command again when they are corrected"))
            return None

    @property
    def errors(self) -> int:
        """The number of errors."""
        return sum(finding.level == "error" for _, finding in self.findings)

    def text(self) -> str:
        """A line for each finding, and one for each subject that was checked."""
        levels = ("error", "warning", "note")
        lines = [f"{finding.level}: {finding.message}" for _, finding in self._sorted()]
        lines += [f"{subject}: {words}" for subject, words in self.checked.items()]
        counts = [sum(finding.level == level for _, finding in self.findings) for level in levels]
        named = [plural(n, level) for n, level in zip(counts, levels, strict=True) if n]
        return "\n".join([*lines, ", ".join(named) or "nothing is wrong"])

    def as_dict(self) -> dict[str, Any]:
        """The same for programs: `ok`, `findings` and `checked`."""
        rows = [
            {"level": f.level, "subject": subject, "problem": f.problem, "remedy": f.remedy}
            for subject, f in self._sorted()
        ]
        return {"ok": not self.errors, "findings": rows, "checked": self.checked}

    def _sorted(self) -> list[tuple[str, Finding]]:
        """The findings, errors first."""
        order = ("error", "warning", "note")
        return sorted(self.findings, key=lambda row: order.index(row[1].level))
