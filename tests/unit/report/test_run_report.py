"""The report as a file: in the run directory or elsewhere, or an error that says where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.report.run_report import write_report
from tests.support.report_runs import write_config


def test_the_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_config(tmp_path)
    out = write_report(tmp_path, tmp_path / "report.html")
    assert out.read_text().endswith("</html>\n")
    with pytest.raises(UserError, match=r"x/report\.html: cannot be written \(No such file.*; give another --out"):
        write_report(tmp_path, tmp_path / "x" / "report.html")
    with pytest.raises(UserError, match="no such directory"):
        write_report(tmp_path / "absent", tmp_path / "other.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "report.html"]
