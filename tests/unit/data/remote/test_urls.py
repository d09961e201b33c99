"""URLs of remote files: their parts, and no secret in any form that is shown."""

from __future__ import annotations

import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.data.remote.urls import is_remote, join, parent, parse, redacted, resolve
from diffpipe.errors import UserError


@given(st.text("ab:/@?#${}%.", max_size=12), st.text("ab/%", max_size=5))
def test_a_redacted_url_has_neither_user_nor_query(rest: str, path: str) -> None:
    assert redacted(f"https://u:secret@host/{path}?secret{rest}") == f"https://host/{path}"


def test_urls_are_distinguished_from_paths() -> None:
    assert all(map(is_remote, ["http://h/x", "s3://b/x", "gs://b", "ftp://h"]))
    assert not any(map(is_remote, ["/a/b", "a://b"[2:], "a/b.tar", "c:\\x", "{a,b}.tar", "~/x"]))
    assert str(parse("HTTP://u:${A}@h:80/a/b.tar?${B}")) == "http://u:${A}@h:80/a/b.tar?${B}"
    assert join("https://h/a/?t=${T}", "x.tar") == "https://h/a/x.tar?t=${T}"


def test_the_parent_undoes_join() -> None:
    for url in ("https://h/a/b", "s3://u:${A}@bucket/shards", "https://h:80/a?t=${T}"):
        assert parent(join(url, "x.tar")) == url


def test_variables_are_resolved_and_a_missing_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "p@s/s")
    monkeypatch.setenv("TOKEN", "abc")
    monkeypatch.delenv("NOTHING", raising=False)
    url = parse("https://me:${PASSWORD}@h/x.tar?t=${TOKEN}")
    assert urllib.parse.unquote(urllib.parse.urlsplit(resolve(url)).password or "") == "p@s/s"
    assert urllib.parse.parse_qs(urllib.parse.urlsplit(resolve(url)).query) == {"t": ["abc"]}
    with pytest.raises(UserError, match=r"^https://h/x\.tar: the environment variable NOTHING is not set"):
        resolve(parse("https://h/x.tar?${NOTHING}"))


def test_an_unknown_scheme_and_a_url_without_host_are_refused() -> None:
    with pytest.raises(UserError, match="ftp://: this scheme cannot be read"):
        parse("ftp://h/x.tar")
    with pytest.raises(UserError, match="no host or bucket"):
        parse("https:///x.tar")


@pytest.mark.parametrize("name", ["a%20b.tar", "50%.tar", "a;b.tar", "...tar", "ü.tar"])
def test_other_names_stay_as_they_are(name: str) -> None:
    assert join("https://h/a", name) == f"https://h/a/{name}"


@pytest.mark.parametrize(
    "name", ["%2e%2e", "..%2F..%2fx.tar", "%252e%252e%252fx.tar", "x%00.tar", "x%3Ft=1.tar", "a%5cb", "..;", "x%0d%0ay"]
)
def test_a_name_that_leads_elsewhere_once_it_is_decoded_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^https://h/a: .* is not the name of a file"):
        join("https://h/a?t=${T}", name)


@pytest.mark.parametrize("name", ["x.tar?t=${SECRET}", "../x.tar", "/x.tar", "x#.tar", "", "..", ".", "a\nb", "a\\b"])
def test_a_name_that_leads_elsewhere_or_adds_a_query_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^https://h/a: .* is not the name of a file"):
        join("https://h/a?t=${T}", name)
