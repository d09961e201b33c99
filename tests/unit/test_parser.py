"""A wrong word on the command line is answered in one line with the right one."""

from __future__ import annotations

import re

import pytest

from diffpipe.__main__ import COMMANDS, main
from diffpipe.parser import CommandParser, CommonOptions, add_common_options, take_common_options

CASES = {
    "a mistyped command": (["trian"], "no command is 'trian'; did you mean train?"),
    "no command at all": (["xyzzy"], "no command is 'xyzzy'; choose from pack, "),
    "a config key as an option": (
        ["train", "config.yaml", "--data.batch_size=4"],
        "--data.batch_size=4: a config key is written without dashes: data.batch_size=4",
    ),
    "an option by its config key": (
        ["sample", "runs/x", "out", "stage.sampler.steps=5"],
        "stage.sampler.steps=5: the option of this command for that key is --steps 5",
    ),
    "a config key that has no option": (
        ["sample", "runs/x", "out", "data.batch_size=5"],
        "data.batch_size=5: this command takes no config keys",
    ),
    "a mistyped option": (["sample", "runs/x", "out", "--sampeler", "ddim"], "did you mean --sampler"),
    "a mistyped option of every command": (["sample", "runs/x", "out", "--qiet"], "did you mean --quiet"),
    "a mistyped action": (["config", "shwo", "config.yaml"], "no action is 'shwo'; did you mean show?"),
    "an option of another tool": (["sample", "runs/x", "out", "--n_samples", "4"], "no option is --n_samples"),
    "a wrong choice": (["sample", "runs/x", "out", "--precision", "fp23"], "'fp23'; did you mean fp32"),
    "a word for an integer": (["sample", "runs/x", "out", "--n", "many"], "error: --n is 'many'; give an integer;"),
    "a word for a number": (["sample", "runs/x", "out", "--eta", "x"], "error: --eta is 'x'; give a number;"),
    "a choice of a positional argument": (["completion", "basj"], "error: no shell is 'basj'; did you mean bash?"),
    "an argument without its value": (["sample", "runs/x", "out", "--n"], "error: --n: expected one argument"),
    "one word too many": (["sample", "runs/x", "out", "more"], "'more' is one argument too many"),
    "a missing word": (["sample", "runs/x"], "the following arguments are required: OUT"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_answered_in_one_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, expected = CASES[case]
    with pytest.raises(SystemExit) as exited:
        main(words)
    assert exited.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert line.endswith("--help")


def test_config_keys_may_stand_behind_an_option() -> None:
    parser = CommandParser()
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--n", type=int)
    assert parser.parse_args(["a=1", "--n", "2", "b.c=3"]).overrides == ["a=1", "b.c=3"]


def test_the_options_of_every_command_may_stand_anywhere() -> None:
    words = ["--json", "pack", "--plugin", "a", "photos", "--quiet", "--allow-base=s3://b", "shards", "--plugin=b.py"]
    assert take_common_options(words) == (
        ["pack", "photos", "shards"],
        CommonOptions(["a", "b.py"], ["s3://b"], json=True, quiet=True),
    )
    assert take_common_options(["train", "--debug"]) == (["train"], CommonOptions([], [], debug=True))


def test_an_option_may_be_short_for_one_of_its_command_but_not_of_every_command() -> None:
    parser = CommandParser()
    add_common_options(parser)
    parser.add_argument("--device")
    assert parser.parse_args(["--de", "cpu"]).device == "cpu"
    with pytest.raises(SystemExit):
        parser.parse_args(["--js"])


ACTIONS = [["config", action] for action in ("show", "diff", "schema", "keys")] + [["runs", "prune"]]


def shown(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [*([command] for command in COMMANDS), *ACTIONS], ids=" ".join)
def test_the_help_of_every_command_has_one_shape(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(words, capsys)
    _, description, *_ = text.split("\n\n")
    assert description[0].isupper()
    assert description.endswith(".")
    assert "options of every command:" in text
    for option, value in re.findall(r"--([a-z-]+) ([A-Z_]+)\b", text):
        twice = option.upper().replace("-", "_") == value and value not in ("N", "SHARDS")
        assert not twice, f"--{option} {value} says its name twice"
    assert not re.search(r"\([\d.]+\)", text), "a default without this word"
    if words not in ACTIONS:
        assert "\nexample:\n  diffpipe" in text
