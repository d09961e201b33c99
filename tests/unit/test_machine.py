"""The memory and processes that a machine has left, and numbers of processes that are refused before one starts."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Any

import pytest

import diffpipe
from diffpipe import machine
from diffpipe.__main__ import main
from diffpipe.errors import UserError
from diffpipe.machine import available_memory, available_processes, process_warnings

GB = 10**9


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of 4 processors, 30,000 processes, a million open files and 8 GB. No process can be started on it."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(4)))
    monkeypatch.setattr(machine, "available_processes", lambda: 30_000)
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * GB)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_000_000, 1_000_000))

    def start(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", start)
    return monkeypatch


def test_numbers_that_the_machine_holds_pass(small: pytest.MonkeyPatch) -> None:
    assert process_warnings("--workers", 0) == process_warnings("--workers", 32) == []
    (crowd,) = process_warnings("--workers", 33)
    assert (
        crowd
        == "--workers asks for 33 processes on 4 processors: more than 4 hardly make anything faster; lower --workers"
    )


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("machine.available_processes", 399, "and 399 more processes and threads may run; lower --workers$"),
        (
            "machine.available_memory",
            3 * GB,
            r"need 4\.0 GB of memory or more, and 3\.0 GB are free; lower --workers$",
        ),
        ("resource.getrlimit", (599, 599), "may have 599 open files; lower --workers, or raise `ulimit -n`$"),
        ("os.sched_getaffinity", {0, 1, 2}, "on 3 processors: .* so many stop the machine; lower --workers$"),
    ],
)
def test_each_limit_refuses(small: pytest.MonkeyPatch, name: str, value: Any, reason: str) -> None:
    process_warnings("--workers", 200)
    small.setattr(f"diffpipe.{name}" if name.startswith("machine") else name, lambda *_: value)
    with pytest.raises(UserError, match=f"^--workers asks for 200 processes.*{reason}"):
        process_warnings("--workers", 200)


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("pack SHARDS OUT --workers 1000", "--workers asks for 1000 processes"),
        ("pack SHARDS OUT.zip --to edm-zip --workers 1000", "--workers asks for 1000 processes"),
        ("index SHARDS --workers 1000", "--workers asks for 1000 processes"),
        (
            "verify-resume configs/fashion_mnist/ddpm.yaml data.batch_size=1000 --worlds 1,1000 --out OUT",
            "--worlds asks for 1000 training processes",
        ),
    ],
)
def test_a_command_that_asks_for_too_many_processes_starts_none(
    small: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: str, option: str
) -> None:
    shards = Path(__file__).parents[2] / "configs" / "fashion_mnist" / "shards" / "test"
    small.chdir(shards.parents[3])
    words = words.replace("SHARDS", str(shards)).replace("OUT", str(tmp_path / "out"))
    assert main(words.split()) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"diffpipe {words.split()[0]}: error: {option}")
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_asks_for_too_many_processes_starts_none(small: pytest.MonkeyPatch) -> None:
    shards = Path(__file__).parents[2] / "configs" / "fashion_mnist" / "shards" / "test"
    with pytest.raises(UserError, match=r"^workers asks for 1000 processes"):
        diffpipe.stream(shards, batch_size=4, resolution=28, channels=1, workers=1000)


def test_as_many_processes_as_processors_are_never_refused(
    small: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The default of --workers is not the user's choice."""
    small.setattr(machine, "available_memory", lambda: 1)
    (tmp_path / "images").mkdir()
    assert main(["pack", str(tmp_path / "images"), str(tmp_path / "out")]) == 2
    assert "--workers" not in capfd.readouterr().err


def test_the_limits_of_a_control_group_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "job"
    group.mkdir()
    (group / "memory.max").write_text("3000000\n")
    (group / "memory.current").write_text("2000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    (group / "pids.max").write_text("100\n")
    (group / "pids.current").write_text("40\n")
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr(machine, "_control_groups", lambda controller: [group, tmp_path])
    assert available_memory() == 1_500_000
    assert available_processes() == 60


def test_this_machine_has_some() -> None:
    assert 1 << 20 < available_memory() <= 1 << 62
    assert available_processes() > 10
