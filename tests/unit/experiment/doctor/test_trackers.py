"""Trackers that would get no values: without credentials, or with a server that does not answer."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from diffpipe.experiment.doctor import trackers
from diffpipe.experiment.doctor.trackers import no_access


@pytest.fixture(autouse=True)
def without_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "HF_HOME", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", closed())
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    wandb.teardown()
    yield
    wandb.teardown()


def closed() -> str:
    """The URL of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def server() -> Iterator[str]:
    """The URL of a server that refuses every request."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def messages(*names: str) -> list[str]:
    findings = [*no_access(names)]
    assert {finding.level for finding in findings} <= {"warning"}
    return [finding.message for finding in findings]


def test_trackers_that_keep_their_values_here_need_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    for mode in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        wandb.teardown()
        assert messages("tensorboard", "wandb", "mlflow", "trackio", "of_a_plugin") == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert messages("mlflow") == []


def test_a_missing_key_is_found_with_the_words_of_the_tracker() -> None:
    (message,) = messages("wandb")
    assert message.startswith("the tracker wandb will get no values, and the run goes on without: no credentials; give")
    assert "WANDB_MODE=offline" in message


def test_a_server_that_does_not_answer_is_found_and_one_that_refuses_answers(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{closed().replace('//', '//me:secret@')}/mlflow")
    monkeypatch.setenv("TRACKIO_SERVER_URL", f"{closed()}/?write_token=secret")
    found = messages("wandb", "mlflow", "trackio")
    assert len(found) == 3
    for message, remedy in zip(found, ("WANDB_MODE=offline", "MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL"), strict=True):
        assert "does not answer (Connection refused); " in message
        assert remedy in message
        assert "secret" not in message
    for name in ("WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SERVER_URL"):
        monkeypatch.setenv(name, server)
    wandb.teardown()
    assert messages("wandb", "mlflow", "trackio") == []


def test_a_space_of_trackio_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    (message,) = messages("trackio")
    assert "no credentials; give HF_TOKEN" in message


def test_a_tracker_that_is_not_installed_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert messages("wandb", "mlflow", "trackio") == []
