"""The weights of feature networks, before a score needs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.doctor.weights import missing_weights
from diffpipe.metrics import features
from tests.support.stage_cases import CASES


def messages(*words: str) -> list[tuple[str, str]]:
    return [(f.level, f.message) for f in missing_weights(CASES["ddpm"].experiment("eval.every=500", *words))]


def test_weights_that_are_here_or_not_needed_are_no_finding() -> None:
    assert messages() == []
    assert messages("eval.metrics=[fid]", "eval.every=0") == []


def test_a_library_that_an_extra_brings_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffpipe.experiment.doctor.weights.find_spec", lambda name: None)
    ((level, message),) = messages("eval.metrics=[fid]")
    assert level == "error"
    assert message.endswith("pip install 'diffpipe[eval]'")


def test_weights_that_would_be_downloaded_are_a_warning_and_wrong_ones_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(features.INCEPTION_VARIABLE, raising=False)
    ((level, message),) = messages("eval.metrics=[fid,kid]")
    assert level == "warning"
    assert "which the job downloads at step 500" in message
    for content in (None, b"others"):
        path = tmp_path / "weights.pt"
        if content is not None:
            path.write_bytes(content)
        monkeypatch.setenv(features.INCEPTION_VARIABLE, str(path))
        with pytest.raises(UserError) as caught:
            features.inception()
        assert messages("eval.metrics=[fid]") == [("error", f"at step 500, eval.metrics: {caught.value}")]
