"""The commands of a sweep: one `diffpipe train` for each combination of the values of some keys."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from diffpipe import plugins
from diffpipe.config.sweep_values import split_values, sweep_values
from diffpipe.config.yaml_values import shortened
from diffpipe.data.remote import allowed_bases
from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.load_experiment import load_experiment

_MAX_NAME = 200
"""Bytes of the name of a run directory; file systems take 255."""
_OTHER = re.compile(r"[^\w.+-]+")
"""Characters that the name of a run directory does not have."""


def sweep_commands(config: str, overrides: Sequence[str], sweeps: Sequence[str] = ()) -> list[list[str]]:
    """The words of each command, the Cartesian product of the values; none where no key has several.

    overrides: `key=value`, or `key=a,b` where the key takes no text with commas. sweeps: `key=a,b` for any key. Each
    command has a run.dir of its own, a folder in that of the config, named for the values. Raises UserError where a
    combination is refused.
    """
    values = _values(overrides, sweeps)
    if not values:
        return []
    fixed = [word for word in overrides if word.partition("=")[0] not in values]
    base = [word for word in fixed if not word.startswith("run.dir=")]
    start = ["diffpipe", "train", config, *plugins.options(), *allowed_bases.options()]
    commands = {}
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        words = [f"{key}={value}" for key, value in chosen.items()]
        run = f"{load_experiment(config, [*fixed, *words]).run.dir}/{_name(chosen)}"
        if run in commands:
            raise UserError(f"two runs of this sweep would lie in {run}; give values that differ in letters or digits")
        commands[run] = [*start, *base, *words, f"run.dir={run}"]
        _require_one_line(commands[run])
    return [*commands.values()]


def _require_one_line(command: Sequence[str]) -> None:
    """Raise UserError unless the command stays one line as it looks, pasted or taken from a file by its number.

    A line break in the run.dir of a config would be a command of its own.
    """
    for word in command:
        if not all(character.isprintable() or "\udc80" <= character <= "\udcff" for character in word):
            raise UserError(
                f"{shortened(word, 100)!r} has a line break or another control character, which a printed command "
                f"cannot have; give another value"
            )


def _values(overrides: Sequence[str], sweeps: Sequence[str]) -> dict[str, list[str]]:
    """The values of each key that has several, in the order of the words."""
    splits = [(word, sweep_values(Experiment, word)) for word in overrides]
    several = [(word, values) for word, values in splits if len(values) > 1]
    for word in sweeps:
        if "=" not in word:
            raise UserError(
                f"--sweep {word}: give a key with its values, such as --sweep stage.codec.run=runs/a,runs/b"
            )
        several.append((word, split_values(word)))
    values = {word.partition("=")[0]: choices for word, choices in several}
    named = Counter(word.partition("=")[0] for word in [*overrides, *sweeps])
    for key in values:
        if named[key] > 1:
            raise UserError(f"{key} is given {named[key]} times; give all its values at once: {key}=A,B")
        if key == "run.dir":
            raise UserError("run.dir cannot be swept: each run has a folder in it, named for the values of other keys")
    return values


def _name(chosen: Mapping[str, str]) -> str:
    """The name of a run directory: each key's last part with its value, such as lr=1e-4,seed=0."""
    last = Counter(key.rpartition(".")[2] for key in chosen)
    words = []
    for key, value in chosen.items():
        short = key.rpartition(".")[2]
        words.append(f"{short if last[short] == 1 else key}={_OTHER.sub('_', value).strip('_')}")
    name = ",".join(words)
    if len(name.encode()) > _MAX_NAME:
        raise UserError(f"{name}: too long for the name of a run directory; sweep fewer keys, or shorter values")
    return name
