"""Errors: the commands in them, and independent ones together."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from diffpipe.errors import MOST_FAULTS, LostPeerError, NoAnswerError, UserError, all_of, shell_command


def failing(error: Exception, ran: list[str]) -> Callable[[], None]:
    def action() -> None:
        ran.append(str(error))
        raise error

    return action


def test_actions_without_an_error_give_their_results() -> None:
    assert all_of(lambda: 1, lambda: None, lambda: "x") == [1, None, "x"]
    assert all_of() == []


def test_the_first_error_is_raised_with_the_messages_of_all() -> None:
    inner = [lambda: all_of(*(failing(UserError(name), []) for name in "bc")), failing(UserError("a"), [])]
    with pytest.raises(UserError, match=r"^a$") as caught:
        all_of(failing(UserError("a"), []), lambda: 1, *inner)
    assert caught.value.faults == ["a", "b", "c"]


@pytest.mark.parametrize("last", [LostPeerError("gone"), NoAnswerError("gone"), ZeroDivisionError("gone")])
def test_nothing_is_tried_where_a_process_is_lost_or_a_server_does_not_answer(last: Exception) -> None:
    ran: list[str] = []
    with pytest.raises(type(last), match="gone"):
        all_of(failing(last, ran), failing(UserError("a"), ran))
    assert ran == ["gone"]


def test_errors_of_one_cause_are_not_looked_for_without_end() -> None:
    ran: list[str] = []
    with pytest.raises(UserError) as caught:
        all_of(*(failing(UserError(str(i)), ran) for i in range(1000)))
    assert len(caught.value.faults) == len(ran) == MOST_FAULTS


def test_a_command_to_paste_expands_nothing() -> None:
    path = Path("it's $(touch x) `y` ü\"")
    command = shell_command("diffpipe", "index", path)
    assert shlex.split(command) == ["diffpipe", "index", str(path)]
    assert shell_command("diffpipe", "index", "shards/a") == "diffpipe index shards/a"
