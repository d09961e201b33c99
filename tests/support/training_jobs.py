"""Training jobs that meet with an accident: started as a process group of their own, struck, and compared afterwards
with a run that nothing happened to.
"""

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
# A save beside training yields to all else that runs here, such as other tests: for those that are about it alone.
SMALL += ["checkpoint.async=false"]


class Job:
    """`diffpipe train` on tiny networks, running. `processes`: as in `commands.diffpipe`, 0 for one by itself."""

    def __init__(self, run: Path, *words: str, processes: int = 0, module: str = "diffpipe", **env: object):
        self.run = run
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `wait`)
        told = {key.upper(): str(value) for key, value in env.items()}
        started = ["train", str(CONFIG), f"run.dir={run}", *SMALL, *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **told}
        with Path(os.devnull).open("w") as nowhere:
            self._command = server().start(started, HOME, environment, nowhere, self._said, processes, module)
        # Forked one after the other, in the order of their ranks.
        self.ranks = sorted(psutil.Process(self._command.pid).children(), key=lambda process: process.pid)

    def wait(self, timeout: float = 60) -> tuple[int, str]:
        """Exit status and stderr. Nothing of the job may be left."""
        try:
            status = self._command.wait(timeout)
        finally:
            with self._said as said:
                said.seek(0)
                text = said.read()
        deadline = time.monotonic() + 5  # orphans of a kill may take a moment to die
        while left := _group(self._command.pid):
            assert time.monotonic() < deadline, f"left of the job: {left}\n{text}"
            time.sleep(0.01)
        return status, text

    def until(self, happened: Callable[[], object], timeout: float = 60) -> None:
        """Wait for it. The job must not end before."""
        deadline = time.monotonic() + timeout
        while not happened():
            if time.monotonic() > deadline or not psutil.pid_exists(self._command.pid):
                self.kill_all()
                raise AssertionError(f"it has not happened: {self.wait()}")
            time.sleep(0.002)

    def until_step(self, step: int) -> None:
        self.until(lambda: logged(self.run) >= step)

    def kill_all(self) -> None:
        """SIGKILL to every process of the job at once, the parent that stands for the launcher among them."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._command.pid, signal.SIGKILL)


def trains(run: Path, *words: str, processes: int = 0, module: str = "diffpipe", **env: object) -> str:
    """Train to the end, which must be a good one; stderr."""
    status, said = Job(run, *words, processes=processes, module=module, **env).wait()
    assert status == 0, said
    return said


def fails(run: Path, *words: str, processes: int = 0, module: str = "diffpipe", **env: object) -> str:
    """Train, which must end with exit status 2 (1 of a launcher) and one line that says why: the line."""
    status, said = Job(run, *words, processes=processes, module=module, **env).wait()
    lines = [line for line in said.splitlines() if line.startswith("diffpipe train: error: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said, said
    assert status == (1 if processes else 2), said
    return lines[0]


def unharmed(run: Path, straight: Path, step: int) -> None:
    """The run has come to `step` with the bits of the straight one, and saw the same samples on the way."""
    expected = tensors(straight / "checkpoints" / f"step-{step:08d}")
    ours = tensors(run / "checkpoints" / f"step-{step:08d}")
    assert {name.partition(".")[0] for name in expected} == {"net", "ema", "optimizer"}
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].tobytes() == tensor.tobytes(), name
    assert whole(run / "checkpoints" / f"step-{step:08d}")
    samples = seen(straight)
    assert seen(run) == {k: samples[k] for k in range(step)}
    assert sorted(metrics(run)) == list(range(1, step + 1))


def steps(run: Path) -> list[int]:
    """Those of the checkpoints that stand, in order. Each must be whole: committed is for good."""
    standing = sorted(run.glob("checkpoints/step-*"))
    assert all(map(whole, standing)), standing
    return [int(path.name.removeprefix("step-")) for path in standing]


def debris(run: Path) -> list[str]:
    """What lies among the checkpoints and is none."""
    return sorted(p.name for p in run.glob("checkpoints/*") if not p.name.startswith("step-") and p.name != "latest")


def whole(checkpoint: Path) -> bool:
    """Whether its manifest vouches for every byte of it: the format as the design states it, read with hashlib."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())["files"]
    there = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    actual = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in there.items()}
    return actual == manifest


def logged(run: Path) -> int:
    """The last step in metrics.jsonl, which may be half a line just now."""
    journal = run / "metrics.jsonl"
    lines = journal.read_text().splitlines(keepends=True) if journal.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def _group(leader: int) -> list[int]:
    """The processes of a group that still hold anything: of a dead one, until the last of its threads is gone."""
    found = []
    for process in psutil.process_iter():
        try:
            dead = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() == 1
            if os.getpgid(process.pid) == leader and not dead:
                found.append(process.pid)
        except (OSError, psutil.NoSuchProcess):
            continue
    return found
