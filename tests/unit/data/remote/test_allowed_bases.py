"""An index refers to remote shards only in the host and folder that the user named."""

from __future__ import annotations

import pytest

from diffpipe.data.remote import allowed_bases
from diffpipe.data.remote.allowed_bases import allow, options, url_of
from diffpipe.errors import UserError


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed_bases, "_allowed", [])


@pytest.mark.parametrize(
    ("base", "named", "url"),
    [
        ("https://h/a", "https://h/a", "https://h/a"),
        ("https://H/a/", "https://h/a", "https://h/a/"),
        ("https://h/a/b", "https://h/a/?t=${T}", "https://h/a/b?t=${T}"),
        ("https://me:${P}@h/a?x=${S}", "https://h/a", "https://h/a"),
        ("s3://bucket/a", "s3://bucket", "s3://bucket/a"),
    ],
)
def test_the_secrets_are_those_of_the_users_url(base: str, named: str, url: str) -> None:
    assert url_of(base, [named], "x") == url
    with pytest.raises(UserError, match=r"^x: says that its shards lie at .*--allow-base"):
        url_of(base, [], "x")
    allow(named)
    assert url_of(base, ["https://elsewhere/"], "x") == url
    assert options() == ["--allow-base", named]


@pytest.mark.parametrize(
    "base",
    [
        "https://evil/a",
        "https://h.evil/a",
        "https://h@evil/a",
        "https://h:8080/a",
        "http://h/a",
        "https://h/ab",
        "https://h/",
        "https://h/a/../b",
        "https://h/a/%2e%2E/b",
        "https://h/a/b\\..\\c",
        "https://h/a/..%2fb",
        "https://h/a/..%5cb",
        "https://h/a/%252e%252e/b",
        "https://h/a/..;/b",
        "https://h/a/b\nc",
    ],
)
def test_other_hosts_and_folders_are_refused(base: str) -> None:
    with pytest.raises(UserError, match="which you have not named yourself") as caught:
        url_of(f"{base}?x=${{SECRET}}", ["https://h/a?t=${TOKEN}"], "x")
    assert "SECRET" not in str(caught.value)
    assert "TOKEN" not in str(caught.value)


def test_a_base_without_host_or_of_another_scheme_is_refused() -> None:
    for base in ("https:///a", "file:///etc", "ftp://h/a", "gopher://169.254.169.254/"):
        with pytest.raises(UserError):
            url_of(base, ["https://h/a"], "x")


def test_what_is_no_url_is_not_allowed() -> None:
    for url in ("/a/b", "https://u:secret@h/", "ftp://h/"):
        with pytest.raises(UserError):
            allow(url)


def test_a_folder_that_the_user_wrote_encoded_stays_so() -> None:
    named = "https://h/refs%2Fconvert/x"
    assert url_of(f"{named}/y", [named], "x") == f"{named}/y"
