"""Findings: their remedy is the end of their sentence, and a refusal is one of them."""

from __future__ import annotations

from diffpipe.errors import UserError
from diffpipe.experiment.doctor.findings import Diagnosis, Finding


def test_the_remedy_is_what_follows_the_last_semicolon_or_else_the_last_colon() -> None:
    finding = Finding("error", "a.tar: 3 bytes, and 4 in the index; restore it, or run: diffpipe index shards")
    assert finding.problem == "a.tar: 3 bytes, and 4 in the index"
    assert finding.remedy == "restore it, or run: diffpipe index shards"
    assert Finding("error", "another job trains in runs/a: wait for it").remedy == "wait for it"


def test_a_refusal_is_an_error_and_the_report_begins_with_what_is_worst() -> None:
    def refuse() -> None:
        raise UserError("no index;\nwrite one")

    def fill() -> None:
        raise MemoryError

    assert Diagnosis().attempt("memory", fill) is None
    diagnosis = Diagnosis()
    diagnosis.add("device", None, Finding("warning", "slow; be quick"), Finding("warning", "slow; be quick"))
    assert diagnosis.attempt("data", lambda: 3) == 3
    assert diagnosis.errors == 0
    assert diagnosis.attempt("data", refuse) is None
    diagnosis.checked["device"] = "cpu"
    assert diagnosis.errors == 1
    text = "error: no index; write one\nwarning: slow; be quick\ndevice: cpu\n1 error, 1 warning"
    assert diagnosis.text() == text
    assert diagnosis.as_dict() == {
        "ok": False,
        "findings": [
            {"level": "error", "subject": "data", "problem": "no index", "remedy": "write one"},
            {"level": "warning", "subject": "device", "problem": "slow", "remedy": "be quick"},
        ],
        "checked": {"device": "cpu"},
    }
    assert Diagnosis().text() == "nothing is wrong"
