"""Find the checkpoint that a path and a hash stand for."""

from __future__ import annotations

from pathlib import Path

from diffpipe.errors import UserError
from diffpipe.files import user_path
from diffpipe.train import checkpoint as checkpoints
from diffpipe.train.checkpoint.read import Checkpoint
from diffpipe.train.checkpoint.verify import read_patiently
from diffpipe.train.logs import print_on_rank_zero
from diffpipe.train.runtime import Runtime


def find_checkpoint(path: Path, runtime: Runtime) -> Checkpoint:
    """The checkpoint at `path`, or the newest valid one of the run there. A collective. Raises UserError.

    Newer ones that are damaged are named in warnings: the results are then of an earlier step than the run's last one.
    """
    path = user_path(path)
    if runtime.comm.on_rank_zero(lambda: _is_checkpoint(path, "give a run directory or one of its checkpoints")):
        return checkpoints.open_checkpoint(path, runtime.comm)
    found, complaints = checkpoints.newest_valid(path / "checkpoints", runtime.comm)
    if found is None:
        raise UserError(f"{path}: {runtime.comm.on_rank_zero(lambda: _why_no_checkpoint(path))}")
    for complaint in complaints:
        print_on_rank_zero(
            runtime, f"warning: skipping a damaged checkpoint: {complaint}; step {found.step} takes its place"
        )
    return found


def _why_no_checkpoint(path: Path) -> str:
    if checkpoints.committed(path):
        return "the folder of a run's checkpoints; give the run directory above it, or one of the checkpoints in it"
    runs = sorted({checkpoint.parents[1] for checkpoint in path.glob("*/checkpoints/step-*")})
    if runs:
        return f"a folder of runs; give one of them: {', '.join(map(str, runs[:8]))}{', …' if runs[8:] else ''}"
    return "no checkpoint in it; give a run directory that training has saved to"


def find_pinned_checkpoint(path: Path, sha256: str, runtime: Runtime, *, role: str, place: str) -> Checkpoint:
    """The checkpoint with this hash: the one at `path`, or one of the run there. A collective. Raises UserError.

    sha256: of its manifest.json. role: the word for it in messages, such as `codec`. place: the way to give another
    path, such as `stage.teacher.run=PATH`.
    """
    remedy = (
        f"this run needs its {role}, of the checkpoint with sha256 {sha256}; bring it back, or give its new place "
        f"({place})"
    )

    def find() -> Path:
        by_hash = _checkpoints_by_hash(path, remedy)
        if sha256 not in by_hash:
            raise UserError(
                f"{path}: this run needs the checkpoint whose manifest.json has sha256 {sha256}, and there "
                f"{'is only' if len(by_hash) == 1 else 'are'} {', '.join(map(str, by_hash)) or 'no checkpoint'}; "
                f"bring it back, or train another run on this one"
            )
        return by_hash[sha256]

    # Rank 0 looks: on a network file system, another rank may not see yet what is there.
    return checkpoints.open_checkpoint(runtime.comm.on_rank_zero(lambda: read_patiently(path, find)), runtime.comm)


def checkpoint_of_file(path: Path, sha256: str, file: Path, runtime: Runtime) -> Path:
    """The checkpoint with which a file was made: the one at `path`, or one of the run there. A collective.

    sha256: of its manifest.json. Raises UserError.
    """

    def find() -> Path:
        by_hash = _checkpoints_by_hash(path, "give the run directory that the file was made with")
        if sha256 not in by_hash:
            raise UserError(
                f"{file}: was made with the checkpoint whose manifest.json has sha256 {sha256}, and {path} has "
                f"{'another' if by_hash else 'none'}; give the run that it was made with; a run that has been "
                f"trained further removes old checkpoints: give a copy (see checkpoint.keep_every)"
            )
        return by_hash[sha256]

    return runtime.comm.on_rank_zero(lambda: read_patiently(path, find))


def _checkpoints_by_hash(path: Path, remedy: str) -> dict[str | None, Path]:
    single = _is_checkpoint(path, remedy)
    paths = [path] if single else checkpoints.committed(path / "checkpoints")
    return {checkpoints.manifest_sha256(checkpoint): checkpoint for checkpoint in paths}


def _is_checkpoint(path: Path, remedy: str) -> bool:
    """Whether `path` is a checkpoint, and not the directory of a run. Raises UserError where it is no directory."""
    if not read_patiently(path, path.is_dir):
        what = "a file, and no directory" if read_patiently(path, path.is_file) else "no such directory"
        raise UserError(f"{path}: {what}; {remedy}")
    return read_patiently(path, (path / checkpoints.MANIFEST).exists)
