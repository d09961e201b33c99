"""The command line's parser: a wrong command or option is answered with the right one, where one is near."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from diffpipe.nearest import did_you_mean

COMMON_OPTIONS = {
    "--plugin": "a module, or the path of a .py file, that adds stages, networks, …; may be given several times",
    "--allow-base": "a remote folder that an index may refer to, such as https://host/shards?token=${TOKEN}; may be "
    "given several times",
    "--json": "print the result as one JSON document on stdout, and all the rest on stderr",
    "--quiet": "print no progress and no remarks, only results, warnings and errors",
    "--debug": "print the traceback of an error, too",
}
"""The options of every command, which may stand before the command, too."""
_NUMBERS: dict[Any, str] = {int: "an integer", float: "a number"}
_METAVARS = {"--plugin": "MODULE", "--allow-base": "URL"}


class CommonOptions(NamedTuple):
    """The values of the options of every command. plugins, bases: those of --plugin and of --allow-base, in order."""

    plugins: Sequence[str] = ()
    bases: Sequence[str] = ()
    json: bool = False
    quiet: bool = False
    debug: bool = False


def take_common_options(words: Sequence[str]) -> tuple[list[str], CommonOptions]:
    """The words without the options of every command, wherever they stand, and their values."""
    rest, plugins = _without_option("--plugin", [*words])
    rest, bases = _without_option("--allow-base", rest)
    flags = {flag: flag in rest for flag in COMMON_OPTIONS if flag not in _METAVARS}
    return [word for word in rest if word not in flags], CommonOptions(plugins, bases, *flags.values())


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Show the options of every command in the help of one. `take_common_options` has taken them."""
    group = parser.add_argument_group("options of every command")
    for option, text in COMMON_OPTIONS.items():
        if option in _METAVARS:
            group.add_argument(option, metavar=_METAVARS[option], help=text)
        else:
            group.add_argument(option, action="store_true", help=text)


class UsageError(SystemExit):
    """A wrong command line. It exits with status 2. `main` prints `line`, on rank 0 alone."""

    def __init__(self, prog: str, message: str):
        super().__init__(2)
        self.message = message
        self.line = f"{prog}: error: {message}; see {prog} --help"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples. An option that takes a number shows N or X instead of its own name."""

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "X"}.get(action.type) or super()._get_default_metavar_for_optional(action)


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose refusals say in one line what is wrong and what to write instead."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": _HelpFormatter, **options})

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
        raise UsageError(self.prog, message.removeprefix("argument "))

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own suppresses errors: help that found no room would be a success."""
        (file or sys.stderr).write(message)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """The options that a word may be short for. Those of every command are written in full."""
        return [match for match in super()._get_option_tuples(option_string) if match[1] not in COMMON_OPTIONS]

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError:
            if action.type not in _NUMBERS:
                raise
            name = action.metavar if not action.option_strings else " or ".join(action.option_strings)
            raise argparse.ArgumentError(None, f"{name} is {arg_string!r}; give {_NUMBERS[action.type]}") from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = list(action.choices or [])
        if choices and value not in choices:
            name = " or ".join(action.option_strings)
            what = f"value of {name}" if name else str(action.metavar).lower()
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
            example = "; a key of the config is written as train.steps=100" if takes_overrides else ""
            return f"no option is {name}{_nearest(option, known)}{example}"
        return f"{word!r} is one argument too many"

    def _command(self, parsed: argparse.Namespace) -> CommandParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices[getattr(parsed, action.dest)]
        return self


def _without_option(option: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The words without `OPTION VALUE`, wherever it stands, and the values."""
    rest, values = [], []
    while words:
        word = words.pop(0)
        if word == option and words:
            values.append(words.pop(0))
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            rest.append(word)
    return rest, values


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _nearest(word: str, known: Iterable[Any]) -> str:
    """`; did you mean …?` with the nearest known words, or all of a few."""
    names = [str(name) for name in known]
    longer = next((f"did you mean {name}?" for name in names if word.startswith(name + "-")), None)
    if near := did_you_mean(word, names) or longer:
        return f"; {near}"
    return f"; choose from {', '.join(names)}" if len(names) <= 30 else ""
