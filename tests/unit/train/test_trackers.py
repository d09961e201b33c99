"""Trackers: one that fails is left out with a warning, and the others go on."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.train.runtime import Runtime
from diffpipe.train.tracker_kinds import KINDS, TrackedRun, Tracker
from diffpipe.train.trackers import Trackers, require_installed

GRID = Image.new("L", (4, 4))


class Recorder(GeneralTracker):
    """Keeps what it gets. fails: the name of a method that raises."""

    requires_logging_directory = False
    tracker = None

    def __init__(self, name: str, fails: str = ""):
        self.name, self.fails, self.calls = name, fails, []
        super().__init__()

    def _call(self, method: str, *values: Any) -> None:
        if method == self.fails:
            raise ConnectionError("the server is\n gone")
        self.calls.append((method, *values))

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict) -> None:
        self._call("config", values)

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        self._call("log", values, step)

    def log_images(self, values: dict, step: int) -> None:
        self._call("images", values, step)

    def finish(self) -> None:
        self._call("finish")


def started(runtime: Runtime, home: Path, *recorders: Recorder, step: int = 0) -> tuple[Trackers, list[str]]:
    trackers, warnings = Trackers(runtime.accelerator, {recorder.name: recorder for recorder in recorders}), []
    trackers.start(TrackedRun(home, "project", "name", step), {"seed": 3, "data.train": ["a"]}, warnings.append)
    return trackers, warnings


@pytest.mark.parametrize("fails", ["start", "config", "log", "images", "finish"])
def test_a_tracker_that_fails_is_left_out_with_a_warning(runtime: Runtime, tmp_path: Path, fails: str) -> None:
    good, bad = Recorder("good"), Recorder("flaky", fails)
    trackers, warnings = started(runtime, tmp_path, bad, good)
    for step in (1, 2):
        trackers.log({"loss": 0.5}, step)
        trackers.log_grid(GRID, step)
    trackers.finish()
    assert warnings == [
        "the tracker flaky gets no values from here on, and the run goes on: ConnectionError: the server is gone"
    ]
    steps = [call for step in (1, 2) for call in (("log", {"loss": 0.5}, step), ("images", {"samples": [GRID]}, step))]
    assert good.calls == [("start",), ("config", {"seed": 3, "data.train": "['a']"}), *steps, ("finish",)]


def test_a_tensorboard_that_is_not_installed_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    warnings: list[str] = []
    with Runtime.start("fp32", "cpu", tmp_path) as runtime:  # a warning of accelerate's would fail the test
        runtime.trackers.start(TrackedRun(tmp_path, "project", "name", 0), {}, warnings.append)
        runtime.trackers.log({"loss": 0.5}, 1)
    (warning,) = warnings
    assert warning.endswith(": tensorboard is not installed; install it with: pip install 'diffpipe[tensorboard]'")


def test_other_ranks_track_nothing(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(runtime.accelerator), "is_main_process", False)
    recorder = Recorder("good")
    trackers, _ = started(runtime, tmp_path, recorder)
    trackers.log({"loss": 0.5}, 1)
    trackers.finish()
    assert recorder.calls == []


class Numbered(Tracker):
    """Chooses an identity for a new run, and has its steps up to 4 already when it continues one."""

    buffers = True

    def options(self) -> dict[str, Any]:
        self.identity = self.identity or {"id": "1a"}
        return {}

    def attach(self, handle: Any) -> None:
        super().attach(handle)
        self.last_step = 4 if self.continued else -1


def test_a_resume_continues_the_run_and_sends_what_the_tracker_lacks(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "numbered", Numbered)
    (tmp_path / "samples").mkdir()
    GRID.save(tmp_path / "samples" / "step-00000006.png")

    def lines() -> list[dict[str, Any]]:
        return [{"step": step, "loss": step / 2} for step in (3, 4, 5, 6)]

    first, second = Recorder("numbered"), Recorder("numbered")
    started(runtime, tmp_path, first)[0].replay(lines)
    assert [call[0] for call in first.calls] == ["start", "config"]  # a new run begins where it is
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"numbered": {"id": "1a"}}
    trackers, warnings = started(runtime, tmp_path, second, step=6)
    trackers.replay(lines)
    for step in (4, 7):
        trackers.log({"loss": step / 2}, step)
    assert [call[2] for call in second.calls if call[0] == "log"] == [5, 6, 7]
    assert [call[2] for call in second.calls if call[0] == "images"] == [6]
    assert warnings == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"good": 3}', '{"good": "1a"}', '{"good": {"project": 3}}', "[" * 10**6]
)
def test_a_damaged_file_of_identities_is_a_warning(runtime: Runtime, tmp_path: Path, content: str) -> None:
    (tmp_path / "trackers.json").write_text(content)
    _, warnings = started(runtime, tmp_path, Recorder("good"))
    assert warnings == [f"{tmp_path / 'trackers.json'}: damaged: the trackers start new runs"]


def test_a_tracker_whose_package_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else object())
    require_installed(["wandb", "of_a_plugin"])
    with pytest.raises(
        UserError, match=r"^mlflow is not installed; install it with: pip install 'diffpipe\[trackers\]'"
    ):
        require_installed(["tensorboard", "mlflow"])
