"""The tars on the page of a folder: those of this folder alone, in bounded memory and time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.data.remote import listing, storage
from diffpipe.data.remote.listing import tars
from diffpipe.errors import UserError
from tests.support.web_server import Web, serving


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(storage, "WAITS", (0.01, 0.02))
    with serving(tmp_path) as server:
        yield server


def test_the_tars_on_a_page_are_listed(web: Web, tmp_path: Path) -> None:
    page = "<a href='b.tar'>b</a> <a href=\"/c/a%20b.tar?x=1\">a</a> <a href='notes.txt'>n</a> <a href='../'>up</a>"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "index.html").write_text(page)
    assert tars(f"{web.url}/c") == [f"{web.url}/c/a b.tar", f"{web.url}/c/b.tar"]
    with pytest.raises(UserError, match="no such file"):
        tars(f"{web.url}/d/")


def test_links_to_other_folders_are_none_of_the_page(web: Web, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    page = f"<a href='https://elsewhere/x.tar'> {web.url}/c/bare.tar <a href='{web.url}/d/y.tar'>"
    (tmp_path / "c" / "index.html").write_text(page)
    assert tars(f"{web.url}/c") == [f"{web.url}/c/bare.tar"]


def test_a_page_without_end_is_refused_and_one_of_spaces_takes_no_time(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "index.html").write_text("<a" + " " * 200_000 + "href='b.tar'")
    began = time.monotonic()
    assert tars(f"{web.url}/c") == [f"{web.url}/c/b.tar"]
    assert time.monotonic() - began < 10
    monkeypatch.setattr(listing, "_LONGEST_PAGE", 1000)
    with pytest.raises(UserError, match="the list of its files is longer than 1000 bytes; name the tars"):
        tars(f"{web.url}/c")
