"""`diffpipe index`: several folders, one process of a job, and errors in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.__main__ import main
from diffpipe.data.index.shard_index import INDEX_NAME
from diffpipe.data.index.shard_set import load
from tests.support.tars import write_shards, write_tar
from tests.support.web_server import serving


def test_several_folders_are_indexed_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, counts in (("a", [3, 2]), ("b", [4])):
        write_shards(tmp_path / name, counts)
    assert main(["index", str(tmp_path / "a"), f"{tmp_path}/b/*.tar", "--workers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, name, words in zip(lines, "ab", ("2 shards, 5 samples", "1 shard, 4 samples"), strict=True):
        assert line.startswith(f"{tmp_path / name}: {words}, ")
        assert line.endswith(f"fingerprint {load(str(tmp_path / name)).fingerprint}")


def test_one_process_of_a_launched_job_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, [1])
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main(["index", str(tmp_path)]) == 0
        assert (tmp_path / INDEX_NAME).exists() == (rank == "0")


def test_what_cannot_be_indexed_is_one_line_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, [1])
    write_tar(tmp_path / "large.tar", {"a.png": bytes(2000)})
    other = tmp_path / "other"
    write_shards(other, [1])
    for words, message in (
        ([str(tmp_path), "--max-member", "1999"], "large.tar: a.png has 2000 bytes, more than the 1999"),
        ([str(tmp_path), str(other), "--out", str(tmp_path / "x")], "--out takes the index of one"),
        (["http://localhost/x.tar"], "name it with --out"),
        (["http://localhost/x.tar", str(tmp_path), "--out", str(tmp_path / "x")], "index local folders by another"),
        (["ftp://localhost/x.tar", "--out", str(tmp_path / "x")], "this scheme cannot be read"),
    ):
        assert main(["index", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("diffpipe index: error: ")
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / INDEX_NAME).exists()
    assert not (tmp_path / "x").exists()


def test_remote_shards_have_the_fingerprint_of_local_ones_and_no_secret_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "there", [3, 2])
    assert main(["index", str(tmp_path / "there")]) == 0
    local = capsys.readouterr().out.split(": ", 1)[1]
    monkeypatch.setenv("DIFFPIPE_TEST_TOKEN", "hunter2")
    with serving(tmp_path / "there") as web:
        urls = f"{web.url}/shard-{{000,001}}.tar?token=${{DIFFPIPE_TEST_TOKEN}}"
        assert main(["index", urls, "--out", str(tmp_path / "here"), "--workers", "1"]) == 0
        assert {request.query for request in web.requests} == {"token=hunter2"}
        assert len(web.requests) == 2  # each tar once
    output = capsys.readouterr()
    assert output.out.split(": ", 1)[1] == local
    assert "hunter2" not in output.out + output.err
    assert b"hunter2" not in (tmp_path / "here" / INDEX_NAME).read_bytes()


def test_an_index_that_is_written_again_says_which_shards_have_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path, [3, 2])
    assert main(["index", str(tmp_path)]) == 0
    assert "since the last index" not in capsys.readouterr().out
    (tmp_path / "shard-000.tar").unlink()
    write_tar(tmp_path / "shard-001.tar", {"a.png": b"changed"})
    write_tar(tmp_path / "shard-002.tar", {"b.png": b"new"})
    assert main(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        f"{tmp_path}: since the last index, 1 shard is new (shard-002.tar), 1 shard is gone (shard-000.tar), 1 shard "
        "has changed (shard-001.tar), 3 samples fewer"
    )
    assert main(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{tmp_path}: since the last index, no shard has changed"
