"""A run that is killed twice is one run at each tracker: every step once, with its values, its grid and its scores."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from diffpipe.train.tracker_kinds import KINDS, grid_path
from diffpipe.train.wandb_file import records
from tests.faults.fault_injection import MODULE
from tests.support.commands import metrics
from tests.support.training_jobs import TrainingJob

LAST = 13
MEASURED = {"time", "images_per_second", "data_wait"}  # another time when a step is trained again
WORDS = ["checkpoint.every=4", "sample.every=3", "sample.n=4", f"eval.every={LAST}", "eval.n=10", f"train.steps={LAST}"]


class Tracked(NamedTuple):
    """The scalars that a tracker has, each as (step, value) in the order that it has them, and its grids."""

    scalars: dict[str, list[tuple[int, float]]]
    grids: list[tuple[int, np.ndarray]]


def pixels(image: Any) -> np.ndarray:
    return np.asarray(Image.open(image).convert("RGB"))


def in_tensorboard(run: Path) -> Tracked:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    images = events.Images("samples") if events.Tags()["images"] else []
    return Tracked(scalars, [(e.step, pixels(io.BytesIO(e.encoded_image_string))) for e in images])


def in_wandb(run: Path) -> Tracked:
    scalars, grids = defaultdict(list), []
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len({folder.name[-8:] for folder in folders}) == 1 < len(folders)
    for folder in folders:
        for record in records(next(folder.glob("*.wandb"))):
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for key, value in row.items():
                if isinstance(value, float | int) and not key.startswith(("_", "samples")):
                    scalars[key].append((row["_step"], value))
            grids += [(row["_step"], pixels(folder / "files" / name)) for name in row.get("samples.filenames", [])]
    return Tracked(scalars, grids)


def in_mlflow(run: Path) -> Tracked:
    """Read from the files, so that this process imports no mlflow."""
    ((directory,),) = ([path.parent for path in (run / "mlruns").glob("*/*/meta.yaml")],)
    scalars = {}
    for path in (directory / "metrics").rglob("*"):
        lines = [line.split() for line in path.read_text().splitlines()] if path.is_file() else []
        scalars[str(path.relative_to(directory / "metrics"))] = [(int(step), float(value)) for _, value, step in lines]
    grids = (directory / "artifacts" / "images").glob("samples*.png")
    return Tracked(scalars, sorted((int(path.name.split("+")[2]), pixels(path)) for path in grids))


def in_trackio(run: Path) -> Tracked:
    scalars, grids = defaultdict(list), []
    with sqlite3.connect(run.parent / "trackio" / "pictures.db") as database:
        rows = [*database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id")]
    assert len({name for name, _, _ in rows}) == 1
    for _, step, values in rows:
        for key, value in json.loads(values).items():
            if key == "samples":
                grids.append((step, pixels(run.parent / "trackio" / "media" / value["file_path"])))
            else:
                scalars[key].append((step, value))
    return Tracked(scalars, grids)


READ: dict[str, Callable[[Path], Tracked]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
    "trackio": in_trackio,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all trackers that are installed. Killed after steps 6 and 10, it resumes from 4 and 8."""
    home = tmp_path_factory.mktemp("tracked")
    names = [name for name in KINDS if importlib.util.find_spec(name)]
    words = [*WORDS, f"train.trackers=[{','.join(names)}]", "run.project=pictures", "run.name=first"]
    env: dict[str, Any] = {"wandb_mode": "offline", "trackio_dir": home / "trackio"}
    # The first job dies before W&B has written anything, the second one after it has written most.
    for killed_at, seconds in ((6, 15), (10, 0.1), (None, 15)):
        events = [] if killed_at is None else [("step", killed_at, 0, "SIGKILL")]
        faults = json.dumps({"events": events, "seconds_per_step": 0.2})
        env |= {"wandb_x_transaction_log_flush_interval": seconds, "faults": faults}
        status, stderr = TrainingJob(home / "run", *words, module=MODULE, **env).wait(timeout=300)
        assert status == (0 if killed_at is None else -signal.SIGKILL), stderr
        assert "warning: " not in stderr
    return home / "run"


@pytest.mark.parametrize("name", READ)
def test_a_run_that_is_killed_and_resumed_is_one_run_at_each_tracker(run: Path, name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install 'diffpipe[trackers]'")
    lines, tracked = metrics(run), READ[name](run)
    assert [*lines] == [*range(1, LAST + 1)]
    for key in {key for line in lines.values() for key in line} - {"step", "time"}:
        expected = [(step, line[key]) for step, line in lines.items() if key in line]
        steps, values = zip(*tracked.scalars[key], strict=True)
        assert steps == tuple(step for step, _ in expected), key
        if key not in MEASURED:
            assert values == pytest.approx([value for _, value in expected], rel=1e-6), key
    (score,) = (run / "scores").glob("*.json")
    for key, value in json.loads(score.read_text())["scores"].items():
        assert tracked.scalars[key] == [(LAST, pytest.approx(value))]
    assert [step for step, _ in tracked.grids] == [3, 6, 9, 12]
    for step, grid in tracked.grids:
        np.testing.assert_array_equal(grid, pixels(grid_path(run, step)))


def test_a_run_keeps_its_name_and_project_at_the_trackers(run: Path) -> None:
    identities = json.loads((run / "trackers.json").read_text())
    assert {identity["project"] for identity in identities.values()} == {"pictures"}
    assert identities["wandb"]["name"] == "first"


def test_no_login_and_no_server_is_one_warning_each_and_the_others_go_on(tmp_path: Path) -> None:
    remote = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name)]
    words = [f"train.trackers=[{','.join([*remote, 'tensorboard'])}]", "train.steps=3"]
    env: dict[str, Any] = {"home": tmp_path, "wandb_mode": "online", "wandb_api_key": "", "netrc": tmp_path / "netrc"}
    env |= {"mlflow_tracking_uri": "http://127.0.0.1:1", "mlflow_http_request_max_retries": 1}
    status, stderr = TrainingJob(tmp_path / "run", *words, processes=2, **env).wait(timeout=300)
    assert status == 0, stderr
    warnings = [line for line in stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == len(remote), stderr
    for name, warning in zip(remote, warnings, strict=True):
        assert f"the tracker {name} gets no values from here on, and the run goes on: " in warning
    assert "wandb" not in remote or "give WANDB_API_KEY or run `wandb login`" in warnings[0]
    assert "Traceback" not in stderr
    assert [step for step, _ in in_tensorboard(tmp_path / "run").scalars["loss"]] == [1, 2, 3]
