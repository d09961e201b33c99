"""verify-resume refuses a folder that it could harm, before it trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.verify import resume
from diffpipe.verify.resume_plan import ResumePlan
from tests.support.commands import CONFIG


def test_a_folder_that_holds_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    plan = ResumePlan.make(str(CONFIG), ["train.device=cpu"], steps=24, worlds="1", kills=None, seed=0)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds files already"):
        resume.verify(plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="a folder that can be written"):
        resume.verify(plan, tmp_path / "thesis.tex")
