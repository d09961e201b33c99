"""The status of runs, read from their directories: what they do, why they ended, and what is no run."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffpipe.experiment.run_status import RunStatus, read_status, statuses
from tests.support.run_folders import run_folder
from tests.support.stale_files import make_stale

START = {"step": 0, "event": "start", "time": 1.0, "processes": 2, "host": "node7"}


def status_of(run: Path) -> RunStatus:
    return read_status(run, time.time())


@pytest.mark.parametrize(
    ("step", "events", "state", "reason"),
    [
        (9, [START, {"step": 9, "event": "finish"}], "finished", None),
        (7, [START, {"step": 7, "event": "finish"}], "finished", "train.minutes are over"),
        (5, [START, {"step": 5, "event": "stop", "signal": "SIGTERM"}], "stopped", "by SIGTERM"),
        (5, [START, {"step": 5, "event": "fail", "error": "UserError: the disk"}], "failed", "UserError: the disk"),
        (5, [START], "killed", "its processes on node7 ended without a last word"),
        (9, [START], "finished", None),  # killed after its last save
        (5, [START, {"step": 5, "event": "stop", "signal": "SIGHUP"}, START | {"event": "resume"}], "killed", "node7"),
        (9, None, "finished", None),
        (5, None, "unknown", None),
    ],
)
def test_why_it_ended_is_in_its_events(
    tmp_path: Path, step: int, events: list[dict[str, Any]] | None, state: str, reason: str | None
) -> None:
    status = status_of(run_folder(tmp_path / "run", step=step, events=events))
    assert (status.state, status.step, status.steps) == (state, step, 9)
    assert status.reason == reason if reason is None else reason in str(status.reason)
    assert (status.process, status.host) == (None, None)


def test_the_last_figures_are_those_of_the_last_whole_line_and_of_the_newest_score(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": NaN, "images_per_second": 44.5, "last_step": 8}\nnoise\n{"step": 7, "lo')
    (run / "scores").mkdir()
    for i, (name, score) in enumerate({"eval-step-00000003-n9-a": 31.5, "train-step-00000006-n9-b": 28.0}.items()):
        path = run / "scores" / f"{name}.json"
        path.write_text(json.dumps({"scores": {"fd_efficientnet_lite0": score, "kid": 1.0}, "protocol": {}}))
        os.utime(path, (i, i))
    os.utime(run / "metrics.jsonl", (1000, 1000))
    for name in ("config.yaml", ".lock"):
        os.utime(run / name, (900, 900))
    status = read_status(run, now=1060.0)
    assert (status.step, status.steps, status.images_per_second, status.checkpoint) == (6, 8, 44.5, 5)
    assert str(status.loss) == "nan"
    assert status.score == {"name": "fd_efficientnet_lite0", "value": 28.0, "step": 6}
    assert (status.stage, status.age) == ("ddpm", 60)


def test_a_later_likelihood_does_not_hide_the_distance_that_runs_are_compared_by(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    (run / "scores").mkdir()

    def write(name: str, time: int, **scores: object) -> None:
        path = run / "scores" / f"{name}.json"
        path.write_text(json.dumps({"scores": scores}))
        os.utime(path, (time, time))

    write("nll-step-00000005-n9-a", 4, nll=3.6, nll_standard_error=0.1)
    write("broken", 5, nll="x")
    assert status_of(run).score == {"name": "nll", "value": 3.6, "step": 5}
    write("eval-step-00000004-n9-b", 3, kid=0.2, fid=31.5)
    write("eval-step-00000003-n9-b", 2, fid=40.0)
    assert status_of(run).score == {"name": "fid", "value": 31.5, "step": 4}


HOLDER = "import sys; from diffpipe.files import *; open_locked(Path(sys.argv[1])); print('held', flush=True); input()"


def test_a_run_that_a_process_holds_is_running_there(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", events=[START])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        (run / ".lock").write_text(f"process {holder.pid} on {socket.gethostname()}\n")
        assert holder.stdout is not None
        holder.stdout.readline()
        status = status_of(run)
        assert (status.state, status.process, status.host) == ("running", holder.pid, socket.gethostname())
        (run / "config.yaml").rename(tmp_path / "config.yaml")  # a job that has just started
        assert status_of(run).state == "running"
        (tmp_path / "config.yaml").rename(run / "config.yaml")
        holder.communicate("\n")
    assert status_of(run).state == "killed"
    unlocked = run_folder(tmp_path / "unlocked", "run.lock=false", events=[START])
    assert (status_of(unlocked).state, status_of(unlocked).reason) == (
        "unknown",
        "run.lock=false: nothing says whether it still runs",
    )


def test_damaged_and_foreign_directories_are_called_so(tmp_path: Path) -> None:
    def damage(name: str, file: str, content: bytes | None) -> None:
        path = run_folder(tmp_path / name) / file
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    damage("a_no_config", "config.yaml", None)
    damage("b_binary", "config.yaml", os.urandom(5000))
    damage("c_empty_log", "metrics.jsonl", b"")
    damage("d_odd_log", "metrics.jsonl", b'{"step": "x"}\n[1]\n\xff\xfe\n{"step": true}\n' + b"[" * 5000)
    damage("e_pipe", "metrics.jsonl", None)
    os.mkfifo(tmp_path / "e_pipe" / "metrics.jsonl")
    (tmp_path / "f_lightning" / "checkpoints").mkdir(parents=True)
    (tmp_path / "g_photos" / "cats").mkdir(parents=True)
    (tmp_path / "h_scores" / "scores").mkdir(parents=True)
    run_folder(tmp_path / "i_odd_scores")
    (tmp_path / "i_odd_scores" / "scores").mkdir()
    (tmp_path / "i_odd_scores" / "scores" / "x.json").write_text('{"scores": {"a": "b"}}')
    (tmp_path / "file").touch()
    damage("k_large", "config.yaml", b"train:\n  steps: " + b"9" * 5000 + b"\nstage:\n  kind: ddpm\n")
    run_folder(tmp_path / "j_looped").joinpath("config.yaml").unlink()
    (tmp_path / "j_looped" / "config.yaml").symlink_to("config.yaml")
    states = {status.run.name: (status.state, status.reason) for status in statuses(tmp_path)}
    assert states == {
        "a_no_config": ("damaged", "config.yaml is missing"),
        "b_binary": ("damaged", "config.yaml is not that of a run"),
        "c_empty_log": ("unknown", None),
        "d_odd_log": ("unknown", None),
        "e_pipe": ("damaged", f"{tmp_path}/e_pipe/metrics.jsonl: a FIFO, not a regular file"),
        "f_lightning": ("foreign", "not a run of diffpipe: it has no config.yaml and no checkpoint"),
        "g_photos": ("foreign", "no run in it"),
        "h_scores": ("foreign", "no run in it"),
        "i_odd_scores": ("unknown", None),
        "j_looped": ("damaged", f"{tmp_path}/j_looped/config.yaml: Too many levels of symbolic links"),
        "k_large": ("damaged", states["k_large"][1]),
    }


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "events.jsonl", ".lock"])
def test_what_cannot_be_read_just_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run = run_folder(tmp_path / "run", events=[START])
    make_stale(monkeypatch, run / name)
    status = status_of(run)
    assert (status.state, status.reason) == ("unknown", f"{run / name} cannot be read just now: Stale file handle")


def test_a_score_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", events=[START, {"step": 5, "event": "stop", "signal": "SIGTERM"}])
    (run / "scores").mkdir()
    os.mkfifo(run / "scores" / "x.json")
    (run / "scores" / "link.json").symlink_to("gone")
    assert (status_of(run).state, status_of(run).score) == ("stopped", None)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_says_nothing_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refused(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", refused)
    run = run_folder(tmp_path / "run", "run.lock=false", events=[START])
    assert status_of(run).reason == "run.lock=false: nothing says whether it still runs"
    moved = run_folder(tmp_path / "moved", events=[START])
    assert (status_of(moved).state, status_of(moved).reason) == (
        "unknown",
        f"{moved / '.lock'}: {os.strerror(code)}: nothing says whether it still runs",
    )


def test_an_imported_run_is_called_so(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", step=0)
    (run / "metrics.jsonl").unlink()
    assert status_of(run).state == "imported"


def test_thousands_of_runs_take_seconds_at_most(tmp_path: Path) -> None:
    template = run_folder(tmp_path / "0000", "train.steps=200", step=100, events=[START])
    texts = {name: (template / name).read_text() for name in ("config.yaml", "metrics.jsonl", "events.jsonl")}
    for i in range(1, 2000):
        (tmp_path / f"{i:04d}" / "checkpoints" / "step-00000100").mkdir(parents=True)
        for name, text in texts.items():
            (tmp_path / f"{i:04d}" / name).write_text(text)
    start = time.process_time()
    found = statuses(tmp_path)
    assert len(found) == 2000
    assert {status.state for status in found} == {"killed"}
    assert time.process_time() - start < 4  # 0.6 on an idle core
