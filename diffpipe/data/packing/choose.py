"""The choice of the samples of a source that are packed, and of those that are held out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from diffpipe.data.packing.source import Source
from diffpipe.errors import UserError
from diffpipe.plural import plural
from diffpipe.rng import permutation_start


@dataclass(frozen=True)
class Split:
    """A split into train and test that keeps each group of samples together.

    by: "group" for the first folder of each name, "column:NAME" for a column of the labels file or the table, or a
    regular expression that finds the group in each name: its first parentheses, or the whole match. fraction: the
    expected fraction of groups in test. Which groups these are depends on their names alone.
    """

    by: str
    fraction: float = 0.1

    def tested(self, source: Source) -> np.ndarray:
        """Whether each sample of the source is in the test part, bool. Raises UserError."""
        side: dict[str, bool] = {}
        for group in self._groups(source):
            if group not in side:
                digest = hashlib.sha256(group.encode("utf-8", "surrogateescape")).digest()
                side[group] = int.from_bytes(digest[:8], "big") < self.fraction * 2**64
        if len(set(side.values())) < 2:
            part = "test" if True not in side.values() else "train"
            raise UserError(
                f"--split-by {self.by}: none of the {plural(len(side), 'group')} falls to {part}; "
                "give a finer pattern or another --test-fraction"
            )
        return np.array([side[group] for group in self._groups(source)])

    def _groups(self, source: Source) -> list[str]:
        if self.by.startswith("column:"):
            return list(source.column(self.by.removeprefix("column:")))
        names = source.names()
        if self.by == "group":
            groups = [name.partition("/")[0] if "/" in name else None for name in names]
        else:
            try:
                pattern = re.compile(self.by)
            except re.error as error:
                raise UserError(f"--split-by {self.by}: not a regular expression ({error}); correct it") from error
            matches = (pattern.search(name) for name in names)
            groups = [match and match[1 if pattern.groups else 0] for match in matches]
        for name, group in zip(names, groups, strict=True):
            if group is None:
                raise UserError(f"--split-by {self.by}: {name} is in no group; give a pattern that matches each name")
        return [group for group in groups if group is not None]


def choose(
    source: Source, only: Collection[int], leave_out: Collection[int], per_class: int | None, seed: int
) -> np.ndarray:
    """The indices of the samples to pack, int64; `pack` describes the arguments. Raises UserError."""
    options = {"--only": only, "--leave-out": leave_out, "--per-class": per_class}
    used = [option for option, value in options.items() if value]
    if not used:
        return np.arange(len(source))
    if source.labels is None:
        raise UserError(f"{used[0]} needs labels; give class folders or a labels file")
    labels = np.asarray(source.labels)
    names = source.classes
    known = np.arange(len(names)) if names is not None else np.unique(labels)
    for option, asked in (("--only", only), ("--leave-out", leave_out)):
        unknown = sorted(set(asked) - set(known.tolist()))
        if unknown:
            raise UserError(f"{option} {unknown[0]}: no such label; the labels are {known[0]} to {known[-1]}")
    kept = [label for label in sorted(set(only)) or known.tolist() if label not in leave_out]
    chosen = [np.flatnonzero(np.isin(labels, kept))]
    if per_class is not None:
        chosen = [_draw(labels, label, names, per_class, seed) for label in kept]
    if not sum(map(len, chosen)):
        raise UserError("--only and --leave-out leave no images; keep a class that has some")
    return np.concatenate(chosen)


def _draw(labels: np.ndarray, label: int, names: Sequence[str] | None, n: int, seed: int) -> np.ndarray:
    members = np.flatnonzero(labels == label)
    if len(members) < n:
        name = label if names is None else names[label]
        raise UserError(f"class {name} has {plural(len(members), 'image')}, fewer than --per-class {n}; ask for fewer")
    return members[permutation_start(n, len(members), seed, "per-class", label)]
