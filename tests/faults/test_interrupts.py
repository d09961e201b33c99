"""Ctrl-C in every command, from its first import on: status 130, one line, and no partial file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffpipe.__main__ import COMMANDS
from tests.support.command_words import ARGUMENTS, WRITERS, is_whole
from tests.support.commands import CONFIG, HOME, TINY, diffpipe

MODULE = "tests.faults.interrupt_at"


def interrupted_at_import(n: int, *words: str, cwd: Path) -> None:
    """In an interpreter of its own: a fork of the tests' server has imported everything."""
    env = os.environ | {"INTERRUPT_AT": str(n), "PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *words], capture_output=True, text=True, check=False, cwd=cwd, env=env
    )
    assert done.stderr == f"diffpipe {words[0]}: interrupted\n"
    assert (done.returncode, done.stdout) == (130, "")
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("n", [1, 2, 10, 40])
def test_an_interrupt_while_the_words_are_read(tmp_path: Path, n: int) -> None:
    interrupted_at_import(n, "config", "schema", cwd=tmp_path)


def test_pydantic_finds_datetime_imported() -> None:
    # Its extension imports datetime where it is not, and panics at an interrupt there.
    check = "import sys, diffpipe.__main__; print('datetime' in sys.modules, 'pydantic_core' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=HOME)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 300, 1000])
def test_an_interrupt_while_torch_is_imported(tmp_path: Path, n: int) -> None:
    interrupted_at_import(n, "train", *ARGUMENTS["train"], cwd=tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_interrupted_while_it_imports(tmp_path: Path, command: str) -> None:
    n = 5 if command in ("runs", "status") else 80  # these two import little
    interrupted_at_import(n, command, *ARGUMENTS[command], cwd=tmp_path)


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "train"])
def test_an_interrupt_while_a_file_is_written_leaves_no_part_of_one(
    tmp_path: Path,
    inputs: dict[str, Path],
    writer: str,
) -> None:
    words, name = WRITERS[writer]
    out = tmp_path / name
    if writer == "index":
        pytest.skip("an interrupted scan is kept for the next call")
    filled = [str(word).format(out=out, **inputs) for word in words]
    done = diffpipe(*filled, module=MODULE, env={"INTERRUPT_AT": str(tmp_path)})
    assert done.returncode == 130, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("diffpipe ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert all(is_whole(path) for path in tmp_path.rglob("*") if path.is_file())


def test_an_interrupt_of_a_training_before_its_first_step_is_a_stop(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = diffpipe(
        "train", CONFIG, f"run.dir={run}", *TINY, "data.workers=0", module=MODULE, env={"INTERRUPT_AT": str(run)}
    )
    assert done.returncode == 75, done.stderr
    assert "stopped by SIGINT after step 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_in_the_background_of_a_script_is_not_interrupted(tmp_path: Path) -> None:
    """A shell without job control starts it with SIGINT ignored: Ctrl-C is for the foreground."""
    env = os.environ | {"INTERRUPT_AT": "10", "PYTHONPATH": str(HOME)}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, "config", "schema"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=env,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stderr) == (0, b"")
