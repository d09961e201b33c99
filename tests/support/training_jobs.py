"""Training jobs for fault injection, each a process group of its own, and the comparison with an uninterrupted run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.support.commands import CONFIG, HOME, TINY, metrics, seen, server, tensors

SMALL = [*TINY, "data.resolution=8", "data.workers=0", "sample.every=0", "eval.every=0", "train.record_samples=true"]
# A save beside training has a low priority and waits for other tests: only tests of such saves have one.
SMALL += ["checkpoint.async=false"]


class TrainingJob:
    """`diffpipe train` on tiny networks, running. `processes`: as in `commands.diffpipe`, 0 for a single process."""

    def __init__(self, run: Path, *words: str, processes: int = 0, module: str = "diffpipe", **env: object):
        self.run = run
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `wait`)
        overrides = {key.upper(): str(value) for key, value in env.items()}
        arguments = ["train", str(CONFIG), f"run.dir={run}", *SMALL, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **overrides}
        with Path(os.devnull).open("w") as devnull:
            self._command = server().start(arguments, HOME, environment, devnull, self._stderr, processes, module)
        # Forked one after the other, in the order of their ranks.
        self.ranks = sorted(psutil.Process(self._command.pid).children(), key=lambda process: process.pid)

    def wait(self, timeout: float = 60) -> tuple[int, str]:
        """Exit status and stderr. No process of the job may be left."""
        try:
            status = self._command.wait(timeout)
        finally:
            with self._stderr as file:
                file.seek(0)
                stderr = file.read()
        deadline = time.monotonic() + 5  # orphans of a kill may take a moment to die
        while left := _group(self._command.pid):
            assert time.monotonic() < deadline, f"left of the job: {left}\n{stderr}"
            time.sleep(0.01)
        return status, stderr

    def wait_until(self, happened: Callable[[], object], timeout: float = 60) -> None:
        """Wait for it. The job must not end before."""
        deadline = time.monotonic() + timeout
        while not happened():
            if time.monotonic() > deadline or not psutil.pid_exists(self._command.pid):
                self.kill_all()
                raise AssertionError(f"it has not happened: {self.wait()}")
            time.sleep(0.002)

    def wait_until_step(self, step: int) -> None:
        self.wait_until(lambda: last_logged_step(self.run) >= step)

    def kill_all(self) -> None:
        """SIGKILL to every process of the job at once, the parent that stands for the launcher among them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._command.pid, signal.SIGKILL)


def train_to_end(run: Path, *words: str, processes: int = 0, module: str = "diffpipe", **env: object) -> str:
    """Train to the last step, without an error: stderr."""
    status, stderr = TrainingJob(run, *words, processes=processes, module=module, **env).wait()
    assert status == 0, stderr
    return stderr


def train_fails(run: Path, *words: str, processes: int = 0, module: str = "diffpipe", **env: object) -> str:
    """Train, which must end with exit status 2 (1 of a launcher) and one line of error: the line."""
    status, stderr = TrainingJob(run, *words, processes=processes, module=module, **env).wait()
    lines = [line for line in stderr.splitlines() if line.startswith("diffpipe train: error: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr, stderr
    assert status == (1 if processes else 2), stderr
    return lines[0]


def assert_equals_uninterrupted(run: Path, uninterrupted: Path, step: int) -> None:
    """The run has come to `step` with the bits of the uninterrupted one, and saw the same samples on the way."""
    expected = tensors(uninterrupted / "checkpoints" / f"step-{step:08d}")
    actual = tensors(run / "checkpoints" / f"step-{step:08d}")
    assert {name.partition(".")[0] for name in expected} == {"net", "ema", "optimizer"}
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].tobytes() == tensor.tobytes(), name
    assert is_intact(run / "checkpoints" / f"step-{step:08d}")
    samples = seen(uninterrupted)
    assert seen(run) == {k: samples[k] for k in range(step)}
    assert sorted(metrics(run)) == list(range(1, step + 1))


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of the checkpoints, in order. Each must be intact: a committed checkpoint stays so."""
    checkpoints = sorted(run.glob("checkpoints/step-*"))
    assert all(map(is_intact, checkpoints)), checkpoints
    return [int(path.name.removeprefix("step-")) for path in checkpoints]


def leftovers(run: Path) -> list[str]:
    """The entries of the checkpoint directory that are not checkpoints."""
    return sorted(p.name for p in run.glob("checkpoints/*") if not p.name.startswith("step-") and p.name != "latest")


def is_intact(checkpoint: Path) -> bool:
    """Whether the manifest lists every file with its size and hash: the format of the design, read with hashlib."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())["files"]
    contents = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    actual = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    return actual == manifest


def last_logged_step(run: Path) -> int:
    """The last step in metrics.jsonl, whose last line may be incomplete."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def _group(leader: int) -> list[int]:
    """The processes of a group. A dead one counts until the last of its threads is gone: it still holds resources."""
    pids = []
    for process in psutil.process_iter():
        try:
            dead = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() == 1
            if os.getpgid(process.pid) == leader and not dead:
                pids.append(process.pid)
        except (OSError, psutil.NoSuchProcess):
            continue
    return pids
