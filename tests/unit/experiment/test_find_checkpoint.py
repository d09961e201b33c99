"""The checkpoint that a path and a hash stand for, among those of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.find_checkpoint import find_checkpoint, find_pinned_checkpoint
from diffpipe.train.runtime import Runtime
from tests.support.runs import saved_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 2 and 10."""
    home = tmp_path_factory.mktemp("runs") / "photos"
    saved_run(home, steps=(2, 10))
    return home


def sha256(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()


def test_a_run_stands_for_its_newest_checkpoint_and_a_checkpoint_for_itself(home: Path, runtime: Runtime) -> None:
    assert find_checkpoint(home, runtime).step == 10
    assert find_checkpoint(home / "checkpoints" / "step-00000002", runtime).step == 2


def test_places_without_a_checkpoint_are_refused(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(UserError, match="no such directory; give a run directory or one of its checkpoints"):
        find_checkpoint(tmp_path / "absent", runtime)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"config\.yaml: a file, and no directory; give a run directory or one of its"):
        find_checkpoint(tmp_path / "config.yaml", runtime)
    with pytest.raises(UserError, match="no checkpoint in it; give a run directory that training has saved to"):
        find_checkpoint(tmp_path, runtime)


def test_a_folder_of_checkpoints_and_a_folder_of_runs_are_refused_with_what_to_give(
    home: Path, runtime: Runtime
) -> None:
    with pytest.raises(
        UserError, match="photos/checkpoints: the folder of a run's checkpoints; give the run directory"
    ):
        find_checkpoint(home / "checkpoints", runtime)
    with pytest.raises(UserError, match=f"a folder of runs; give one of them: {home}$"):
        find_checkpoint(home.parent, runtime)


def test_a_damaged_checkpoint_is_named_where_an_older_one_takes_its_place(
    tmp_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run(tmp_path, steps=(2, 10))
    (tmp_path / "checkpoints" / "step-00000010" / "config.yaml").touch()
    assert find_checkpoint(tmp_path, runtime).step == 2
    warning = capsys.readouterr().err
    assert "warning: skipping a damaged checkpoint: " in warning
    assert "step-00000010: config.yaml is not in manifest.json; step 2 takes its place" in warning
    assert (tmp_path / "checkpoints" / "step-00000010").is_dir()


def test_a_hash_finds_its_checkpoint_in_the_run_though_it_is_not_the_newest(home: Path, runtime: Runtime) -> None:
    older = home / "checkpoints" / "step-00000002"
    for path in (home, older):
        checkpoint = find_pinned_checkpoint(path, sha256(older), runtime, role="codec", place="--codec PATH")
        assert (checkpoint.step, checkpoint.manifest_sha256) == (2, sha256(older))


def test_a_hash_that_is_not_there_is_refused_with_those_that_are(home: Path, runtime: Runtime) -> None:
    newest = home / "checkpoints" / "step-00000010"
    with pytest.raises(UserError, match=rf"has sha256 {'0' * 64}, and there are .*{sha256(newest)}"):
        find_pinned_checkpoint(home, "0" * 64, runtime, role="codec", place="--codec PATH")
    with pytest.raises(UserError, match=rf"and there is only {sha256(newest)}"):
        find_pinned_checkpoint(newest, "0" * 64, runtime, role="codec", place="--codec PATH")
    with pytest.raises(UserError, match=r"this run needs its codec, .*give its new place \(--codec PATH\)"):
        find_pinned_checkpoint(home / "absent", "0" * 64, runtime, role="codec", place="--codec PATH")
