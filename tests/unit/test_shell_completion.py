"""The completion scripts, run by the shells: commands, options, their values, config keys and files."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffpipe.__main__ import COMMANDS, main


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script of each shell."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-m", "diffpipe", "completion", shell], capture_output=True, text=True, check=True
        )
        (folder / shell).write_text(done.stdout)
    return folder


def bash(scripts: Path, *words: str) -> list[str]:
    """The completions of the last word, which bash cuts at `=`."""
    parts = [part for word in words for part in (word.replace("=", " = ").split(" ") if "=" in word else [word])]
    given = " ".join(map(shlex.quote, ["diffpipe", *parts]))
    start = f". {scripts}/bash; COMP_WORDS=({given}); COMP_CWORD={len(parts)}"
    program = f'{start}; _diffpipe; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["--quiet", "verify"], ["verify-resume"]),
        (["--plugin", "mine", "comp"], ["compare", "compress", "completion"]),
        (["config", "s"], ["show", "schema"]),
        (["runs", ""], ["prune"]),
        (["--j"], ["--json"]),
        (["sample", "runs/a", "--samp"], ["--sampler"]),
        (["config", "show", "--qu"], ["--quiet"]),
        (["runs", "prune", "--y"], ["--yes"]),
        (["sample", "runs/a", "out", "--precision", "f"], ["fp32", "fp16"]),
        (["sample", "runs/a", "--codec", "f"], []),  # a file
        (["pack", "photos", "--to", ""], ["shards", "edm-zip"]),
        (["train", "a.yaml", "train.ste"], ["train.steps="]),
        (["train", "a.yaml", "checkp"], ["checkpoint."]),
        (["train", "a.yaml", "train.steps=9", "checkpoint.keep"], ["checkpoint.keep_last=", "checkpoint.keep_every="]),
        (["train", "a.yaml", "train.precision="], ["auto", "fp32", "bf16", "fp16"]),
        (["train", "a.yaml", "train.precision=f"], ["fp32", "fp16"]),
        (["train", "a.yaml", "data.train=sh"], []),  # a file
        (["train", "tr"], []),  # a file
        (["sample", "runs/a", "train.ste"], []),  # takes no keys
    ],
)
def test_bash_completes(scripts: Path, words: list[str], expected: list[str]) -> None:
    assert bash(scripts, *words) == expected


def test_bash_knows_every_command_and_every_option_of_each(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(bash(scripts, "")) == sorted(COMMANDS)
    for name in ("eval", "sample", "pack"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = {word.rstrip(",") for word in capsys.readouterr().out.split() if word.startswith("--")}
        assert {word.strip("[]`();.") for word in shown} <= set(bash(scripts, name, "--"))


def typed(terminal: int, text: str, until: str) -> str:
    """The screen after this was typed, once `until` is on it."""
    os.write(terminal, text.encode())
    shown, deadline = "", time.monotonic() + 60
    while until not in shown:
        assert time.monotonic() < deadline, shown
        shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


def test_an_interactive_bash_completes_keys_values_and_files(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "my_config.yaml").touch()
    (tmp_path / "shards").mkdir()
    terminal, other_end = os.openpty()
    with subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PS1": "$ ", "TERM": "dumb", "INPUTRC": "/dev/null"},
        start_new_session=True,
    ) as shell:
        try:
            os.close(other_end)
            typed(terminal, f"stty cols 200; . {scripts}/bash; echo read''y\n", "ready")
            line = "diffpipe tra\tmy\ttrain.ste\t9 train.preci\tbf\tdata.tra\tsha\t end"
            to_start = "\x01"  # Ctrl-A
            shown = typed(terminal, f"{line}{to_start}echo said: \n", "said: diffpipe")
            shown += typed(terminal, "echo do''ne\n", "done")
        finally:
            shell.kill()
            os.close(terminal)
    assert "said: diffpipe train my_config.yaml train.steps=9 train.precision=bf16 data.train=shards/ end" in shown


def test_completing_starts_no_program(scripts: Path) -> None:
    typed = "COMP_WORDS=(diffpipe train a.yaml stage.); COMP_CWORD=3"
    program = f". {scripts}/bash; PATH=; {typed}; _diffpipe; echo ${{COMPREPLY[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("stage.")
    assert done.stderr == ""


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish on this machine")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diffpipe tr", ["train"]),
        ("diffpipe config s", ["schema", "show"]),
        ("diffpipe sample runs/a --samp", ["--sampler"]),
        ("diffpipe sample runs/a --precision f", ["fp16", "fp32"]),
        ("diffpipe train a.yaml train.ste", ["train.steps="]),
        ("diffpipe train a.yaml train.precision=f", ["train.precision=fp16", "train.precision=fp32"]),
    ],
)
def test_fish_completes(scripts: Path, tmp_path: Path, line: str, expected: list[str]) -> None:
    program = f"source {scripts}/fish; complete -C {shlex.quote(line)}"
    env = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(["fish", "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert sorted(word.split("\t")[0] for word in done.stdout.splitlines()) == expected


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh on this machine")
def test_zsh_reads_its_script(scripts: Path) -> None:
    program = f"autoload -U compinit; compinit -D; . {scripts}/zsh; print $_comps[diffpipe]"
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    assert "_diffpipe" in done.stdout
    assert done.stderr == ""
