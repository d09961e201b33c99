"""Access to remote shards, without a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.data.remote import storage as stores
from diffpipe.errors import UserError
from diffpipe.experiment.doctor.storage import access, remote_urls
from tests.support.stage_cases import CASES

S3, GS = "s3://bucket/shards", "gs://bucket/shards"


def messages(url: str, home: Path, **environ: str) -> list[tuple[str, str]]:
    return [(finding.level, finding.message) for finding in access([url], environ, home)]


def test_the_urls_of_a_run_are_those_of_training_and_of_held_out_shards() -> None:
    words = ("data.train=null", f"data.sources=[{{url: {S3}}}, {{url: shards/a}}]", f"data.test={GS}")
    assert remote_urls(CASES["ddpm"].experiment(*words)) == [S3, GS]
    assert remote_urls(CASES["ddpm"].experiment("data.test=null")) == []


def test_credentials_are_looked_for_in_the_environment_and_in_files(tmp_path: Path) -> None:
    ((level, message),) = messages(S3, tmp_path)
    assert level == "warning"
    assert message.startswith(f"{S3}: no credentials in the environment, nor at {tmp_path / '.aws/credentials'}")
    assert message.endswith("else set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    assert messages(S3, tmp_path, AWS_PROFILE="me") == []
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").touch()
    assert messages(S3, tmp_path) == []
    assert messages("https://host/shards", tmp_path) == []


def test_a_key_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    ((level, message),) = messages(GS, tmp_path, GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "key.json"))
    assert level == "error"
    assert "where no file is" in message
    (tmp_path / "key.json").touch()
    assert messages(GS, tmp_path, GOOGLE_APPLICATION_CREDENTIALS=str(tmp_path / "key.json")) == []


def test_a_missing_library_and_a_secret_that_is_not_set_are_errors_in_the_loaders_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    url = "https://host/shards?token=${NO_SUCH_TOKEN}"
    assert messages(url, tmp_path) == [
        ("error", "https://host/shards: the environment variable NO_SUCH_TOKEN is not set; set it")
    ]
    missing = stores._Store("s3", "no_such_package", "[s3]", {})
    monkeypatch.setitem(stores.STORES, "s3", missing)
    with pytest.raises(UserError) as caught:
        missing.system()
    assert messages(S3, tmp_path, AWS_PROFILE="me") == [("error", str(caught.value))]
    assert [level for level, _ in messages(S3, tmp_path)] == ["error", "warning"]  # the credentials are missing, too
