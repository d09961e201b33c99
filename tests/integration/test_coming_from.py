"""configs/coming_from.md: its keys build, and its commands and options are those of the commands."""

from __future__ import annotations

import re
import shlex

import pytest

from diffpipe.config import load_config
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from tests.support.commands import HOME, diffpipe

PAGE = HOME / "configs" / "coming_from.md"
# A row is of some kind of diffusion: its keys must fit one of these.
BASES = ["own_images/ddpm.yaml", "fashion_mnist/ddpm.yaml", "cifar10/edm.yaml", "cifar10/flow_matching.yaml"]
ROWS = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if re.match(r"\| (?!--)", line)]
HERE = [code for _, here in ROWS for code in re.findall(r"`([^`]+)`", here)]
OVERRIDES = [code for code in HERE if re.match(r"[\w.]+=", code)]
COMMANDS = [code for code in HERE if code.startswith("diffpipe ")]


def test_the_page_has_rows_of_both_kinds() -> None:
    assert len(OVERRIDES) > 50
    assert len(COMMANDS) > 8


@pytest.mark.parametrize("code", OVERRIDES)
def test_the_keys_of_a_row_make_a_config(code: str) -> None:
    errors = []
    for base in BASES:
        try:
            load_config(Experiment, HOME / "configs" / base, code.split())
            return
        except UserError as error:
            errors.append(str(error))
    pytest.fail("\n".join(errors))


@pytest.mark.parametrize("code", COMMANDS)
def test_a_command_of_a_row_takes_its_options(code: str) -> None:
    _, command, *words = shlex.split(code)
    options = diffpipe(command, "--help").stdout
    for word in words:
        if word.startswith("--"):
            assert re.search(rf"{word}\b", options), word
        elif word.startswith("configs/"):
            assert (HOME / word).exists(), word
