"""The status of runs as a table: a line each, with what is known."""

from __future__ import annotations

from pathlib import Path

from diffpipe.experiment.run_status import RunStatus
from diffpipe.report.status_table import status_table


def test_each_run_is_one_line_that_a_terminal_shows_as_it_is() -> None:
    score = {"name": "fd_efficientnet_lite0", "value": 282.123, "step": 1500}
    running = RunStatus(Path("runs/a"), "running", None, "ddpm", 1500, 3000, 1000, 0.03125, 41.2, score, 77, "n7", 12.0)
    failed = RunStatus(Path("runs/b\x1b[2J\nc"), "failed", "the disk\nis full", step=3)
    lines = status_table([running, failed]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "run state step stage loss images/s score age",
        "runs/a running 1500/3000 ddpm 0.0312 41 fd_efficientnet_lite0 282.1 12 s process 77 on n7",
        r"runs/b\x1b[2J\nc failed 3/? the disk\nis full",
    ]
    kid = running._replace(score={"name": "kid_x", "value": 0.26849, "step": 1500})
    assert "kid_x ×10³ 268.5  12 s" in status_table([kid])
    assert "kid_x ×10³ 268.5 at step 1500  12 s" in status_table([kid._replace(step=2000)])
    assert lines[0].index("state") == lines[1].index("running") == lines[2].index("failed")
