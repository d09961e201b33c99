"""The pages name keys and options that exist, and configs/README.md has the generated reference."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from diffpipe.__main__ import COMMANDS, _module
from diffpipe.config.reference import as_markdown, sections
from diffpipe.experiment.config import Experiment
from diffpipe.parser import CommandParser, add_common_options

HOME = Path(__file__).parents[3]
PAGES = ["README.md", "configs/README.md", "eval/README.md", "launch/README.md"]
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->"
DOTTED = re.compile(r"`([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+)(?:=[^`]*)?`")
OTHER = re.compile(r"diffpipe\..*|.*\.(json|jsonl|yaml|html|png|py|safetensors)")  # modules, entry points and files
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")


def text_of(page: str) -> str:
    return (HOME / page).read_text(encoding="utf-8")


def test_the_readme_holds_the_reference_as_it_is_generated() -> None:
    reference = text_of("configs/README.md").partition(BEGIN)[2].partition(END)[0]
    assert reference == as_markdown(Experiment), (
        "configs/README.md is out of date: replace all between its two `keys:` comments by the output of "
        "`diffpipe config keys --markdown`"
    )


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_exists(page: str) -> None:
    known = {key.name for section in sections(Experiment) for key in section.keys}
    known |= {name.rpartition(".")[0] for name in known}  # a section
    named = {name for name in DOTTED.findall(text_of(page)) if not OTHER.fullmatch(name)}
    assert sorted(named - known) == []
    assert page != "launch/README.md" or len(named) > 10


def options(parser: CommandParser) -> set[str]:
    """The options of a command and of its actions."""
    known = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            known |= {option for below in action.choices.values() for option in options(below)}
    return known


def test_every_option_that_a_page_names_exists() -> None:
    known = set(launch_command_parser()._option_string_actions)
    for name in COMMANDS:
        parser = CommandParser(prog=name)
        add_common_options(parser)
        _module(name).add_arguments(parser)
        known |= options(parser)
    for page in PAGES:
        lines = text_of(page).partition("## Every key")[0].splitlines()
        text = "\n".join(line for line in lines if not line.startswith(("docker ", "sbatch ")))
        assert sorted(set(OPTION.findall(text)) - known) == [], page
