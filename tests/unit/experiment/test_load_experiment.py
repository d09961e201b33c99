"""The config that a training starts with: that of a run which lies elsewhere is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.load_experiment import load_experiment
from diffpipe.experiment.sweep import sweep_commands
from tests.support.runs import saved_run


def test_the_config_of_a_run_is_taken_where_the_run_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved_run(Path("runs/photos"))
    (tmp_path / "link").symlink_to("runs")
    for path in ("runs/photos/config.yaml", tmp_path / "link" / "photos" / "config.yaml"):
        assert load_experiment(path, ["train.steps=7"]).train.steps == 7


def test_the_config_of_a_run_that_was_moved_or_is_seen_from_another_directory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_run(Path("runs/photos"))
    shutil.copytree("runs/photos", "runs/a copy")
    message = r"its run\.dir=runs/photos leads elsewhere from here; give 'run\.dir=runs/a copy' to continue this run"
    with pytest.raises(UserError, match=message):
        load_experiment("runs/a copy/config.yaml")
    with pytest.raises(UserError, match=message):
        sweep_commands("runs/a copy/config.yaml", ["seed=1,2"])
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(UserError, match=rf"give run\.dir={tmp_path}/runs/photos to continue this run"):
        load_experiment(tmp_path / "runs" / "photos" / "config.yaml")


def test_a_run_dir_that_is_given_and_a_config_without_a_run_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved_run(Path("runs/photos"))
    assert load_experiment("runs/photos/config.yaml", ["run.dir=runs/new"]).run.dir == "runs/new"
    (tmp_path / "configs").mkdir()
    shutil.copy("runs/photos/config.yaml", "configs/config.yaml")
    shutil.copy("runs/photos/config.yaml", "runs/photos/mine.yaml")
    for path in ("configs/config.yaml", "runs/photos/mine.yaml"):
        assert load_experiment(path).run.dir == "runs/photos"
