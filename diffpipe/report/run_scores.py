"""The scores of a run, in groups that may be compared: those of one protocol."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffpipe.errors import UserError
from diffpipe.evaluation.score_files import protocol_hash
from diffpipe.metrics import protocol
from diffpipe.metrics.names import shown_value
from diffpipe.metrics.protocol import Result
from diffpipe.report.curve import Curve
from diffpipe.report.metrics_log import LARGEST, MetricsLog

_MOST_FILES, _MOST_METRICS, _LONGEST_NAME = 400, 20, 100
_LONGEST_TEXT = 20_000  # characters of a protocol
_OF_THE_CHECKPOINT = {"checkpoint", "step", "images_seen"}
"""Entries that differ between two scores of one run in the course of training."""


class ScorePoint(NamedTuple):
    """One score, after so many images."""

    images: float
    value: float


@dataclass(frozen=True)
class ScoreSeries:
    """The scores of one metric, as people read them, that follow one protocol, whose letter is `name`."""

    metric: str
    name: str
    floor: float | None
    points: Sequence[ScorePoint]

    def curve(self) -> Curve:
        x, y = (np.array(values, dtype=float) for values in zip(*self.points, strict=True))
        return Curve(f"protocol {self.name}", x, y, y, y, last=self.points[-1].value, dots=True)


class ScoreFile(NamedTuple):
    """One file of scores/. protocol: the letter of those that it may be compared with. step, images: None: unknown."""

    name: str
    protocol: str
    step: int | None
    images: int | None
    result: Result

    @property
    def about(self) -> Mapping[str, Any]:
        """The protocol's section about the run, with the number of images that were generated, or scored."""
        name = _measured(self.result)
        counted = "reference" if name == "model" else name
        return {**_section(self.result, counted), **_section(self.result, name)}

    @property
    def text(self) -> str:
        """The file's protocol as JSON."""
        text = json.dumps(self.result.protocol, indent=2, ensure_ascii=False)
        return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


class RunScores(NamedTuple):
    """The score files by step, and the names of those that cannot be read."""

    files: Sequence[ScoreFile]
    unreadable: Sequence[str]
    left_out: int


def read_scores(folder: Path, log: MetricsLog | None = None) -> RunScores:
    """The newest files of a scores/ folder. A link to another folder is not followed.

    log: has the images of a step for scores that do not say how many were seen, which are those of training.
    """
    paths = [] if folder.is_symlink() else sorted(folder.glob("*.json"), key=lambda path: _order(path.name))
    read: list[tuple[str, Result]] = []
    unreadable = []
    for path in paths[-_MOST_FILES:]:
        try:
            result = protocol.read(path)
            read.append(
                (path.name, dataclasses.replace(result, scores=_floats(result.scores), floor=_floats(result.floor)))
            )
        except (UserError, OverflowError):
            unreadable.append(path.name)
    read.sort(key=lambda entry: (_whole(entry[1], "step") or 0, entry[0]))
    letters: dict[str, str] = {}
    files = []
    for name, result in read:
        letter = letters.setdefault(_protocol(result), letter_of(len(letters)))
        step, images = _whole(result, "step"), _whole(result, "images_seen")
        if images is None and step is not None and log is not None:
            seen = log.at("images", float(step))
            images = int(seen) if seen is not None and math.isfinite(seen) else None
        files.append(ScoreFile(name, letter, step, images, result))
    return RunScores(files, unreadable, max(0, len(paths) - _MOST_FILES))


def series_of(files: Sequence[ScoreFile]) -> list[ScoreSeries]:
    """The scores by metric and protocol, in the order of the images seen. Scores of unknown images are left out."""
    groups: dict[tuple[str, str], list[ScoreFile]] = {}
    for file in files:
        for metric, value in file.result.scores.items():
            if file.images is not None and abs(shown_value(metric, value)) < LARGEST:
                groups.setdefault((metric, file.protocol), []).append(file)
    series = []
    for (metric, letter), group in groups.items():
        by_images = {file.images or 0: file for file in group}
        values = {images: shown_value(metric, file.result.scores[metric]) for images, file in by_images.items()}
        points = [ScorePoint(float(images), values[images]) for images in sorted(values)]
        floor = shown_value(metric, group[-1].result.floor.get(metric, math.inf))
        series.append(ScoreSeries(metric, letter, floor if abs(floor) < LARGEST else None, points))
    return series


def letter_of(i: int) -> str:
    """A, B, … Z, AA, AB, …"""
    return (letter_of(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def _order(name: str) -> tuple[str, str]:
    """Score files in the order of the steps in their names, which have eight digits."""
    return name.partition("step-")[2], name


def _floats(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(values[name]) for name in [*values][:_MOST_METRICS] if len(name) <= _LONGEST_NAME}


def _section(result: Result, key: str) -> Mapping[str, Any]:
    section = result.protocol.get(key)
    return section if isinstance(section, Mapping) else {}


def _measured(result: Result) -> str:
    """The protocol's section about the run: of images that it generated, or of the model that scored others."""
    return "generated" if "generated" in result.protocol else "model"


def _whole(result: Result, key: str) -> int | None:
    value = _section(result, _measured(result)).get(key)
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _protocol(result: Result) -> str:
    """The hash of a protocol without what tells the checkpoints of one run apart."""
    name = _measured(result)
    about = {key: value for key, value in _section(result, name).items() if key not in _OF_THE_CHECKPOINT}
    return protocol_hash({**result.protocol, name: about})
