"""The whole of a training: the data is opened before the run directory is locked, and callbacks see every step."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.config import Experiment
from diffpipe.experiment.training import train
from diffpipe.train import run_lock
from diffpipe.train.callbacks import Callback
from diffpipe.train.checkpoint import committed
from tests.support.runs import indexed_shards
from tests.support.stage_cases import CASES

WORDS = ["data.batch_size=4", "data.test=null", "sample.every=0", "checkpoint.async=false", "train.precision=fp32"]


def experiment(home: Path, *words: str) -> Experiment:
    images = home.parent / "images"
    if not images.exists():
        indexed_shards(images, 12)
    return CASES["ddpm"].experiment(*WORDS, f"run.dir={home}", f"data.train={images}", "train.steps=2", *words)


class Steps(Callback):
    def __init__(self, home: Path):
        self.home = home
        self.steps: list[int] = []
        self.holder = ""

    def on_log(self, values: Mapping[str, Any], step: int) -> None:
        self.steps.append(step)
        self.holder = (self.home / ".lock").read_text()


def test_a_training_holds_the_lock_and_reports_every_step(tmp_path: Path) -> None:
    home = tmp_path / "run"
    callback = Steps(home)
    handler = signal.getsignal(signal.SIGTERM)
    assert train(experiment(home), [callback]) is None
    assert callback.steps == [1, 2]
    assert [path.name for path in committed(home / "checkpoints")] == ["step-00000002"]
    assert signal.getsignal(signal.SIGTERM) == handler
    assert callback.holder == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_a_locked_run_is_refused_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "run"
    monkeypatch.setattr(run_lock, "lock", lambda _: False)  # another process holds it
    with pytest.raises(UserError, match="another job trains in"):
        train(experiment(home))
    assert [path.name for path in home.iterdir()] == [".lock"]


def test_data_that_cannot_be_opened_leaves_no_lock(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        train(experiment(tmp_path / "run", f"data.train={tmp_path / 'absent'}"))
    assert not (tmp_path / "run" / ".lock").exists()


REFUSED = {
    "of the stage": ("stage.conditional=true", "data.labels=false"),
    "of the scores": ("eval.every=1", "data.test=null"),
    "of the held-out images": ("validate.every=1", "data.test=absent"),
    "of the machine": ("data.workers=5000",),
}


@pytest.mark.parametrize("where", ["new", "old"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_config_leaves_nothing(tmp_path: Path, kind: str, where: str) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").touch()
    refused = experiment(tmp_path / where, *REFUSED[kind])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        train(refused)
    assert set(tmp_path.rglob("*")) == before
