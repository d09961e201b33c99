"""The output of a command: text or one JSON document on stdout, and all the rest on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffpipe.output import Output


def test_values_of_a_document_are_plain() -> None:
    out = Output(as_json=True)
    out.result("", Path("a/b.png"), losses=(1.0, float("nan")), where={"run": Path("runs/a"), 3: None})
    assert json.loads(out.document("nll", 0, None)) == {
        "command": "nll",
        "status": 0,
        "losses": [1.0, None],
        "where": {"run": "runs/a", "3": None},
        "files": ["a/b.png"],
        "notes": [],
    }


def test_the_files_of_a_folder_are_listed_by_themselves(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b" / "c.json", tmp_path / "d.png"]
    (tmp_path / "b").mkdir()
    for file in files:
        file.touch()
    out = Output(as_json=True)
    out.add(tmp_path, Path("absent.json"))
    assert json.loads(out.document("sample", 0, None))["files"] == [*map(str, files), "absent.json"]


def test_text_is_printed_at_once_and_the_files_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    Output().result("two images", Path("a.png"))
    assert capsys.readouterr() == ("two images\n", "a.png\n")


PROGRAM = """
import os, subprocess
from diffpipe.output import Output
out = Output(as_json=True)
out.redirect(process=True)
print("of Python", flush=True)
os.write(1, b"of compiled code\\n")
subprocess.run(["echo", "of a child"])
out.restore()
print(out.document("eval", 0, None))
"""


def test_names_of_somebody_else_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = Output()
    out.result("a\x1b[31mb\tü\u202ec\nd", Path("e\x07.png"))
    out.note("f\x9b\r")
    assert capsys.readouterr() == ("a\\x1b[31mb\tü\\u202ec\nd\n", "e\\x07.png\nnote: f\\x9b\\r\n")


def test_what_compiled_code_and_children_print_on_stdout_goes_to_stderr() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["command"] == "eval"
    assert done.stderr.splitlines() == ["of Python", "of compiled code", "of a child"]


def test_a_command_writes_no_control_characters_on_a_terminal(tmp_path: Path) -> None:
    for env in ({}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}):
        for words in (["--help"], ["sample", "--help"], ["smaple"], ["sample", str(tmp_path / "absent"), "out"]):
            reader, writer = os.openpty()
            subprocess.run(
                [sys.executable, "-m", "diffpipe", *words],
                env={**os.environ, **env},
                stdout=writer,
                stderr=writer,
                check=False,
            )
            os.close(writer)
            shown = b""
            try:
                while block := os.read(reader, 1 << 16):
                    shown += block
            except OSError:  # the end, as Linux has it for a terminal
                pass
            os.close(reader)
            assert b"diffpipe" in shown
            assert b"\x1b" not in shown
