"""Terminals and pipes that end, are closed, or are in another encoding; a user without a home: no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffpipe.__main__ import COMMANDS
from tests.support.command_words import ARGUMENTS
from tests.support.commands import CONFIG, HOME, SHARDS, TINY, diffpipe, metrics
from tests.support.training_jobs import checkpoint_steps
from tests.support.web_server import serving

SMALL = ("train.steps=2", "data.resolution=8", "sample.every=0", "eval.every=0", "data.workers=0")


def shell(command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash in which `diffpipe` is the command. Its status is that of the first command of a pipe."""
    line = f'diffpipe() {{ "{sys.executable}" -m diffpipe "$@"; }}; {command}; exit ${{PIPESTATUS[0]}}'
    environment = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"} | env
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, cwd=cwd, env=environment, errors="replace"
    )


@pytest.mark.parametrize("words", ["config schema", "config keys", "--help", "pack --help"])
@pytest.mark.parametrize("reader", ["head -n 1", "true"])
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, words: str, reader: str) -> None:
    done = shell(f"diffpipe {words} | {reader}", tmp_path)
    assert done.returncode in (0, 141)  # 0: all fitted into the pipe before the reader left
    assert done.stderr == ""


def test_output_that_finds_no_room_is_an_error_of_one_line(tmp_path: Path) -> None:
    for words, name in (("config schema", "diffpipe config"), ("--help", "diffpipe")):
        done = shell(f"diffpipe {words} > /dev/full", tmp_path)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{name}: error: ")
        assert "No space left on device" in line


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path: Path, closed: str) -> None:
    done = shell(f"diffpipe config keys stage.network {closed}", tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    done = shell(f"diffpipe config keys no.such.key {closed}", tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_a_training_goes_on_when_nobody_reads_its_messages(tmp_path: Path, stream: str) -> None:
    words = " ".join(f"'{word}'" for word in (*TINY, *SMALL))
    done = shell(
        f"diffpipe train {CONFIG} run.dir={tmp_path / 'run'} data.train={SHARDS}/train data.test=null {words} {stream}",
        HOME,
    )
    assert done.returncode == 0
    assert checkpoint_steps(tmp_path / "run") == [2]
    assert sorted(metrics(tmp_path / "run")) == [1, 2]


@pytest.mark.parametrize("command", ["", *COMMANDS])
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_help_in_a_terminal_of_another_encoding(command: str, encoding: str) -> None:
    env = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = shell(f"diffpipe {command} --help", HOME, **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_names_of_any_bytes_are_shown_in_any_terminal(tmp_path: Path) -> None:
    folder = os.fsdecode(b"\xff\xfe") + "→"
    (tmp_path / folder).mkdir()
    for env in ({}, {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}):
        done = shell("diffpipe index *", tmp_path, **env)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("diffpipe index: error: ")


def test_a_config_of_any_characters_is_shown_and_trained_in_an_ascii_locale(tmp_path: Path) -> None:
    env = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    run = tmp_path / "größe"
    done = diffpipe("train", CONFIG, f"run.dir={run}", *TINY, *SMALL, env=env)
    assert done.returncode == 0, done.stderr
    assert checkpoint_steps(run) == [2]
    done = shell(f"diffpipe config show {run / 'config.yaml'}", tmp_path, **env)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_trains_samples_and_reads_remote_shards(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    env = {"TMPDIR": str(tmp_path / "tmp"), "DIFFPIPE_CACHE": ""}
    (tmp_path / "tmp").mkdir()
    for words in (["train", CONFIG, f"run.dir={run}", *TINY, *SMALL], ["sample", run, out, "--n", 2]):
        done = diffpipe(*words, module="tests.faults.no_home", env=env)
        assert done.returncode == 0, done.stderr
    with serving(SHARDS) as web:
        words = ["train", CONFIG, f"run.dir={tmp_path / 'remote'}", *TINY, *SMALL, f"data.train={web.url}/train"]
        done = diffpipe(*words, module="tests.faults.no_home", env=env)
    assert done.returncode == 0, done.stderr
    assert [*(tmp_path / "tmp").glob("diffpipe-*/shards/*")]


def test_every_command_has_arguments_here() -> None:
    assert set(ARGUMENTS) == set(COMMANDS)
