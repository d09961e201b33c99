"""The status of a run, read from its directory: its step, its last figures, where it trains or why it ended.

Nothing here imports torch or parses a whole file: thousands of runs take a second or two. The run may train meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffpipe.experiment.find_runs import find_runs
from diffpipe.files import NOT_A_FILE, open_regular
from diffpipe.metrics.names import first_score, is_frechet
from diffpipe.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    LOCK,
    METRICS,
    NO_LOCKS,
    committed,
    config_value,
    holder,
    read_head,
    step_of,
)

State = Literal["running", "finished", "stopped", "failed", "killed", "imported", "unknown", "damaged", "foreign"]
_TAIL = 1 << 16
"""Bytes of a log file that are read, from its end."""
_SCORE_FILES = 20
"""Newest files of scores that are looked at."""


class RunStatus(NamedTuple):
    """A run, or a directory that looks like one.

    reason: why it ended, or what is wrong with the directory. step: the last one in its log, or the newest
    checkpoint's. steps: the last step that it is to train. score: the name, value and step of the newest Fréchet
    distance, or where there is none of the newest score. process, host: those that train it. age: seconds since it last
    wrote something. Each is None where nothing says it.
    """

    run: Path
    state: State
    reason: str | None = None
    stage: str | None = None
    step: int | None = None
    steps: int | None = None
    checkpoint: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    score: dict[str, Any] | None = None
    process: int | None = None
    host: str | None = None
    age: float | None = None


def statuses(folder: Path) -> list[RunStatus]:
    """The status of each run below a folder, and of the directories there without any. Raises UserError."""
    now = time.time()
    found = []
    for path, is_run, error in find_runs(folder):
        if is_run:
            found.append(read_status(path, now))
        else:
            found.append(RunStatus(path, "foreign", f"cannot be read: {error}" if error else "no run in it"))
    return found


def read_status(run: Path, now: float) -> RunStatus:
    """The status of the run in this directory. now: the time, for its age. What cannot be read now is not damaged."""
    try:
        return _read(run, now)
    except OSError as error:
        if error.errno in NOT_A_FILE:
            return RunStatus(run, "damaged", f"{error.filename or run}: {error.strerror}")
        return RunStatus(run, "unknown", f"{error.filename or run} cannot be read just now: {error.strerror}")
    except ValueError as error:  # a number of thousands of digits
        return RunStatus(run, "damaged", str(error))


def _read(run: Path, now: float) -> RunStatus:
    checkpoints = committed(run / CHECKPOINTS)
    log = _last_line(run / METRICS, lambda line: type(line.get("step")) is int)
    process, host, lockless = _holder(run / LOCK)
    try:
        config = read_head(run / CONFIG)
    except FileNotFoundError:
        if not checkpoints and not log and process is None:
            return RunStatus(run, "foreign", "not a run of diffpipe: it has no config.yaml and no checkpoint")
        config = ""
    steps, stage = config_value(config, "train", "steps"), config_value(config, "stage", "kind")
    newest = step_of(checkpoints[0]) if checkpoints else None
    last = log.get("last_step")
    status = RunStatus(
        run,
        "unknown",
        stage=stage,
        step=log.get("step", newest),
        steps=last if type(last) is int else int(steps) if steps and steps.isdecimal() else None,
        checkpoint=newest,
        loss=_number(log.get("loss")),
        images_per_second=_number(log.get("images_per_second")),
        score=_last_score(run / "scores"),
        age=_age(run, now),
    )
    if process is not None:
        return status._replace(state="running", process=process if process > 0 else None, host=host)
    if stage is None or steps is None or not steps.isdecimal():
        what = f"{CONFIG} is missing" if not config else f"{CONFIG} is not that of a run"
        return status._replace(state="damaged", reason=what)
    unlocked = "run.lock=false" if config_value(config, "run", "lock") == "false" else lockless
    state, reason = _end(run, status, int(steps), unlocked)
    return status._replace(state=state, reason=reason)


def _holder(lock: Path) -> tuple[int | None, str | None, str | None]:
    """The process that holds the run and its host; and why nothing says whether one does."""
    try:
        return *holder(lock), None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None, None, f"{lock}: {error.strerror}"


def _end(run: Path, status: RunStatus, steps: int, unlocked: str | None) -> tuple[State, str | None]:
    """The state of a run that no process holds, and why it ended.

    steps: its train.steps. unlocked: why nothing says whether a process holds it.
    """
    event = _last_line(run / EVENTS, lambda line: isinstance(line.get("event"), str))
    by_event: dict[str, tuple[State, str | None]] = {
        "finish": ("finished", "train.minutes are over" if (status.step or 0) < steps else None),
        "stop": ("stopped", f"by {event.get('signal')}"),
        "fail": ("failed", str(event.get("error"))),
        "start": ("killed", f"its processes on {event.get('host')} ended without a last word"),
    }
    by_event["resume"] = by_event["start"]
    if event.get("event") in ("start", "resume"):
        if status.checkpoint is not None and status.checkpoint >= (status.steps or steps):
            return "finished", None  # killed after its last save, and before its last word
        if unlocked is not None:
            return "unknown", f"{unlocked}: nothing says whether it still runs"
    if event.get("event") in by_event:
        return by_event[event["event"]]
    if status.checkpoint == 0 and status.step == 0:
        return "imported", None
    done = status.step is not None and status.step >= (status.steps or steps)
    return ("finished" if done else "unknown"), None


def _last_line(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The last such line of a file of JSON lines; empty where there is none. Damaged lines are passed over."""
    try:
        with os.fdopen(open_regular(path, follow_links=True), "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read(_TAIL).splitlines()
    except FileNotFoundError:
        return {}
    for line in reversed(lines):
        tree = _parse(line)
        if tree is not None and wanted(tree):
            return tree
    return {}


def _last_score(folder: Path) -> dict[str, Any] | None:
    """The newest Fréchet distance in the newest files of scores; where they have none, the newest file's first number.

    So a likelihood that was measured later does not hide it, and runs of several stages have one column in common.
    """
    try:
        with os.scandir(folder) as entries:
            files = [
                entry for entry in entries if entry.name.endswith(".json") and entry.is_file(follow_symlinks=False)
            ]
            files.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    except OSError:
        return None
    newest = None
    for file in files[:_SCORE_FILES]:
        score = _score_in(Path(file.path))
        if score is not None and is_frechet(score["name"]):
            return score
        newest = newest or score
    return newest


def _score_in(file: Path) -> dict[str, Any] | None:
    """The first Fréchet distance in a file of scores, else its first number; None where it cannot be read."""
    try:
        scores = (_parse(read_head(file)) or {}).get("scores")
    except OSError:
        return None
    numbers = {name: n for name, n in scores.items() if _number(n) is not None} if isinstance(scores, dict) else {}
    if not numbers:
        return None
    name, step = first_score(numbers), re.search("-step-([0-9]+)-", file.name)
    return {"name": name, "value": numbers[name], "step": int(step[1]) if step else None}


def _parse(text: str | bytes) -> dict[str, Any] | None:
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return tree if isinstance(tree, dict) else None


def _number(value: Any) -> float | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return value if whole or isinstance(value, float) else None


def _age(run: Path, now: float) -> float | None:
    times = []
    for name in (METRICS, EVENTS, CONFIG, LOCK):
        try:
            times.append((run / name).stat().st_mtime)
        except OSError:
            continue
    return None if not times else max(0.0, now - max(times))
