"""The log files: a resumed run drops the lines of steps that it trains again, and a partial last line."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import tracemalloc
from io import FileIO
from pathlib import Path

import pytest

from diffpipe import output
from diffpipe.train import logs
from diffpipe.train.distributed import Communicator
from diffpipe.train.logs import LogFile, MetricsLog, SampleLog, print_on_rank_zero
from diffpipe.train.runtime import Runtime
from tests.support.toy_stages import batch


def test_lines_after_the_resumed_step_are_dropped(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 5.0}\n{"step": 4, "loss": 4.0}\n{"step": 6, "loss": 3.0}\n{"step": 8, "lo')
    calls = []
    log = MetricsLog(path, runtime, step=4, on_log=lambda values, step: calls.append((dict(values), step)))
    log.write({"step": 6, "loss": 2.5})
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 5.0}, {"step": 4, "loss": 4.0}, {"step": 6, "loss": 2.5}]
    assert calls == [({"loss": 2.5}, 6)]


def test_a_line_is_in_the_file_as_soon_as_it_is_written(runtime: Runtime, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", runtime, step=0)
    log.write({"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    log.close()


def test_another_rank_writes_no_metrics_and_shows_nothing(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = dataclasses.replace(runtime, comm=Communicator(rank=1, world=2))
    log = MetricsLog(tmp_path / "metrics.jsonl", second, step=0)
    log.write({"step": 1})
    log.close()
    assert not (tmp_path / "metrics.jsonl").exists()
    print_on_rank_zero(second, "a warning")
    assert capsys.readouterr().err == ""
    print_on_rank_zero(runtime, "a warning")
    assert capsys.readouterr().err == "a warning\n"


def test_the_sample_log_has_the_samples_of_all_micro_batches_of_a_step(tmp_path: Path) -> None:
    for step in (0, 1):
        log = SampleLog(tmp_path, rank=3)  # a resume goes on in the file
        log.write(step, [batch([4, 5]), batch([6])])
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "seen" / "rank-00003.jsonl").read_text().splitlines()]
    samples = {"keys": ["key4", "key5", "key6"], "positions": [4, 5, 6]}
    assert lines == [{"step": 0, **samples}, {"step": 1, **samples}]


DAMAGED = [
    b"not json\n",
    b"[1, 2]\n",
    b"null\n",
    b'{"loss": 1.0}\n',
    b'{"step": "4"}\n',
    b"\xff\xfe\x00\n",
    b"[" * 9999 + b"\n",
]


def test_damaged_lines_never_stop_a_resume(
    runtime: Runtime, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n' + b"".join(DAMAGED) + b'{"step": 4}\n{"step": 6}\n')
    log = MetricsLog(path, runtime, step=4)
    log.write({"step": 5})
    log.close()
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n{"step": 5}\n'
    assert capsys.readouterr().err.endswith(f"{path}: 7 damaged lines are dropped; the run does not depend on them\n")


@pytest.mark.parametrize("kind", ["directory", "fifo", "link to nothing", "unreadable"])
def test_what_is_no_file_in_its_place_is_a_warning(
    runtime: Runtime, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to nothing":
            path.symlink_to(tmp_path / "gone" / "file")
        case _:
            path.write_text('{"step": 1}\n')

            def refused(*_: object, **__: object) -> int:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(logs, "open_regular", refused)
    calls = []
    log = MetricsLog(path, runtime, step=4, on_log=lambda values, step: calls.append(step))
    log.write({"step": 5, "loss": 1.0})
    log.close()
    assert calls == [5]
    assert "this log file is not written; the run goes on without it" in capsys.readouterr().err


def test_lines_without_room_are_written_later_and_none_is_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    warnings: list[str] = []
    log = LogFile(path, lambda _: True, warnings.append)
    log.write({"step": 1})
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, hard))  # room for a part of a line
    try:
        log.write({"step": 2})
        log.write({"step": 3})
        assert path.read_text() == '{"step": 1}\n'
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write({"step": 4})
    log.close()
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 4))
    assert warnings == [f"{path}: File too large: a line cannot be written; the run goes on, and writes it later"]


def test_lines_that_found_no_room_are_tried_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    warnings: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for lost in (False, True):
        log = LogFile(path, lambda _: True, warnings.append)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
        try:
            log.write({"step": 1})
            if lost:
                log.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        if not lost:
            log.close()
        assert path.read_text() == '{"step": 1}\n'
    assert warnings[1:] == [warnings[0], f"{path}: 1 line could not be written"]


def test_of_more_lines_than_are_kept_the_newest_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_PENDING", 30)
    path = tmp_path / "metrics.jsonl"
    warnings: list[str] = []
    log = LogFile(path, lambda _: True, warnings.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        for step in range(1, 6):
            log.write({"step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.close()
    assert path.read_text() == '{"step": 4}\n{"step": 5}\n'
    assert warnings[1:] == [f"{path}: 3 lines could not be written"]


def test_a_file_that_the_server_no_longer_knows_is_opened_again(tmp_path: Path) -> None:
    """After the restart of a file server, an open file is stale for good."""
    path = tmp_path / "metrics.jsonl"
    warnings: list[str] = []
    log = LogFile(path, lambda _: True, warnings.append)
    log.write({"step": 1})

    class Stale(FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    assert log._file is not None
    log._file.close()
    log._file = Stale(path, "r+")
    log.write({"step": 2})
    log.write({"step": 3})
    log.close()
    assert path.read_text() == "".join(f'{{"step": {step}}}\n' for step in (1, 2, 3))
    assert warnings == [f"{path}: Stale file handle: a line cannot be written; the run goes on, and writes it later"]


def test_a_log_of_any_length_is_cut_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = "".join(f'{{"step": {step}, "loss": {step / 7}}}\n' for step in range(100_000))
    path.write_text(text)
    tracemalloc.start()
    LogFile(path, lambda values: values["step"] < 50_000, lambda _: None).close()
    assert tracemalloc.get_traced_memory()[1] < len(text) / 4
    tracemalloc.stop()
    lines = path.read_text().splitlines()
    assert lines == text.splitlines()[:50_000]


def test_the_trackers_get_each_line_and_before_it_what_they_lack(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sent = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 2, "loss": 5.0}\n{"step": 4, "loss": 4.0}\n{"step": 6, "loss": 3.0}\n')
    monkeypatch.setattr(runtime.trackers, "replay", lambda lines: sent.extend(lines()))
    monkeypatch.setattr(runtime.trackers, "log", lambda values, step: sent.append((values, step)))
    log = MetricsLog(path, runtime, step=4)
    log.write({"step": 6, "loss": 2.5})
    log.close()
    assert sent == [{"step": 2, "loss": 5.0}, {"step": 4, "loss": 4.0}, ({"loss": 2.5}, 6)]


def test_a_quiet_command_prints_only_the_warnings(
    runtime: Runtime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "current", output.Output(quiet=True))
    print_on_rank_zero(runtime, "trained to step 3")
    print_on_rank_zero(runtime, "warning: the disk is nearly full")
    assert capsys.readouterr().err == "warning: the disk is nearly full\n"
