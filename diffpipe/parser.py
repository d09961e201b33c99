"""The command line's parser: a wrong command or option is answered with the right one, where one is near."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals say in one line what is wrong and what to write instead."""

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:
        parsed, unknown = self.parse_known_args(args, namespace)
        if hasattr(parsed, "overrides"):  # argparse ends a list of words at the first option
            parsed.overrides = [*parsed.overrides, *filter(_is_override, unknown)]
            unknown = [word for word in unknown if not _is_override(word)]
        if unknown:
            command = self._command(parsed)
            command.error(command.advice(unknown[0]))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own suppresses errors: help that found no room would be a success."""
        (file or sys.stderr).write(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(action.choices or [])
        if choices and value not in choices:
            name = action.metavar if isinstance(action.metavar, str) else "/".join(action.option_strings)
            what = "command" if name == "COMMAND" else f"value of {name}"
            raise argparse.ArgumentError(None, f"no {what} is {value!r}{_nearest(str(value), choices)}")

    def advice(self, word: str) -> str:
        """The words to write in the place of one that the command does not know."""
        name, equals, value = word.partition("=")
        key = name.lstrip("-")
        takes_overrides = any(action.dest == "overrides" for action in self._actions)
        option = f"--{key.rpartition('.')[2].replace('_', '-')}"
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if name.startswith("-") and "." in key and takes_overrides:
            return f"{word}: a config key is written without dashes: {key}={value or 'VALUE'}"
        if "." in key and option in known:
            return f"{word}: the option of this command for that key is {option}{value and f' {value}'}"
        if equals and not name.startswith("-"):
            return f"{word}: this command takes no config keys; they are of the run's config"
        if name.startswith("-"):
            return f"no option is {name}{_nearest(option, known)}"
        return f"{word!r} is one argument too many"

    def _command(self, parsed: argparse.Namespace) -> CommandParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices[getattr(parsed, action.dest)]
        return self


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _nearest(word: str, known: Iterable[Any]) -> str:
    """`; did you mean …?` with the nearest known words, or all of a few."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(word, names, n=2) or [name for name in names if word.startswith(name + "-")][:1]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; choose from {', '.join(names)}" if len(names) <= 20 else ""
