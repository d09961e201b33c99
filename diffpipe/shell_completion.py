"""Shell completion: a script for bash, zsh or fish that completes commands, options, their values and config keys.

It is made from the parsers, and holds all words: completing starts no Python.
"""

from __future__ import annotations

import argparse
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

SHELLS = ("bash", "zsh", "fish")

_BASH = """
_diffpipe() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= given=0 i key
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --plugin|--allow-base) ((i++)) ;;
            -*) ;;
            *) if [[ -z $command || " @NESTED@ " == *" $command "* ]]; then
                   command="${command:+$command }${COMP_WORDS[i]}"
               else
                   ((++given))
               fi ;;
        esac
    done
    case "$command:$prev" in
@VALUES@
    esac
    if [[ $cur == -* ]]; then
        case $command in
@OPTIONS@
        esac
    elif [[ $cur == = || $prev == = ]]; then  # bash takes key=value as three words
        [[ $cur == = ]] && key=$prev cur= || key=${COMP_WORDS[COMP_CWORD-2]}
        COMPREPLY=($(compgen -W "$(_diffpipe_values "$key")" -- "$cur"))
    elif [[ $cur == *=* ]]; then  # zsh as one
        key=${cur%%=*}
        COMPREPLY=($(compgen -P "$key=" -W "$(_diffpipe_values "$key")" -- "${cur#*=}"))
    else
        case $command in
@NAMES@
            @OVERRIDDEN@) if ((given)); then _diffpipe_keys "$cur"; fi ;;
        esac
    fi
}
_diffpipe_keys() {  # one part of a dotted key at a time
    local key rest found=" "
    for key in @KEYS@; do
        [[ $key == "$1"* ]] || continue
        rest=${key#"$1"}
        if [[ $rest == *.* ]]; then key="$1${rest%%.*}."; else key="$key="; fi
        [[ $found == *" $key "* ]] || found="$found$key "
    done
    COMPREPLY=($found)
    [[ -z $COMPREPLY ]] || compopt -o nospace 2>/dev/null
}
_diffpipe_values() {
    case $1 in
@CHOICES@
    esac
}
"""
_FISH = """
function __diffpipe_command  # the command so far, with its action
    set -l words (commandline -opc)[2..-1]
    set -l rest (string match -v -- '-*' $words)
    if contains -- "$rest[1]" @NESTED@
        echo "$rest[1..2]"
    else
        echo "$rest[1]"
    end
end
function __diffpipe_is
    contains -- (__diffpipe_command) $argv
end
"""


Options = Mapping[str, tuple[str, tuple[str, ...] | None]]
"""The help of each option, and the words that its value may be: None where it takes none, empty where any."""


class CommandWords(NamedTuple):
    """The words of a command, such as `sample` or `config show`.

    actions: those of a command that has some. overridden: whether it takes config keys.
    """

    name: str
    summary: str
    options: Options
    actions: tuple[str, ...]
    overridden: bool


def completion_script(shell: str, parser: argparse.ArgumentParser, keys: Mapping[str, tuple[str, ...]]) -> str:
    """The script for one of `SHELLS`.

    parser: with the arguments of all commands. keys: the config keys, with the words that a value may be.
    """
    commands = list(_commands(parser, "", parser.description or ""))
    if shell == "fish":
        return _fish(commands, keys)
    script = _bash(commands, keys)
    if shell == "zsh":
        head = "#compdef diffpipe\nautoload -U +X bashcompinit && bashcompinit\n"
        return f"{head}{script}complete -o default -o nospace -F _diffpipe diffpipe\n"
    return f"{script}complete -o default -F _diffpipe diffpipe\n"


def _commands(
    parser: argparse.ArgumentParser, name: str, summary: str, inherited: Options = types.MappingProxyType({})
) -> Iterator[CommandWords]:
    """The words of a parser, and of the parsers of its actions. inherited: the options of the command that it is of."""
    options = dict(inherited)
    nested: dict[str, argparse.ArgumentParser] = {}
    summaries: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            nested = dict(action.choices)
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for option in action.option_strings:
            values = None if action.nargs == 0 else tuple(map(str, action.choices or ()))
            options[option] = " ".join((action.help or "").split()), values
    overridden = any(action.dest == "overrides" for action in parser._actions)
    yield CommandWords(name, summary, options, tuple(nested), overridden)
    for action, below in nested.items():
        yield from _commands(below, f"{name} {action}".strip(), summaries[action], options if name else {})


def _bash(commands: list[CommandWords], keys: Mapping[str, tuple[str, ...]]) -> str:
    def cases(entries: Mapping[str, str], indent: int) -> str:
        return "\n".join(f"{' ' * indent}{shlex.quote(case)}) {action} ;;" for case, action in entries.items())

    def reply(words: Iterable[str]) -> str:
        return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$cur"))'

    values: dict[str, str] = {}
    files = []
    for command in commands:
        for option, (_, of) in command.options.items():
            if of:
                values[f"{command.name}:{option}"] = f"{reply(of)}; return"
            elif of is not None:
                files.append(shlex.quote(f"{command.name}:{option}"))
    parts = {
        "NESTED": " ".join(command.name for command in commands if command.actions and command.name),
        "VALUES": f"{cases(values, 8)}\n        {'|'.join(files)}) return ;;",
        "OPTIONS": cases({command.name: reply(command.options) for command in commands}, 12),
        "NAMES": cases({command.name: reply(command.actions) for command in commands if command.actions}, 12),
        "OVERRIDDEN": "|".join(shlex.quote(command.name) for command in commands if command.overridden),
        "KEYS": " ".join(keys),
        "CHOICES": cases({key: f"echo {shlex.quote(' '.join(of))}" for key, of in keys.items() if of}, 8),
    }
    script = _BASH.lstrip("\n")
    for name, text in parts.items():
        script = script.replace(f"@{name}@", text)
    return script


def _fish(commands: list[CommandWords], keys: Mapping[str, tuple[str, ...]]) -> str:
    lines = [_FISH.strip().replace("@NESTED@", " ".join(c.name for c in commands if c.actions and c.name))]
    summaries = {command.name: command.summary for command in commands}
    for command in commands:
        here = f"complete -c diffpipe -n {_fish_quote(f'__diffpipe_is {_fish_quote(command.name)}')}"
        for action in command.actions:
            name = f"{command.name} {action}".strip()
            lines.append(f"{here} -fa {action} -d {_fish_quote(summaries[name])}")
        for option, (text, values) in command.options.items():
            spelled = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            takes = "" if values is None else f" -xa {_fish_quote(' '.join(values))}" if values else " -r"
            lines.append(f"{here} {spelled}{takes} -d {_fish_quote(text.replace('%(default)s', ''))}")
        if command.overridden:
            words = [f"{key}={value}" for key, values in keys.items() for value in values or ("",)]
            lines.append(f"{here} -a {_fish_quote(' '.join(words))}")
    return "\n".join(lines) + "\n"


def _fish_quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
