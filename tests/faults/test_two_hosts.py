"""Two hosts train one run: the cable between them is pulled, both end by themselves, and both come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import CONFIG, HOME, TINY, metrics, seen, tensors, train
from tests.support.network_hosts import INTERFACE, Hosts, refusal

STEPS, EVERY = 72, 8
TIMEOUT = 20
SETTINGS = ["data.resolution=8", "data.workers=0", "sample.every=0", "eval.every=0", "train.record_samples=true"]
SETTINGS += [f"train.steps={STEPS}", f"checkpoint.every={EVERY}", f"train.timeout={TIMEOUT}"]
# A save beside training yields to all else that runs here, and under load its collectives would reach the timeout.
SETTINGS += ["checkpoint.async=false"]


def start(hosts: Hosts, run: Path) -> list[subprocess.Popen[bytes]]:
    """What launch/multinode.yaml says to type, on both hosts. Their output goes beside the run."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(HOME / "launch/multinode.yaml")]
    launch += ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", hosts.address(0)]
    launch += ["--main_process_port", "29500"]
    words = ["-m", "diffpipe", "train", str(CONFIG), f"run.dir={run}", *TINY, *SETTINGS]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": INTERFACE}
    return [
        hosts.start(host, [*launch, "--machine_rank", str(host), *words], said=said(run, host), cwd=HOME, env=env)
        for host in (0, 1)
    ]


def said(run: Path, host: int) -> Path:
    return run.with_name(f"host-{host}")


def until_step(run: Path, step: int, jobs: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 90
    journal = run / "metrics.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < step:
        assert time.monotonic() < deadline, "the step was never reached"
        assert all(job.poll() is None for job in jobs), said(run, 0).read_text() + said(run, 1).read_text()
        time.sleep(0.01)


def test_a_cable_is_pulled_and_both_hosts_come_back_as_if_it_never_was(tmp_path: Path) -> None:
    if (why := refusal()) is not None:
        pytest.skip(why)
    run, straight = tmp_path / "run", tmp_path / "straight"
    with Hosts() as hosts:
        jobs = start(hosts, run)
        until_step(run, 2 * EVERY + 1, jobs)
        hosts.unplug(1)
        cut = time.monotonic()
        # Each is the other's lost host. The launcher may take its time beside what the collective waits.
        statuses = [job.wait(timeout=TIMEOUT + 30) for job in jobs]
        assert all(statuses), f"{statuses} after {time.monotonic() - cut:.0f} s"
        assert not hosts.running(0), "host 0 still runs something"
        assert not hosts.running(1), "host 1 still runs something"
        reached = max(metrics(run))
        assert reached < STEPS, "the run ended before the cable was pulled"
        saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        full = reached // EVERY * EVERY
        assert saved[-1] in {f"step-{full:08d}", f"step-{full - EVERY:08d}"}, "more than the save in flight is lost"

        hosts.plug(1)
        assert [job.wait(timeout=90) for job in start(hosts, run)] == [0, 0], said(run, 0).read_text()
    text = said(run, 0).read_text()
    assert f"resuming from {run}/checkpoints/{saved[-1]}" in text
    assert "damaged" not in text

    train(straight, *SETTINGS, processes=2)
    last = f"checkpoints/step-{STEPS:08d}"
    expected, ours = tensors(straight / last), tensors(run / last)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert ours[name].tobytes() == tensor.tobytes(), f"{name} differs after the cut at step {reached}"
    assert seen(run) == seen(straight)
    assert sorted(metrics(run)) == list(range(1, STEPS + 1))
