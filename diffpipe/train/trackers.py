"""The trackers of a run: accelerate's TensorBoard, Weights & Biases, MLflow and Trackio, and those of plug-ins."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffpipe.errors import UserError, raise_first
from diffpipe.files import atomic_write, parse_json, read_regular
from diffpipe.train.tracker_kinds import KINDS, TrackedRun, Tracker

FILE = "trackers.json"
"""The file in the run directory that names the run at each tracker, so that a resume continues it there."""
_LONGEST = 1 << 20  # bytes of it


class Trackers:
    """The trackers of a run. Rank 0 sends them the lines of metrics.jsonl, grids of samples and scores.

    A tracker that fails is left out from then on, with one warning: it never stops a run. Before `start`, and on other
    ranks, there are none.
    """

    def __init__(self, accelerator: Any, services: Mapping[str, Any]):
        """services: accelerate's name, or a plug-in's tracker object, by the name in the config."""
        self.running: list[Tracker] = []
        self._accelerator, self._services = accelerator, services
        self._warn: Callable[[str], object] = lambda message: sys.stderr.write(f"warning: {message}\n")

    def start(self, run: TrackedRun, config: Mapping[str, Any], warn: Callable[[str], object]) -> None:
        """Start the trackers, or continue the run that they have. config: the run's config by dotted key."""
        if not self._accelerator.is_main_process:
            return
        self._warn = warn
        _keep_tensorboard_threads_quiet()
        path = run.directory / FILE
        stored = _identities(path, warn)
        self.running = [KINDS.get(name, Tracker)(name, run, stored.get(name, {})) for name in self._services]
        self._on_each(self._start)
        started = {tracker.name: tracker.identity for tracker in self.running if tracker.identity}
        if started and stored | started != stored:
            try:
                atomic_write(path, json.dumps(stored | started, indent=1) + "\n")
            except OSError as error:
                warn(f"{path}: {error.strerror}: a resume cannot continue this run at {', '.join(started)}")
        values = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in config.items()}
        self._on_each(lambda tracker: tracker.log_config(values))

    def _start(self, tracker: Tracker) -> None:
        accelerator = self._accelerator
        options = tracker.options()
        accelerator.log_with, accelerator.trackers = [self._services[tracker.name]], []
        try:
            accelerator.init_trackers(tracker.project, init_kwargs={tracker.name: options})
            (handle,) = accelerator.trackers
        finally:
            accelerator.trackers = []
        tracker.attach(handle)

    def replay(self, lines: Callable[[], Iterable[dict[str, Any]]]) -> None:
        """Send the lines of metrics.jsonl that trackers lost when the run was killed."""
        self._on_each(lambda tracker: tracker.replay(lines()))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Send a line of metrics.jsonl, or scores. Trackers that have the step from before a resume are passed over."""
        self._on_each(lambda tracker: tracker.log(values, step) if step > tracker.last_step else None)

    def log_grid(self, picture: Image.Image, step: int) -> None:
        """Send a grid of samples, likewise."""
        self._on_each(lambda tracker: tracker.log_grid(picture, step) if step > tracker.last_step else None)

    def finish(self) -> None:
        self._on_each(lambda tracker: tracker.finish())
        self.running = []

    def _on_each(self, act: Callable[[Tracker], object]) -> None:
        for tracker in [*self.running]:
            try:
                with tracker.output():
                    act(tracker)
            except Exception as error:  # noqa: BLE001 (a log never stops a run)
                self.running.remove(tracker)
                self._warn(_lost(tracker.name, error))


def require_installed(names: Iterable[str]) -> None:
    """Raise UserError where the package of a tracker is absent. Without TensorBoard, the default, a run goes on."""
    absent = [
        UserError(
            f"{name} is not installed; install it with: pip install 'diffpipe[trackers]', or leave it out of "
            f"train.trackers"
        )
        for name in names
        if name in KINDS and name != "tensorboard" and importlib.util.find_spec(name) is None
    ]
    raise_first(absent)


def _identities(path: Path, warn: Callable[[str], object]) -> dict[str, dict[str, str]]:
    """The content of trackers.json; nothing where it is missing, or damaged, with a warning."""
    try:
        content = parse_json(read_regular(path, limit=_LONGEST))
        if not all(isinstance(text, str) for identity in content.values() for text in identity.values()):
            raise ValueError("not a table of trackers")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "damaged"
        warn(f"{path}: {reason}: the trackers start new runs")
        return {}
    return content


def _lost(name: str, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or (
        str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    )
    return f"the tracker {name} gets no values from here on, and the run goes on: {' '.join(str(reason).split())[:300]}"


def _keep_tensorboard_threads_quiet() -> None:
    """Print no traceback for a thread of TensorBoard whose disk fails: the next write raises the same error."""
    if getattr(threading.excepthook, "about_tensorboard", False):
        return
    shown = threading.excepthook

    def excepthook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            shown(args)

    excepthook.about_tensorboard = True
    threading.excepthook = excepthook
