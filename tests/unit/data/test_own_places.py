"""A place is the user's own while the file that names it lies where he wrote it and says what he wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffpipe.data.own_places import may_read, note, note_run, noted


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_copy_and_other_words_are_not_his(tmp_path: Path) -> None:
    owner = tmp_path / "index"
    owner.write_bytes(b"x")
    note(owner, "words", "https://h/a?t=${T}")
    assert noted(owner, "words") == "https://h/a?t=${T}"
    (tmp_path / "link").symlink_to(owner)
    assert noted(tmp_path / "link", "words") == "https://h/a?t=${T}"
    shutil.copy(owner, tmp_path / "copy")
    assert noted(tmp_path / "copy", "words") is None
    assert noted(owner, "others") is None


def test_a_run_is_his_while_it_names_the_same_local_shards(tmp_path: Path) -> None:
    run = tmp_path / "run"
    note_run(run, ["a", "b"])
    note_run(run, "https://h/a")
    assert may_read(run, ["a", "b"])
    assert not may_read(run, ["a"])
    assert not may_read(run, "https://h/a")
    assert not may_read(tmp_path / "other", ["a", "b"])


def test_the_notes_are_private(home: Path, tmp_path: Path) -> None:
    note(tmp_path, "x")
    folder = home / ".cache" / "diffpipe" / "own"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert noted(tmp_path, "x") is None


def test_without_a_home_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    note(tmp_path, "x")
    assert noted(tmp_path, "x") is None
