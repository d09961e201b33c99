"""The run directory: refusals, and machines that would not share it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from diffpipe.errors import UserError
from diffpipe.experiment.doctor.run_directory import file_system, not_shared, refusals
from diffpipe.experiment.preflight import require_writable
from diffpipe.experiment.resources import JobSize
from tests.support.stage_cases import CASES

MOUNTS = """\
/dev/vda / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/export /mnt/our\\040runs nfs4 rw 0 0
/dev/vdb /mnt/our\\040runs/local xfs rw 0 0
"""


def test_a_new_or_free_run_directory_is_no_finding(tmp_path: Path) -> None:
    assert [*refusals(CASES["ddpm"].experiment(f"run.dir={tmp_path / 'run'}"))] == []
    assert [*tmp_path.iterdir()] == []


def test_a_folder_of_checkpoints_that_cannot_be_written_is_refused_in_the_words_of_train(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError) as caught:
        require_writable(tmp_path / "checkpoints")
    (finding,) = refusals(CASES["ddpm"].experiment(f"run.dir={tmp_path}"))
    assert (finding.level, finding.message) == ("error", str(caught.value))


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/runs", "ext4"),
        ("/dev/shm/runs", "tmpfs"),
        ("/mnt/our runs/a", "nfs4"),
        ("/mnt/our runs/local/a", "xfs"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(place: str, kind: str) -> None:
    assert file_system(Path(place), MOUNTS) == kind
    assert file_system(Path(place), "") is None


def test_only_what_cannot_be_shared_is_found_and_only_with_several_machines() -> None:
    two = JobSize(16, 8)
    levels = {
        place: finding and finding.level
        for place in ("/dev/shm/runs", "/mnt/our runs/a", "/mnt/our runs/local", f"{tempfile.gettempdir()}/a")
        for finding in [not_shared(Path(place), two, MOUNTS)]
    }
    assert [*levels.values()] == ["error", None, "warning", "error"]
    assert all(not_shared(Path(place), JobSize(8, 8), MOUNTS) is None for place in levels)
    assert not_shared(Path("/data/runs"), two, "") is None
