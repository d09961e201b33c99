"""A comparison of two toy runs: its files, and the errors that name the row or the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.evaluation.score_cache import CachedScore
from diffpipe.metrics import protocol
from diffpipe.metrics.protocol import Result
from diffpipe.report import comparison
from diffpipe.report.comparison import compare
from diffpipe.report.comparison_rows import ComparisonRow
from diffpipe.report.comparison_runner import ComparisonSettings, MeasuredRun
from tests.support.comparisons import summary
from tests.support.runs import Coder, indexed_shards, opened_run
from tests.support.tars import random_pixels

ROWS = [ComparisonRow("first", Path("runs/first"), ()), ComparisonRow("second <b>", Path("runs/second"), ())]


def settings(shards: str, **options: Any) -> ComparisonSettings:
    return ComparisonSettings(shards, (), nll_n=30, precision="fp32", device="cpu", **options)


def test_the_files_of_a_comparison_hold_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "open_run", lambda path, *_, **__: opened_run(Coder("error"), path))
    shards, out = indexed_shards(tmp_path / "shards", 30), tmp_path / "new" / "out"
    result = compare(ROWS, settings(shards), out)
    assert result is not None
    assert sorted(path.name for path in out.iterdir()) == ["compare.json", "index.html", "samples.png", "table.md"]
    tree = json.loads((out / "compare.json").read_text())
    assert [family["name"] for family in tree["families"]] == [row.name for row in ROWS]
    x = np.stack([random_pixels(i) for i in range(30)]) / 127.5 - 1
    for family in tree["families"]:
        assert family["reconstruction"]["value"] == pytest.approx(np.mean((2 * x) ** 2), rel=1e-6)
        assert family["scores"] is None
        assert "generates no images" in family["missing"]["scores"]
    assert (tree["scores"], tree["floor"]) == ({}, {})  # an error is no score, and nothing generates
    assert protocol.read(out / "compare.json").protocol == tree["protocol"]
    assert tree["protocol"]["likelihood_n"] == 30
    assert tree["protocol"]["reference"]["n"] == 30
    assert "second &lt;b&gt;" in (out / "index.html").read_text()
    assert len((out / "table.md").read_text().splitlines()) >= 2 + len(ROWS)
    with Image.open(out / "samples.png") as picture:
        assert picture.height > 3 * 56  # the real images, and a row for each run


def test_a_remark_that_is_not_on_every_score_names_its_runs() -> None:
    result = Result({}, {}, {})
    measured = [
        MeasuredRun(summary(name), None, "", CachedScore(result, Path(name), reused=False), remarks)
        for name, remarks in {"a": ["few", "copies"], "b": ["few", "copies"], "c": ["few"]}.items()
    ]
    assert comparison._remarks([*measured, MeasuredRun(summary("vae"), None, "", None)]) == ["few", "a, b: copies"]


def test_a_row_that_is_no_run_is_named(tmp_path: Path) -> None:
    row = ComparisonRow("lost", tmp_path / "absent", ())
    with pytest.raises(UserError, match=r"^lost: .*absent: no such directory"):
        compare([row], settings("shards"), tmp_path / "out")


def test_a_folder_that_cannot_be_made_and_bad_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out: .*; give a folder that can be written"):
        compare(ROWS, settings("shards"), tmp_path / "file" / "out")
    with pytest.raises(UserError, match=r"--n 1: give 2 or more"):
        compare(ROWS, settings("shards", n=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()
