"""What may be removed from runs: old checkpoints and leftovers, and nothing of a run that trains or needs it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.prune import PrunableRun, prunable_runs, remove
from diffpipe.train.checkpoint import manifest_sha256
from tests.support.run_folders import checkpoint, run_folder
from tests.support.stale_files import make_stale

OLD = "an old checkpoint: {} newer ones are whole"
HALF_GONE = "an old checkpoint that was being removed"


def run_with(path: Path, *steps: int, overrides: tuple[str, ...] = ()) -> Path:
    """A run with checkpoints of these steps, the last of which is its newest."""
    run = run_folder(path, *overrides, step=steps[-1])
    for step in steps[:-1]:
        checkpoint(run, step)
    return run


def names(run: PrunableRun) -> dict[str, str]:
    return {str(entry.path.relative_to(run.run)): entry.reason for entry in run.removable}


def one(folder: Path, keep_last: int | None = None) -> PrunableRun:
    (run,) = prunable_runs(folder, keep_last)
    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_checkpoints_beyond_those_that_the_config_keeps_may_go(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3, 4, 5, 6, overrides=("checkpoint.keep_last=3", "checkpoint.keep_every=2"))
    assert names(one(run)) == {f"checkpoints/step-0000000{step}": OLD.format(3) for step in (3, 1)}
    assert names(one(run, 5)) == {"checkpoints/step-00000001": OLD.format(5)}
    removable = one(run, 2).removable
    assert [entry.bytes for entry in removable] == [
        sum(file.stat().st_size for file in entry.path.iterdir()) for entry in removable
    ]
    with pytest.raises(UserError, match="give 2 or more"):
        prunable_runs(run, 1)


def test_the_newest_valid_checkpoints_stay_whatever_is_newer(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3, 4, 5)
    (run / "checkpoints" / "step-00000005" / "state.json").write_text("{}")
    (run / "checkpoints" / "step-00000003" / "manifest.json").unlink()
    assert names(one(run)) == {"checkpoints/step-00000001": OLD.format(2)}
    (run / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    assert names(one(run)) == {}  # 4 and 1 are the only valid ones
    (run / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    (run / "checkpoints" / "damaged-step-00000006").mkdir()
    assert names(one(run)) == {}  # one valid checkpoint


def test_what_killed_jobs_have_left_may_go_and_the_unknown_stays(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 3, 4)
    known = {
        "checkpoints/.tmp-step-00000005": "a save that was never finished",
        "checkpoints/.old-step-00000002": HALF_GONE,
        "checkpoints/.pruned-step-00000001": HALF_GONE,
        "checkpoints/damaged-step-00000002": "found damaged by a job",
        "ema/.tmp-step-00000005": "a save that was never finished",
    }
    for name in (*known, "checkpoints/mine", "checkpoints/.tmp-mine", "ema/step-00000001", "plots", ".old-step-1"):
        (run / name).mkdir(parents=True)
    for name in (".config.yaml.0a1b2c3d.tmp", "scores/.eval.json.0a1b2c3d.tmp"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{")
        os.utime(run / name, (1, 1))
        known[name] = "a file that was never finished"
    (run / "notes.tmp").touch()
    (run / "scores" / ".nll.json.0a1b2c3d.tmp").touch()  # `nll` may be writing it
    (run / "checkpoints" / ".latest.0a1b2c3d.tmp").symlink_to(run / "config.yaml")
    before = files(run)
    found = one(run)
    assert names(found) == known
    assert files(run) == before  # it was only looked at
    assert names(remove(found)) == known
    assert files(run) == {name for name in before if not name.startswith(tuple(known))}
    assert names(one(run)) == {}


def test_a_checkpoint_that_another_run_needs_stays(tmp_path: Path) -> None:
    run = run_with(tmp_path / "vae", 1, 2, 3, 4)
    needed = manifest_sha256(run / "checkpoints" / "step-00000001")
    other = run_with(tmp_path / "latent", 5, 6)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(f"{config}# stage.codec.sha256: {needed}\n")
    removable = {run.run.name: names(run) for run in prunable_runs(tmp_path)}
    assert removable == {"latent": {}, "vae": {"checkpoints/step-00000002": OLD.format(2)}}
    assert one(run).needed == [(run / "checkpoints" / "step-00000001", other)]  # it is beside the one that is named
    (other / "config.yaml").write_text(config)
    assert len(one(run).removable) == 2
    state = next((other / "checkpoints").glob("*/state.json"))
    state.write_text(json.dumps({"experiment": {"stage": {"sampler": {"guide": {"sha256": needed}}}}}))
    assert len(one(run).removable) == 1  # a checkpoint can be sampled as it was trained


def test_snapshots_of_averages_stay_for_averages_of_any_length(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3, overrides=("ema={kind: power, snapshot_every: 1, keep_snapshots: 1}",))
    (run / "ema").mkdir()
    for step in (1, 2, 3):
        checkpoint(run, 10).rename(run / "ema" / f"step-{step:08d}")
    assert names(one(run)) == {"checkpoints/step-00000001": OLD.format(2)}


HOLDER = "import sys; from diffpipe.files import *; open_locked(Path(sys.argv[1])); print('held', flush=True); input()"


def test_nothing_of_a_run_that_a_job_holds_is_touched(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3)
    (run / "checkpoints" / ".tmp-step-00000004").mkdir()
    found, before = one(run), files(run)
    assert len(found.removable) == 2
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, run / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        job.stdout.readline()
        assert one(run) == PrunableRun(run, left="a job trains in it")
        assert remove(found) == PrunableRun(run, left="a job trains in it")  # it has started since
        job.communicate("\n")
    assert files(run) == before
    checkpoint(run, 4)
    assert remove(found).left == "a job has trained in it meanwhile; run the same command again"
    assert files(run) > before


@pytest.mark.parametrize("name", ["config.yaml", "checkpoints/step-00000005/state.json"])
def test_where_a_run_cannot_be_read_the_checkpoints_of_all_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It may need one of them: a first read over NFS may fail, and a colleague's folder may be closed."""
    run = run_with(tmp_path / "vae", 1, 2, 3)
    (run / "checkpoints" / ".tmp-step-00000004").mkdir()
    latent = run_with(tmp_path / "latent", 5)
    make_stale(monkeypatch, latent / name)
    unread, vae = prunable_runs(tmp_path)
    assert unread.run == latent
    assert "it cannot be read (Stale file handle), and may need checkpoints of the others" in str(unread.left)
    assert names(vae) == {"checkpoints/.tmp-step-00000004": "a save that was never finished"}


def test_a_manifest_that_cannot_be_read_just_now_may_be_one_that_another_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3, 4)
    opened = os.open

    def failing(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path) == str(run / "checkpoints" / "step-00000001" / "manifest.json"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", failing)
    assert str(one(run).left).endswith("manifest.json: Input/output error")


def test_a_disk_without_room_for_a_name_in_the_lock_can_be_pruned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found = one(run)
    monkeypatch.setattr(os, "write", full)
    assert [entry.path.name for entry in remove(found).removable] == ["step-00000001"]
    assert not (run / "checkpoints" / "step-00000001").exists()


def test_what_cannot_be_removed_is_named_and_the_rest_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3, 4)
    removed = shutil.rmtree

    def busy(path: Path) -> None:
        if path.name.endswith("2"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        removed(path)

    monkeypatch.setattr(shutil, "rmtree", busy)
    pruned = remove(one(run))
    assert [entry.path.name for entry in pruned.removable] == ["step-00000001"]
    assert pruned.complaints == [f"{run}/checkpoints/.pruned-step-00000002: Device or resource busy"]
    monkeypatch.undo()
    assert names(remove(one(run))) == {"checkpoints/.pruned-step-00000002": HALF_GONE}


def test_runs_without_a_lock_foreign_and_damaged_ones_are_left(tmp_path: Path) -> None:
    for name, overrides in {"unlocked": ("run.lock=false",), "damaged": (), "foreign": ()}.items():
        run_with(tmp_path / name, 1, 2, 3, overrides=overrides)
    (tmp_path / "damaged" / "config.yaml").write_bytes(os.urandom(100))
    (tmp_path / "foreign" / "config.yaml").write_text("model: resnet\n")
    run_with(tmp_path / "elsewhere", 1, 2, 3)
    (tmp_path / "elsewhere").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    assert [(run.run.name, run.removable, run.left) for run in prunable_runs(tmp_path)] == [
        ("linked", (), "a symbolic link; give the folder that it leads to"),
        ("unlocked", (), "run.lock=false: nothing says whether a job trains in it"),
    ]


def test_a_run_without_a_lock_file_has_none_afterwards(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3)
    (run / ".lock").unlink()
    assert len(remove(one(run)).removable) == 1
    assert not (run / ".lock").exists()
