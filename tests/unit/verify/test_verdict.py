"""The verdict names the check that failed, and a check fails where it should."""

from __future__ import annotations

import json
from pathlib import Path

from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.verify.checkpoint_diff import Deviation
from diffpipe.verify.verdict import FinishedRun, KillEvent, ResumeVerdict, check_bits, check_deviation, check_samples
from tests.support.run_states import run_state
from tests.support.sample_records import BATCH, STEPS, UNINTERRUPTED, attempt


def test_an_attempt_that_began_elsewhere_than_the_newest_checkpoint_is_found() -> None:
    unread = Checkpoint(Path(), run_state(0), "")
    uninterrupted = FinishedRun("uninterrupted-1", (1,), (), [UNINTERRUPTED], unread, 0.1)
    pieces = [attempt(0, 5, 1), attempt(2, STEPS, 2)]
    for resumed_from, failure in ((2, None), (4, "began in step 2, and the newest checkpoint was of step 4")):
        elastic = FinishedRun("elastic", (1, 2), (KillEvent(1, 4, 0.5, 4, resumed_from, 2),), pieces, unread, 0.1)
        actual = check_samples(uninterrupted, [elastic], STEPS, BATCH).failure
        assert actual is None if failure is None else failure in str(actual)


def test_uninterrupted_runs_that_deviate_beyond_rounding_fail_the_check() -> None:
    check = check_deviation(
        "weights", Deviation(0.05, "net.unet.w"), Deviation(0.04, "net.unet.w"), "worlds 1 and 2", "fp32"
    )
    assert "worlds 1 and 2 without a kill are 4.0e-02 apart in net.unet.w" in str(check.failure)
    nan = check_deviation("weights", Deviation(0.0, ""), Deviation(float("nan"), ""), "worlds 1 and 2", "fp32")
    assert nan.failure is not None


def test_the_verdict_says_which_check_failed() -> None:
    good, bad = check_bits("world 2", 3, []), check_bits("world 2", 3, ["net.a", "net.b"])
    fine = ResumeVerdict({"device": "cpu"}, [], [good], elastic=True)
    assert (fine.exact, fine.text().splitlines()[-1]) == (True, "verdict: exact and elastic")
    verdict = ResumeVerdict({"device": "cpu"}, [], [good, bad], elastic=True)
    assert not verdict.exact
    last = "verdict: NOT exact: world 2, killed and resumed, differs in 2 tensors, net.a the first"
    assert verdict.text().splitlines()[-1] == last
    assert json.loads(json.dumps(verdict.tree()))["checks"]["same bits"]["different"] == ["net.a", "net.b"]
    assert "elastic" not in ResumeVerdict({}, [], [good], elastic=False).conclusion
