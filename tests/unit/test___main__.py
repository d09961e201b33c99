"""The command line: its commands, plug-ins before or after the command, and errors as one line and a status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import diffpipe
from diffpipe import __main__, files, output, plugins
from diffpipe.__main__ import COMMANDS, main
from diffpipe.data.remote import allowed_bases
from diffpipe.errors import LostPeerError, UserError
from diffpipe.train.distributed import Communicator

REMEDY = "; lower the batch size, or the number of workers"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A command in the place of `index`: it records its arguments and does what its `action` does."""

    def run(args: argparse.Namespace) -> int | None:
        module.words.append(args.word)
        return module.action()

    module = SimpleNamespace(words=[], action=lambda: None, run=run)
    module.add_arguments = lambda parser: parser.add_argument("word")
    monkeypatch.setattr(__main__, "_module", lambda name: module)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return module


def raising(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


def test_the_status_is_that_of_the_command(command: SimpleNamespace) -> None:
    assert main(["index", "a"]) == 0
    command.action = lambda: 3
    assert main(["index", "b"]) == 3
    assert command.words == ["a", "b"]


def test_a_user_error_is_one_line_and_its_status(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    for error, status in ((UserError("no such\n file"), 2), (LostPeerError("gone"), 1)):
        command.action = raising(error)
        assert main(["index", "a"]) == status
    assert capsys.readouterr().err == (
        "diffpipe index: error: no such file\ndiffpipe index: error: gone\n"  # one line each
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(28, "No space left on device", "/runs/a.png"),
            "/runs/a.png: No space left on device; free some space",
        ),
        (OSError(122, "Disk quota exceeded"), "Disk quota exceeded; free some space, or have the quota raised"),
        (
            PermissionError(13, "Permission denied", "x"),
            "x: Permission denied; change the rights, or give another place",
        ),
        (MemoryError(), f"out of memory{REMEDY}"),
        (RuntimeError("can't allocate memory:\n 9 bytes"), f"out of memory (can't allocate memory: 9 bytes){REMEDY}"),
    ],
)
def test_what_the_machine_lacks_is_one_line(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str], error: Exception, message: str
) -> None:
    command.action = raising(error)
    assert main(["index", "a"]) == 2
    assert capsys.readouterr().err == f"diffpipe index: error: {message}\n"


def test_a_reader_that_has_gone_is_no_error(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    command.action = raising(BrokenPipeError(32, "Broken pipe"))
    assert main(["index", "a"]) == 141
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_one_line_and_its_status(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    command.action = raising(KeyboardInterrupt())
    assert main(["index", "a"]) == 130
    assert capsys.readouterr().err == "diffpipe index: interrupted\n"


def test_another_rank_leaves_the_message_to_rank_zero(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    command.action = raising(UserError("no such file"))
    assert main(["index", "a"]) == 2
    assert capsys.readouterr().err == ""


def test_a_bug_is_one_line_with_its_place_and_with_debug_the_whole_traceback(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.action = lambda: plugins.find("stages", "a") or files.sha256_of(3)  # pyright: ignore[reportArgumentType]
    assert main(["index", "a"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("diffpipe index: error: unexpected TypeError at diffpipe/files.py:")
    assert line.endswith("; run the same command with --debug for the traceback, and report it")
    assert main(["index", "a", "--debug"]) == 1
    first, *frames, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert any(frame.endswith(", in sha256_of") for frame in frames)
    assert last.startswith("diffpipe index: error: unexpected TypeError at diffpipe/files.py:")
    monkeypatch.setenv("RANK", "0")
    assert main(["index", "a"]) == 1
    assert " on rank 0: " in capsys.readouterr().err


def test_debug_shows_where_a_rank_raised_an_error_that_all_ranks_raise(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> None:
        raise UserError("no such file")

    command.action = lambda: Communicator().raise_on_all_ranks(absent)
    assert main(["--debug", "index", "a"]) == 2
    shown = capsys.readouterr().err
    assert ", in absent\n" in shown
    assert shown.splitlines()[-1] == "diffpipe index: error: no such file"


def test_json_is_one_document_and_all_the_rest_is_on_stderr(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> int:
        print("of a library")
        output.current.note("it is small")
        output.current.result("a table", Path("a.json"), n=3)
        return 75

    command.action = action
    assert main(["index", "a", "--json"]) == 75
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {
        "command": "index",
        "status": 75,
        "n": 3,
        "files": ["a.json"],
        "notes": ["it is small"],
    }
    assert shown.err == "of a library\nnote: it is small\n"
    assert main(["index", "a"]) == 75
    assert capsys.readouterr().out == "of a library\na table\n"


@pytest.mark.parametrize(
    ("words", "error", "status"),
    [
        (["index", "a"], UserError("no such file"), 2),
        (["index", "a"], LostPeerError("gone"), 1),
        (["index", "a"], KeyboardInterrupt(), 130),
        (["index"], None, 2),
        (["indx", "a"], None, 2),
    ],
)
def test_json_has_the_error(
    command: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    error: BaseException | None,
    status: int,
) -> None:
    if error is not None:
        command.action = raising(error)
    if error is None:
        with pytest.raises(SystemExit, match=str(status)):
            main(["--json", *words])
    else:
        assert main(["--json", *words]) == status
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["status"] == status
    assert document["error"] in shown.err
    assert len(shown.err.splitlines()) == 1


def test_quiet_leaves_results_warnings_and_errors(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        output.current.note("it is small")
        output.current.remark("warning: the disk is nearly full")
        output.current.result("a table", Path("a.json"))
        raise UserError("no such file")

    command.action = action
    assert main(["index", "a", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "a table\n"
    assert shown.err == "warning: the disk is nearly full\ndiffpipe index: error: no such file\n"


def test_plugins_are_loaded_in_order_wherever_they_stand(
    command: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(plugins, "load", loaded.append)
    assert main(["--plugin", "a", "index", "word", "--plugin=b.py", "--plugin", "c"]) == 0
    assert (loaded, command.words) == (["a", "b.py", "c"], ["word"])


def test_a_word_that_is_no_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["smaple"])
    assert caught.value.code == 2
    assert "'smaple'" in capsys.readouterr().err


def test_every_command_has_a_module() -> None:
    folder = Path(diffpipe.__file__).parent / "cli"
    for name in COMMANDS:
        assert (folder / f"{name.replace('-', '_')}.py").is_file(), name


def test_a_folder_that_an_index_may_refer_to_is_allowed_before_or_after_the_command(
    command: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allowed_bases, "_allowed", [])
    assert main(["--allow-base", "https://a/x", "index", "word", "--allow-base=s3://b"]) == 0
    assert command.words == ["word"]
    assert allowed_bases.options() == ["--allow-base", "https://a/x", "--allow-base", "s3://b"]
    assert main(["index", "word", "--allow-base", "/local"]) == 2


def test_a_message_is_one_bounded_line_without_control_characters(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    command.action = raising(UserError("a\x1b[2Jb\u202ec\ud800 ä " + "x" * 10_000))
    assert main(["index", "a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"diffpipe index: error: a\x1b[2Jb\u202ec\ud800 ä xxx")
    assert len(line) < 4100
