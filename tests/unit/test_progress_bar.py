"""The progress of long work: a bar on a terminal, plain lines in a file, and nothing where it is not shown."""

from __future__ import annotations

import pytest

from diffpipe import output
from diffpipe.progress_bar import ProgressLines, progress_bar


def test_a_file_has_plain_lines_at_least_15_seconds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, 5.0, 16.0, 16.0, 16.0, 20.0, 25.0])  # two readings more for each line
    with ProgressLines("score", "image", 1000, clock=lambda: next(seconds)) as bar:
        bar.update(100)
        bar.update(300)
        bar.update(600)
    assert capsys.readouterr().err == (
        "score: 400/1000 images in 16 s, 25 images/s, 24 s left\nscore: 1000/1000 images in 25 s, 40 images/s\n"
    )


def test_a_file_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("count", "step", 1, terminal=False) as bar:
        bar.update()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("count: 1/1 step in 0 s, ")
    assert line.isprintable()


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("score", "image", 10, terminal=True) as bar:
        bar.update(10)
    assert "score: 100%" in capsys.readouterr().err


def test_nothing_is_shown_without_a_name_on_another_rank_or_by_a_quiet_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal in (False, True):
        progress_bar(None, "image", 10, terminal=terminal).close()
        progress_bar("score", "image", 10, shown=False, terminal=terminal).close()
    monkeypatch.setattr(output, "current", output.Output(quiet=True))
    for terminal in (False, True):
        progress_bar("score", "image", 10, terminal=terminal).close()
    assert capsys.readouterr().err == ""
