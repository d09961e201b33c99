"""The number of images by default: what is said of fewer."""

from __future__ import annotations

import pytest

from diffpipe.evaluation.counts import note_count
from diffpipe.train.runtime import Runtime


def test_fewer_images_than_the_default_are_noted_on_stderr(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    note_count(None, 12, "shards/x", runtime)
    assert capsys.readouterr() == ("", "n is 12 instead of 1000: shards/x has no more images\n")
    note_count(12, 12, "shards/x", runtime)
    note_count(None, 1000, "shards/x", runtime)
    assert capsys.readouterr() == ("", "")
