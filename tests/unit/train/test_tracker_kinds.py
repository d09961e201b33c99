"""Each kind of tracker: what it is started with, and which of its steps a resume leaves alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffpipe.plugins import BUILT_IN
from diffpipe.train.runtime import Runtime
from diffpipe.train.tracker_kinds import KINDS, MLflow, TrackedRun, Trackio


def test_plugins_take_no_name_of_a_tracker() -> None:
    assert BUILT_IN["trackers"] == set(KINDS)


def test_tensorboard_hides_the_steps_that_are_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    picture = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    for resumed_from, value in ((0, 1.0), (2, 2.0)):
        monkeypatch.setattr(time, "time", lambda: now + resumed_from)  # noqa: B023 (the files are named by the second)
        with Runtime.start("fp32", "cpu", tmp_path) as runtime:
            runtime.trackers.start(TrackedRun(tmp_path, "project", "name", resumed_from), {"seed": 3}, pytest.fail)
            for step in range(resumed_from + 1, 5):
                runtime.trackers.log({"loss": value}, step)
            runtime.trackers.log_grid(picture, 4)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [event.step for event in events.Images("samples")] == [4]


RUN = TrackedRun(Path("runs/cats"), "pictures", "cats", 0)


def test_a_new_run_at_trackio_has_a_name_that_no_other_has() -> None:
    """Trackio tells runs apart by their names alone."""
    names = {Trackio("trackio", RUN, {}).options()["name"] for _ in range(10)}
    assert len(names) == 10
    assert all(name.startswith("cats-") for name in names)
    assert Trackio("trackio", RUN, {"project": "old", "name": "dogs-1"}).options()["name"] == "dogs-1"


def test_mlflow_writes_into_the_run_directory_unless_it_is_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert MLflow("mlflow", RUN, {}).options() == {"run_name": "cats", "run_id": None}
    assert os.environ["MLFLOW_TRACKING_URI"] == (Path.cwd() / "runs/cats/mlruns").as_uri()
    MLflow("mlflow", RUN._replace(directory=Path("runs/dogs")), {}).options()  # a second run of the same program
    assert os.environ["MLFLOW_TRACKING_URI"] == (Path.cwd() / "runs/dogs/mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    stored = {"project": "old", "name": "dogs", "run_id": "5"}
    assert MLflow("mlflow", RUN, stored).options() == {"run_name": "dogs", "run_id": "5"}
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example"
